# SPDX-License-Identifier: GPL-2.0-or-later
"""By which names a module gets into an initrd; tests/container/test_initrd_real.py asks the real programs the same."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import kerneltree
import pytest
from kerneltree import KERNEL

from knetstatd.formats.modules_dep import Tables
from knetstatd.machine import modprobe_conf
from knetstatd.machine.module_needs import Needs, Sure, ignores_install

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A kernel with `demo`, `upper` which needs it, `over` which needs `low`, and `plain`."""
    kerneltree.make(tmp_path)
    tree = tmp_path / "usr/lib/modules" / KERNEL
    for name, *needed in (("demo",), ("low",), ("plain",), ("upper", "demo"), ("over", "low")):
        paths = [f"updates/dkms/{other}.ko" for other in needed]
        kerneltree.add(tree, f"updates/dkms/{name}.ko", kerneltree.module(name), *paths)
    (tmp_path / "etc/modprobe.d").mkdir(parents=True)
    return tmp_path


def needs(root: Path, conf: str = "", **tables: str) -> Needs:
    (root / "etc/modprobe.d/x.conf").write_text(conf)
    for name, text in tables.items():
        (root / f"usr/lib/modules/{KERNEL}/modules.{name}").write_text(text)
    return Needs(root, Tables(root, root / "usr/lib/modules" / KERNEL), modprobe_conf.rules(root), "demo")


def test_its_own_name_and_those_of_modules_that_need_it(root: Path) -> None:
    asked = {"demo": Sure.CERTAIN, "upper": Sure.CERTAIN, "over": None, "plain": None, "unknown": None}
    assert {name: needs(root).sure(name) for name in asked} == asked


@pytest.mark.parametrize(("conf", "name", "sure"), [
    ("softdep plain pre: other demo", "plain", Sure.CERTAIN),
    ("softdep plain pre: other post: demo", "plain", Sure.CERTAIN),
    ("softdep plain post: upper", "plain", Sure.CERTAIN),
    ("softdep low pre: demo", "over", Sure.CERTAIN),
    ("softdep pl* pre: demo", "plain", Sure.CERTAIN),
    ("softdep plain pre: other\nsoftdep plain pre: demo", "plain", None),
    ("softdep plain demo", "plain", None),
    ("softdep plain pre: low\nsoftdep low pre: plain", "plain", None),
    ("softdep builtin pre: demo", "builtin", Sure.LIKELY),
    ("softdep plain pre: fs-demo\nalias fs-demo demo", "plain", Sure.LIKELY),
    ("alias fs-d* demo", "fs-demo", Sure.LIKELY),
    ("alias fs-d* plain", "fs-demo", None),
    ("alias plain demo", "plain", None),
    ("install plain /sbin/modprobe demo", "plain", None),
])  # fmt: skip
def test_soft_dependencies_and_aliases(root: Path, conf: str, name: str, sure: Sure | None) -> None:
    assert needs(root, conf).sure(name) is sure


def test_what_the_modules_themselves_say(root: Path) -> None:
    assert needs(root, softdep="# comment\nsoftdep plain pre: demo\n").sure("plain") is Sure.CERTAIN
    assert needs(root, "softdep plain pre: low").sure("plain") is None, "the administrator's line comes first"
    assert needs(root, alias="alias fs-demo demo\nalias fs-low low\n").sure("fs_demo") is Sure.LIKELY
    assert needs(root).sure("fs-low") is None


def test_weak_dependencies_are_known_to_a_kmod_that_has_a_table_of_them(root: Path) -> None:
    assert needs(root, "weakdep plain demo").sure("plain") is None
    assert needs(root, "weakdep plain demo", weakdep="").sure("plain") is Sure.CERTAIN
    assert needs(root, weakdep="weakdep low upper\n").sure("over") is Sure.CERTAIN


def test_who_says_so(root: Path) -> None:
    soft = needs(root, "softdep plain pre: demo", softdep="softdep low post: x demo\n").soft
    assert [(line.module, line.others, line.where) for line in soft] == [
        ("plain", ("demo",), "/etc/modprobe.d/x.conf line 1"), ("low", ("x", "demo"), "the module itself"),
    ]  # fmt: skip


def test_a_chain_without_end_is_not_followed(tmp_path: Path) -> None:
    kerneltree.make(tmp_path)
    (tmp_path / "etc/modprobe.d").mkdir(parents=True)
    chain = "".join(f"softdep m{number} pre: m{number + 1}\n" for number in range(2000))
    (tmp_path / "etc/modprobe.d/chain.conf").write_text(chain)
    tables = Tables(tmp_path, tmp_path / "lib/modules" / kerneltree.KERNEL)
    needs = Needs(tmp_path, tables, modprobe_conf.rules(tmp_path), "m1999")
    assert needs.sure("m0") is Sure.POSSIBLE
    assert needs.sure("m1990") is Sure.LIKELY


@pytest.mark.spawns
@pytest.mark.parametrize(("conf", "ignored"), [
    ("install demo /bin/false", False),
    ("install demo /bin/false\nsoftdep demo pre: low", True),
    ("install demo /bin/false\nsoftdep demo post: plain", True),
    ("install demo /bin/false\nsoftdep d* pre: low", True),
    ("install demo /bin/false\nsoftdep demo pre: nowhere", False),
    ("install demo /bin/false\nsoftdep demo pre: nowhere low", True),
    ("install demo /bin/false\nsoftdep demo pre: nowhere\nsoftdep demo pre: low", False),
    ("install demo /bin/false\nsoftdep plain pre: demo", False),
    ("softdep demo pre: low", False),
])  # fmt: skip
def test_modprobe_says_the_same_of_an_install_line(root: Path, conf: str, ignored: bool) -> None:
    """Without such a line there is nothing to ignore."""
    (root / "etc/modprobe.d/x.conf").write_text(conf + "\n")
    subprocess.run(["depmod", "-b", root, KERNEL], check=True, capture_output=True)
    asked = ["modprobe", "-C", f"{root}/etc/modprobe.d", "-d", f"{root}", "-S", KERNEL, "--show-depends", "demo"]
    said = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.splitlines()
    rules, tables = modprobe_conf.rules(root), Tables(root, root / "usr/lib/modules" / KERNEL)
    assert ignores_install(root, tables, rules, "demo") is ignored
    assert any("install /bin/false" in line for line in said) is ("install" in conf and not ignored), said
