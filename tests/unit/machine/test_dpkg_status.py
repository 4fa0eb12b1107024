# SPDX-License-Identifier: GPL-2.0-or-later
"""dpkg's files: what was left half-way, and whose a file is. That real dpkg writes them so is shown in the containers."""

from __future__ import annotations

import gzip
import lzma
import os
import subprocess
import time
from typing import TYPE_CHECKING

import kerneltree
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knetstatd.core.errors import KnetstatdError
from knetstatd.machine import dpkg_status

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[[dict[str, str]], Path]

K = "6.1.0-9-cloud-amd64"


def stanza(name: str, state: str, more: str = "") -> str:
    return f"Package: {name}\nStatus: install ok {state}\nPriority: optional\n{more}Description: x\n y\n"


STATUS = "\n".join([
    stanza("bash", "installed"),
    stanza(f"linux-image-{K}", "half-configured", "Depends: kmod, linux-base (>= 4.3~)\n"),
    stanza(f"linux-headers-{K}", "unpacked"),
    stanza("linux-image-cloud-amd64", "unpacked", f"Depends: linux-image-{K} (= 6.1.1-1)\n"),
    stanza("linux-image-all", "unpacked", "Depends: linux-image-cloud-amd64 | other\n"),
    stanza("vim", "unpacked", "Depends: libc6\n"),
    stanza("emacs", "half-installed"),
    stanza("../evil name", "unpacked"),
])  # fmt: skip


def test_what_is_unfinished(tree: Make) -> None:
    root = tree({"var/lib/dpkg/status": STATUS})
    found = {p.name: p for p in dpkg_status.unfinished(root)}
    mine = [f"linux-headers-{K}", f"linux-image-{K}", "linux-image-all", "linux-image-cloud-amd64"]
    assert list(found) == ["emacs", *mine, "vim"]
    image, headers = found[f"linux-image-{K}"], found[f"linux-headers-{K}"]
    assert (image.state, image.kernel, image.boots) == ("half-configured", K, True)
    assert (headers.state, headers.kernel, headers.boots) == ("unpacked", K, False)
    assert found["vim"].kernel == ""
    assert [p.name for p in dpkg_status.of_kernel(dpkg_status.unfinished(root), K)] == mine
    assert dpkg_status.of_kernel(dpkg_status.unfinished(root), "6.1.0-8-cloud-amd64") == ()


def test_a_kernel_in_parts(tree: Make) -> None:
    status = stanza(f"linux-binary-{K}", "half-configured") + "\n" + stanza(f"linux-base-{K}", "unpacked")
    root = tree({"var/lib/dpkg/status": status})
    assert [(p.kernel, p.boots) for p in dpkg_status.unfinished(root)] == [(K, True), (K, True)]


@pytest.mark.parametrize(("name", "kernel", "boots"), [
    (f"linux-image-{K}-unsigned", K, True), (f"linux-image-unsigned-{K}", K, True), (f"linux-image-{K}-dbg", f"{K}-dbg", True),
    ("proxmox-kernel-6.8.12-4-pve-signed", "6.8.12-4-pve", True), ("proxmox-kernel-6.8.12-4-pve", "6.8.12-4-pve", True),
    ("pve-kernel-5.15.158-2-pve", "5.15.158-2-pve", True), ("proxmox-headers-6.8.12-4-pve", "6.8.12-4-pve", False),
    ("pve-headers-5.15.158-2-pve", "5.15.158-2-pve", False), ("proxmox-kernel-helper", "", True),
    ("linux-modules-extra-6.8.0-40-generic", "6.8.0-40-generic", True),
])  # fmt: skip
def test_the_kernel_in_a_name(tree: Make, name: str, kernel: str, boots: bool) -> None:
    """Debian's package without a signature, and Proxmox's, have the kernel in other places of their names."""
    [package] = dpkg_status.unfinished(tree({"var/lib/dpkg/status": stanza(name, "half-configured")}))
    assert package.kernel == kernel
    assert package.boots is boots


def test_the_journal_of_dpkg_counts_after_the_status(tree: Make) -> None:
    root = tree({
        "var/lib/dpkg/status": STATUS,
        "var/lib/dpkg/updates/0001": stanza("vim", "half-configured") + "\n#padding",
        "var/lib/dpkg/updates/0002": stanza(f"linux-image-{K}", "installed") + "\n" + stanza("emacs", "installed"),
        "var/lib/dpkg/updates/tmp.i": stanza("nano", "unpacked"),
    })  # fmt: skip
    found = {p.name: p.state for p in dpkg_status.unfinished(root)}
    assert found["vim"] == "half-configured"
    assert not {f"linux-image-{K}", "emacs", "nano"} & set(found)


def test_a_package_is_removed_if_dpkg_says_so_or_does_not_know_it(tree: Make) -> None:
    states = ("installed", "half-configured", "config-files", "not-installed")
    root = tree({"var/lib/dpkg/status": "\n".join(stanza(state, state) for state in states)})
    assert [dpkg_status.is_removed(root, state) for state in states] == [False, False, True, True]
    assert dpkg_status.is_removed(root, "unknown")
    assert dpkg_status.is_removed(root, "install.d"), "a name is no pattern"
    (root / "var/lib/dpkg/status").unlink()
    assert not dpkg_status.is_removed(root, "installed"), "what cannot be read is no answer"


def test_no_dpkg(tree: Make) -> None:
    root = tree({"etc/os-release": ""})
    assert dpkg_status.unfinished(root) == ()
    assert not dpkg_status.has_dpkg(root)
    assert dpkg_status.has_dpkg(tree({"var/lib/dpkg/status": "", "var/lib/dpkg/info/bash.list": ""}))


@given(st.text(max_size=400))
def test_any_status_is_read(text: str) -> None:
    for block in (text, f"Package: {text}\nStatus: a b unpacked\n"):
        for found in (dpkg_status._package(block, "unpacked"),):
            assert found is None or found.name.isascii()


def package(name: str, *paths: str) -> dict[str, str]:
    """What dpkg keeps of an installed package."""
    return {f"var/lib/dpkg/info/{name}.list": "".join(f"{path}\n" for path in ("/.", *paths))}


def database(*installed: str) -> dict[str, str]:
    return {"var/lib/dpkg/status": "\n".join(
        f"Package: {name}\nStatus: install ok installed\nMaintainer: m\nArchitecture: all\nVersion: 1\nDescription: d\n"
        for name in installed
    )}  # fmt: skip


@pytest.mark.spawns
class TestOwners:
    def test_each_path_has_one(self, tree: Make) -> None:
        root = tree(database("a", "b") | package("a", "/usr", "/usr/lib/modules/6.1/vmlinuz")
                    | package("b", "/usr", "/lib/modules/6.1/kernel/x.ko", "/usr/bin/tool"))  # fmt: skip
        asked = ["/lib/modules/6.1/vmlinuz", "/usr/lib/modules/6.1/kernel/x.ko", "/usr/bin/tool", "/lib/modules/6.1/up/x.ko"]
        assert dpkg_status.owners(root, asked) == {asked[0]: "a", asked[1]: "b", asked[2]: "b"}
        assert dpkg_status.owners(root, ["/usr"])["/usr"] in ("a", "b")
        assert dpkg_status.owners(root, []) == {}

    def test_a_name_is_no_pattern(self, tree: Make) -> None:
        odd = ["/x/a*", "/x/[b]", "/x/c?", "/x/back\\slash", "/x/co: lon", "/x/\udcff"]
        plain = ["/x/ab", "/x/b", "/x/cd", "/x/back", "/x/co", "/x/y"]
        root = tree(database("odd", "plain") | package("plain", *plain))
        (root / "var/lib/dpkg/info/odd.list").write_bytes(b"/.\n" + b"".join(os.fsencode(path) + b"\n" for path in odd))
        assert dpkg_status.owners(root, odd) == dict.fromkeys(odd, "odd")
        assert dpkg_status.owners(root, plain) == dict.fromkeys(plain, "plain")
        assert dpkg_status.owners(root, ["/x/*", "-x", "/x/line\nbreak", "x/ab"]) == {}

    def test_thousands_of_paths(self, tree: Make) -> None:
        """More than a command line has room for; half of them are nobody's, and say so on standard error."""
        paths = [f"/lib/modules/6.1/{'x' * 150}/{number}.ko" for number in range(10_000)]
        root = tree(database("a") | package("a", *paths[::2]))
        assert dpkg_status.owners(root, paths) == dict.fromkeys(paths[::2], "a")

    def test_a_diversion_has_an_owner(self, tree: Make) -> None:
        diverted = {"var/lib/dpkg/diversions": "/x/y\n/x/y.real\nb\n/x/z\n/x/q\n:\n"}
        root = tree(database("a", "b") | package("a", "/x/y") | package("b") | diverted)
        assert dpkg_status.owners(root, ["/x/y.real"]) == {"/x/y.real": "b"}
        assert dpkg_status.owners(root, ["/x/y"])["/x/y"] in ("a", "b")
        assert dpkg_status.owners(root, ["/x/q"]) == {"/x/q": "local"}, "the administrator's own: it is not nobody's"

    @pytest.mark.parametrize("damage", [{}, {"var/lib/dpkg/info/a.list/": ""}, {"var/lib/dpkg/status": "nonsense"}])
    def test_what_cannot_be_read_is_no_answer(self, tree: Make, damage: dict[str, str]) -> None:
        root = tree(database("a", "b") | package("b", "/x") | damage)
        with pytest.raises(KnetstatdError, match="dpkg-query: does not tell whose files are whose"):
            dpkg_status.owners(root, ["/x"])


@pytest.mark.parametrize(
    "text",
    [
        "Package: a\n" + "Status: install ok half-configured\n" * 30_000,
        stanza("a", "half-configured", f"Depends: {'b' * 100_000}=\n"),
    ],
    ids=range(2),
)
def test_a_hostile_status_ends_quickly(tree: Make, text: str) -> None:
    start = time.process_time()
    assert [package.name for package in dpkg_status.unfinished(tree({"var/lib/dpkg/status": text}))] == ["a"]
    assert time.process_time() - start < 2


class TestOffered:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        kerneltree.offer(tmp_path, "a", "b", "c++")
        return tmp_path

    @pytest.mark.spawns
    def test_by_the_lists(self, root: Path) -> None:
        place = root / kerneltree.LIST
        assert dpkg_status.offered(root, ["a", "c++", "c", "b\nPackage: x", "", "x\0"]) == frozenset({"a", "c++"})
        place.with_name("file_x_InRelease").write_text("Package: c\n")
        for name, pack in (("other_Packages.gz", gzip.compress), ("third_Packages.xz", lzma.compress)):
            place.with_name(name).write_bytes(pack(f"Package: {name[0]}\n".encode()))
        assert dpkg_status.offered(root, ["a", "c", "o", "t"]) == frozenset({"a", "o", "t"})

    @pytest.mark.spawns
    def test_a_list_that_cannot_be_read_says_nothing(self, root: Path) -> None:
        (root / kerneltree.LIST).with_name("x_Packages.xz").write_text("torn")
        assert dpkg_status.offered(root, ["a"]) is None

    @pytest.mark.spawns
    def test_the_list_of_a_directory_is_a_link_in_that_root(self, root: Path) -> None:
        (root / "srv").mkdir()
        (root / "srv/Packages").write_text("Package: ours\n")
        (root / kerneltree.LIST).with_name("_srv_._Packages").symlink_to("/srv/./Packages")
        assert dpkg_status.offered(root, ["ours", "a"]) == frozenset({"ours", "a"})

    def test_no_lists(self, tmp_path: Path) -> None:
        assert dpkg_status.offered(tmp_path, ["a"]) is None

    @pytest.mark.spawns
    def test_the_same_lists_are_read_once(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert dpkg_status.offered(root, ["a"]) == frozenset({"a"})
        monkeypatch.setattr(subprocess, "Popen", None)  # no program can be started
        assert dpkg_status.offered(root, ["a"]) == frozenset({"a"})
        monkeypatch.undo()
        kerneltree.offer(root, "b")
        assert dpkg_status.offered(root, ["a"]) == frozenset()
