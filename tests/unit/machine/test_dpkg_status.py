# SPDX-License-Identifier: GPL-2.0-or-later
"""dpkg's files: what was left half-way, and whose a file is. That real dpkg writes them so is shown in the containers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

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


def test_owners(tree: Make) -> None:
    root = tree({
        "var/lib/dpkg/info/a.list": "/.\n/usr\n/usr/lib/modules/6.1/vmlinuz\n",
        "var/lib/dpkg/info/b:amd64.list": "/lib/modules/6.1/kernel/x.ko\n/usr/bin/tool\n",
        "var/lib/dpkg/info/b.md5sums": "",
    })  # fmt: skip
    asked = ["/lib/modules/6.1/vmlinuz", "/usr/lib/modules/6.1/kernel/x.ko", "/usr/bin/tool", "/lib/modules/6.1/updates/x.ko"]
    assert dpkg_status.owners(root, asked) == {asked[0]: "a", asked[1]: "b", asked[2]: "b"}
    assert dpkg_status.owners(root, []) == {}


def test_a_list_that_cannot_be_read_is_no_answer(tree: Make) -> None:
    root = tree({"var/lib/dpkg/info/a.list/": ""})
    with pytest.raises(KnetstatdError, match=r"a\.list"):
        dpkg_status.owners(root, ["/lib/modules/6.1/x"])
    assert os.path.isdir(root)
