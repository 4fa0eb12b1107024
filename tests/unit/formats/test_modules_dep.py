# SPDX-License-Identifier: GPL-2.0-or-later
"""depmod's tables: the line of a module is found whatever its file is called, and only that line."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import kerneltree
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knetstatd.formats import modules_dep

if TYPE_CHECKING:
    from pathlib import Path

LINES = (
    "kernel/net/nf-nat.ko.xz: kernel/net/nf_conntrack.ko.xz updates/dkms/my_lib.ko",
    "kernel/net/nf_conntrack.ko.xz:",
    "kernel/net/xnf_nat2.ko:",
    "updates/dkms/demo.ko: kernel/net/nf-nat.ko.xz updates/dkms/my_lib.ko.zst /opt/far.ko",
    "top.ko.gz:",
    "/opt/drivers/far-away.ko:",
    "kernel/x/odd.ko.old: kernel/x/demo.ko",
)


@pytest.fixture
def tables(tmp_path: Path) -> modules_dep.Tables:
    kerneltree.tables(tmp_path, *LINES)
    return modules_dep.Tables(tmp_path, tmp_path)


def test_lines_are_found_by_name(tables: modules_dep.Tables, tmp_path: Path) -> None:
    for name in ("nf-nat", "nf_nat"):
        assert tables.entry(name) == (LINES[0].partition(":")[0].encode(), tmp_path / "kernel/net/nf-nat.ko.xz", (
            tmp_path / "updates/dkms/my_lib.ko",
        ), (tmp_path / "updates/dkms/my_lib.ko", tmp_path / "kernel/net/nf_conntrack.ko.xz"))  # fmt: skip
    demo = tables.entry("demo")
    assert demo
    assert demo.added == (tmp_path / "updates/dkms/my_lib.ko.zst", tmp_path / "opt/far.ko")
    assert demo.needed[0] == demo.added[-1], "modprobe begins with the last one"
    assert set(demo.added) <= set(demo.needed)
    assert tables.has("top")
    far = tables.entry("far_away")
    assert far
    assert far.file == tmp_path / "opt/drivers/far-away.ko"


@pytest.mark.parametrize("name", ["nat", "nf", "odd", "my_lib", "far", "demo.ko", "", "nf_nat2", "updates"])
def test_other_names_are_not(tables: modules_dep.Tables, name: str) -> None:
    assert tables.entry(name) is None
    assert not tables.has(name)


def test_last_line_without_its_end(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_bytes(b"updates/a.ko: updates/b.ko")
    entry = modules_dep.Tables(tmp_path, tmp_path).entry("a")
    assert entry
    assert entry.added == (tmp_path / "updates/b.ko",)


def test_symlinks_stay_inside_the_root(tmp_path: Path) -> None:
    tree = kerneltree.make(tmp_path)
    other = kerneltree.make(tmp_path, "5.10.0-1-amd64")
    target = kerneltree.add(other, "extra/demo.ko", b"x")
    kerneltree.add(tree, "weak-updates/demo.ko", b"")
    (tree / "weak-updates/demo.ko").unlink()
    (tree / "weak-updates/demo.ko").symlink_to("/lib/modules/5.10.0-1-amd64/extra/demo.ko")
    entry = modules_dep.Tables(tmp_path, tree).entry("demo")
    assert entry
    assert entry.file == target


def test_of_two_lines_the_first_counts(tmp_path: Path) -> None:
    kerneltree.tables(tmp_path, "updates/demo.ko:", "kernel/demo.ko: kernel/x.ko", "kernel/a:b/x.ko:", "updates/.ko:")
    tables = modules_dep.Tables(tmp_path, tmp_path)
    demo = tables.entry("demo")
    assert demo
    assert demo.listed == b"updates/demo.ko"
    assert [name for name in ("x", "", "updates/demo", "b/x") if tables.has(name)] == [], "a name has no / and no :"


def test_index(tables: modules_dep.Tables, tmp_path: Path) -> None:
    entry = tables.entry("demo")
    assert entry
    assert tables.is_indexed(entry)
    index = tmp_path / "modules.dep.bin"
    line = b"updates/dkms/demo.ko: kernel/net/nf-nat.ko.xz"
    for before in (0, 200000):
        index.write_bytes(bytes(before) + line + bytes(200000))
        assert modules_dep.Tables(tmp_path, tmp_path).is_indexed(entry)
    index.write_bytes(bytes(200000) + line[:20] + b"\0" + line[20:])
    assert not modules_dep.Tables(tmp_path, tmp_path).is_indexed(entry)
    index.unlink()
    assert not modules_dep.Tables(tmp_path, tmp_path).is_indexed(entry)
    assert tables.is_indexed(entry), "one reading of the tables agrees with itself"


def test_no_tables(tmp_path: Path) -> None:
    tables = modules_dep.Tables(tmp_path, tmp_path)
    assert not tables.depmod_ran
    assert tables.entry("demo") is None
    assert tables.in_tree(100) == []
    (tmp_path / "modules.order").write_text("kernel/a.ko\nkernel/b-c.ko\n")
    assert modules_dep.Tables(tmp_path, tmp_path).in_tree(100) == ["kernel/a.ko", "kernel/b-c.ko"]


def test_in_tree(tables: modules_dep.Tables) -> None:
    expected = ["kernel/net/nf-nat.ko.xz", "kernel/net/nf_conntrack.ko.xz", "kernel/net/xnf_nat2.ko", "kernel/x/odd.ko.old"]
    assert tables.in_tree(100) == tables.in_tree(3) == expected
    assert tables.in_tree(2) == expected[::2]


def test_added_files(tmp_path: Path) -> None:
    tree = kerneltree.make(tmp_path)
    wanted = [tree / "updates/dkms/my-demo.ko.xz", tree / "extra/my_demo.ko", tree / "my_demo.ko.zst"]
    for path in (*wanted, tree / "kernel/my_demo.ko", tree / "extra/my_demo.ko.bak", tree / "extra/not_my_demo.ko"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    tables = modules_dep.Tables(tmp_path, tree)
    assert sorted(tables.added("my-demo")) == sorted(wanted)
    assert tables.added("demo") == []
    assert modules_dep.Tables(tmp_path, tree / "absent").added("my-demo") == []


@given(st.binary(max_size=200), st.text(max_size=8))
def test_any_bytes(tmp_path: Path, data: bytes, name: str) -> None:
    (tmp_path / "modules.dep").write_bytes(data + b"/" + name.encode("utf-8", "replace") + b".ko")
    tables = modules_dep.Tables(tmp_path, tmp_path)
    tables.in_tree(100)
    tables.entry(name.encode("utf-8", "replace").decode())


def test_where_the_lines_lead(tmp_path: Path) -> None:
    """A link in the directory, or the file itself one; absolute or not, each below the root."""
    tree = tmp_path / "tree"
    (tree / "real").mkdir(parents=True)
    (tree / "updates").symlink_to("real")
    (tmp_path / "other").mkdir()
    (tree / "real/linked.ko").symlink_to("/other/it.ko")
    lines = ("updates/plain.ko: updates/linked.ko", "/top.ko: top.ko", "/tree/updates/linked.ko: /tree/../top.ko")
    (tree / "modules.dep").write_text("".join(f"{line}\n" for line in lines))
    tables = modules_dep.Tables(tmp_path, tree)
    plain, top, linked = (tables.entry(name) for name in ("plain", "top", "linked"))
    assert plain is not None
    assert (plain.file, plain.needed) == (tree / "real/plain.ko", (tmp_path / "other/it.ko",))
    assert top is not None
    assert (top.file, top.needed) == (tmp_path / "top.ko", (tree / "top.ko",))
    assert linked is not None
    assert (linked.file, linked.needed) == (tmp_path / "other/it.ko", (tmp_path / "top.ko",))


def test_what_the_kernel_has_inside(tmp_path: Path) -> None:
    assert not modules_dep.Tables(tmp_path, tmp_path).builtin("crc32c")
    (tmp_path / "modules.builtin").write_text("kernel/lib/libcrc32c.ko\nkernel/crypto/crc32c-generic.ko\n")
    tables = modules_dep.Tables(tmp_path, tmp_path)
    assert [tables.builtin(name) for name in ("libcrc32c", "crc32c_generic", "crc32c", "generic")] == [True, True, False, False]


def test_hostile_tables_end_quickly(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_bytes(b"xdemo.ko" * 200_000 + b"\nupdates/demo.ko:\n")
    start = time.process_time()
    entry = modules_dep.Tables(tmp_path, tmp_path).entry("demo")
    assert time.process_time() - start < 2
    assert entry is not None
    assert entry.listed == b"updates/demo.ko"
