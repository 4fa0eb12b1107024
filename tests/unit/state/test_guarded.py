# SPDX-License-Identifier: GPL-2.0-or-later
"""A guarded package that leaves dkms's tree stays guarded, until it is gone for good."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from knetstatd.core import config
from knetstatd.core.model import Source
from knetstatd.state import guarded
from knetstatd.verdict.observe import Machine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[[dict[str, str]], Path]

CONF = 'PACKAGE_NAME="{0}"\nPACKAGE_VERSION="{1}"\nBUILT_MODULE_NAME[0]="{0}"\nDEST_MODULE_LOCATION[0]="/updates"\n'
MORE = "Version: 1\nArchitecture: all\nMaintainer: x <x@x.x>\nDescription: x\n"
STATUS = f"Package: m-dkms\nStatus: {{}}\n{MORE}\nPackage: x\nStatus: install ok installed\n{MORE}"


def machine(root: Path, *modules: str) -> Machine:
    made = Machine(root, config.Config(modules=modules or ("*",)))
    made.refresh()
    return made


def remember(root: Path, *modules: str) -> None:
    looked = machine(root, *modules)
    kept = looked.guarded()
    assert kept is not None
    guarded.save(looked.places, kept)


def test_a_source_that_dkms_does_not_know_is_guarded(tree: Make) -> None:
    root = tree({
        "usr/src/m-1.0/dkms.conf": CONF.format("m", "1.0"), "usr/src/m-1.10/dkms.conf": CONF.format("m", "1.10"),
        "usr/src/m-1.9/dkms.conf": CONF.format("m", "1.9"),
        "usr/src/known-1/dkms.conf": CONF.format("known", "1"), "var/lib/dkms/known/1/source": "-> /usr/src/known-1",
        "usr/src/known-2/dkms.conf": CONF.format("known", "2"),
        "usr/src/upstream/dkms.conf": CONF.format("upstream", "3"),
        "usr/src/template-1/dkms.conf": CONF.format("template", "#MODULE_VERSION#"),
        "usr/src/shell-1/dkms.conf": 'PACKAGE_NAME="$(echo shell)"\nPACKAGE_VERSION="1"\n',
        "usr/src/linux-headers-6.1.0-9/Makefile": "",
    })  # fmt: skip
    looked = machine(root)
    assert looked.packages() == ("known", "m")
    assert looked.missing.explain("m") == (
        "1.10", f"m is not registered with DKMS, and its source is in {root}/usr/src/m-1.10", "dkms add m/1.10"
    )  # fmt: skip
    assert machine(root, "known").packages() == ("known",)


def test_what_no_package_registers_any_more_is_named(tree: Make) -> None:
    """With that file Debian's postinst does not even `dkms add` what a -dkms package brings."""
    root = tree({"usr/src/zfs-2.1.11/dkms.conf": CONF.format("zfs", "2.1.11"), "etc/dkms/no-autoinstall": ""})
    looked = machine(root)
    version, reason, fix = looked.missing.explain("zfs")
    assert (looked.packages(), version, fix) == (("zfs",), "2.1.11", "dkms add zfs/2.1.11")
    assert reason.endswith("; while /etc/dkms/no-autoinstall is there, no -dkms package registers its own")


def test_what_is_named_in_the_configuration_is_explained_too(tree: Make) -> None:
    looked = machine(tree({"usr/src/m-1/dkms.conf": CONF.format("m", "1")}), "m", "other")
    seen = looked.observe(looked.look("6.1.0-9-amd64"), "m")
    assert (seen.observation.source, seen.observation.version, seen.source_fix) == (Source.MISSING, "1", "dkms add m/1")
    version, reason, fix = looked.missing.explain("other")
    assert (version, reason) == ("", "other is not registered with DKMS")
    assert fix.startswith("Install its -dkms package")


@pytest.mark.spawns
@pytest.mark.parametrize(
    ("status", "stays"),
    [
        ("install ok installed", True), ("install ok half-configured", True), ("deinstall ok config-files", False),
        ("purge ok not-installed", False),
    ],
)  # fmt: skip
def test_with_its_source_gone_dpkg_says_whether_it_was_removed(tree: Make, status: str, stays: bool) -> None:
    there = {"var/lib/dpkg/status": STATUS.format("install ok installed"), "var/lib/dpkg/info/x.list": "/usr/bin/x\n"}
    root = tree({
        **there, "usr/src/m-1/dkms.conf": CONF.format("m", "1"), "var/lib/dkms/m/1/source": "-> /usr/src/m-1",
        "var/lib/dpkg/info/m-dkms.list": "/.\n/usr\n/usr/src\n/usr/src/m-1\n/usr/src/m-1/dkms.conf\n",
    })  # fmt: skip
    remember(root)
    for path in ("usr/src/m-1/dkms.conf", "var/lib/dkms/m/1/source"):
        (root / path).unlink()
    (root / "var/lib/dpkg/status").write_text(STATUS.format(status))
    looked = machine(root)
    assert looked.packages() == (("m",) if stays else ())
    kept = looked.guarded()
    assert kept is not None
    assert {name: one[:3] for name, one in kept.items()} == ({"m": ("1", False, "m-dkms")} if stays else {})
    if stays:
        reason = "m is not registered with DKMS, and its source is gone; the package m-dkms is installed"
        assert looked.missing.explain("m") == ("1", reason, "apt-get install --reinstall m-dkms")


@pytest.mark.spawns
def test_whose_a_source_is_is_asked_once_for_each_version(tree: Make) -> None:
    root = tree({
        "var/lib/dpkg/status": STATUS.format("install ok installed"), "var/lib/dpkg/info/x.list": "/usr/bin/x\n",
    })  # fmt: skip
    for version, brought, owner in (("1", "m-1", "m-dkms"), ("1", "x", "m-dkms"), ("2", "x", ""), ("2", "m-2", "")):
        listed = f"/.\n/usr\n/usr/src\n/usr/src/{brought}\n/usr/src/{brought}/dkms.conf\n"
        tree({f"usr/src/m-{version}/dkms.conf": CONF.format("m", version), "var/lib/dpkg/info/m-dkms.list": listed})
        source = root / f"var/lib/dkms/m/{version}/source"
        if not source.is_symlink():
            tree({os.fspath(source.relative_to(root)): f"-> /usr/src/m-{version}"})
        remember(root)
        assert guarded.load(machine(root).places)["m"].owner == owner


@pytest.mark.spawns
def test_lists_of_dpkg_that_cannot_be_read_name_nobody(tree: Make) -> None:
    root = tree({"usr/src/m-1/dkms.conf": CONF.format("m", "1"), "var/lib/dpkg/status": "no list\n"})
    remember(root)
    assert guarded.load(machine(root).places)["m"].owner == ""


@pytest.mark.spawns
def test_a_source_that_no_package_brought_and_that_is_gone_is_forgotten(tree: Make) -> None:
    root = tree({"usr/src/m-1/dkms.conf": CONF.format("m", "1"), "var/lib/dpkg/status": ""})
    remember(root)
    assert guarded.load(machine(root).places) == {"m": guarded.Guarded("1", False, "")}
    (root / "usr/src/m-1/dkms.conf").unlink()
    assert machine(root).packages() == ()


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", '{"schema": 2, "packages": []}', '{"schema": 1}', '{"schema": 1, "packages": {}}',
        '{"schema": 1, "packages": [{"name": "../x", "version": "1", "registered": true, "owner": ""}]}',
        '{"schema": 1, "packages": [{"name": "x", "version": 1, "registered": true, "owner": ""}]}',
        '{"schema": 1, "packages": ' + "[" * 100000,
    ],
)  # fmt: skip
def test_a_damaged_file_remembers_nothing(tree: Make, text: str) -> None:
    root = tree({"var/lib/knetstatd/guard/packages.json": text, "var/lib/dpkg/status": STATUS})
    assert guarded.load(machine(root).places) == {}
