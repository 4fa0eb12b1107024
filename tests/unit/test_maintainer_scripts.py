# SPDX-License-Identifier: GPL-2.0-or-later
"""knetstat-dkms's maintainer scripts, with a dkms that is one file: where they look for what dkms has registered.

tests/container/test_packages.py runs them with the real dkms.
"""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest
from sources import PACKAGE

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.spawns

DKMS = '#!/bin/sh\necho "$*" >>"{0}/ran"\ncase $1 in status) cat "{0}/status" ;; *) exit 1 ;; esac\n'


def run(root: Path, name: str, *words: str) -> list[str]:
    """Runs a script of version 1.0, its paths below `root`. Returns how it called dkms."""
    text = (PACKAGE.parent / f"debian/knetstat-dkms.{name}").read_text().replace("#MODULE_VERSION#", "1.0")
    text = re.sub(r"/(?=(?:etc/dkms|var/lib/dkms|lib/modules|usr/src|run/knetstatd-build)\b)", f"{root}/", text)
    (root / "dkms").write_text(DKMS.format(root))
    (root / "dkms").chmod(0o755)
    (root / "script").write_text(text)
    (root / "ran").write_text("")
    subprocess.run(["sh", root / "script", *words], check=True, env={"PATH": f"{root}:/usr/bin:/bin"})
    return (root / "ran").read_text().splitlines()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc/dkms").mkdir(parents=True)
    (tmp_path / "status").write_text("")
    return tmp_path


def test_what_is_registered_is_what_dkms_says(root: Path) -> None:
    (root / "status").write_text("knetstat/1.0: added\n")
    assert run(root, "postinst", "configure") == ["status knetstat/1.0"]
    (root / "status").write_text("")
    with pytest.raises(subprocess.CalledProcessError):  # this dkms registers nothing
        run(root, "postinst", "configure")
    assert (root / "ran").read_text() == "status knetstat/1.0\nadd knetstat/1.0\n"
    (root / "status").write_text("knetstat/1.0: added\n")
    assert run(root, "postinst", "abort-upgrade") == ["status knetstat/1.0"], "prerm may have taken it out"


def test_an_upgrade_keeps_what_kernels_have(root: Path) -> None:
    """And nothing else: not an older version that no kernel has any more, nor this one if none has it."""
    tree, source = root / "var/lib/dkms/knetstat", root / "usr/src/knetstat-1.0"
    source.mkdir(parents=True)
    (source / "dkms.conf").write_text("this one\n")
    for version, copy in (("0.8", "kept-source"), ("0.9", "kept-source"), ("0.7", "theirs"), ("1.0", "")):
        (tree / version / copy).mkdir(parents=True)
    (tree / "1.0/source").symlink_to(source)
    (tree / "kernel-A-x86_64").symlink_to("1.0/A/x86_64")
    (tree / "kernel-B-x86_64").symlink_to("0.8/B/x86_64")
    assert run(root, "prerm", "failed-upgrade", "0.9") == []
    for _ in range(2):  # the upgrade did not take place, and comes again
        run(root, "prerm", "upgrade", "1.1")
        assert sorted(path.name for path in tree.iterdir()) == ["0.7", "0.8", "1.0", "kernel-A-x86_64", "kernel-B-x86_64"]
        assert (tree / "1.0/source").readlink().name == "kept-source"
        assert (tree / "1.0/source/dkms.conf").read_text() == "this one\n"
    (tree / "kernel-A-x86_64").unlink()
    assert run(root, "prerm", "upgrade", "1.1") == ["remove knetstat/1.0 --all"]
    assert (tree / "0.8").exists()
    assert run(root, "prerm", "upgrade", "0.9") == ["remove knetstat/0.8 --all"], "DKMS builds the newest version"
    assert sorted(path.name for path in tree.iterdir()) == ["0.7"], "somebody else's"


@pytest.mark.parametrize(
    ("settings", "tree"),
    [
        ({}, "var/lib/dkms"),
        ({"framework.conf": 'dkms_tree="{}/srv/my dkms"\n'}, "srv/my dkms"),
        (
            {"framework.conf": "# dkms_tree=/x\n", "framework.conf.d/x.conf": "a=(1 2); dkms_tree={}/srv/dkms; echo no\n"},
            "srv/dkms",
        ),
        ({"framework.conf": "exit 1\n"}, "var/lib/dkms"),
    ],
)
def test_it_leaves_the_tree_wherever_that_is(root: Path, settings: dict[str, str], tree: str) -> None:
    """Also if dkms itself does not get it out."""
    for name, text in settings.items():
        (root / "etc/dkms" / name).parent.mkdir(exist_ok=True)
        (root / "etc/dkms" / name).write_text(text.format(root))
    entry = root / tree / "knetstat/1.0"
    entry.mkdir(parents=True)
    other = root / tree / "other/1.0"
    other.mkdir(parents=True)
    assert run(root, "prerm", "upgrade", "1.0-2") == []
    assert entry.exists()
    assert run(root, "prerm", "remove") == ["remove knetstat/1.0 --all"]
    assert not entry.parent.exists()
    assert other.exists()
    assert run(root, "prerm", "remove") == []
