# SPDX-License-Identifier: GPL-2.0-or-later
"""An initrd is read once; whatever happens to the file in which the answer is kept, the answer is the initrd's."""

from __future__ import annotations

import lzma
import os
import stat
from typing import TYPE_CHECKING

import elf
import pytest

from knetstatd.formats import initrd
from knetstatd.rehearsal.vm import CpioFile, cpio
from knetstatd.verify import initrd_digests

if TYPE_CHECKING:
    from pathlib import Path

    from knetstatd.formats.initrd import Inside

K = "6.1.0-1-amd64"
FILE = stat.S_IFREG | 0o644


def archive(build_id: str) -> bytes:
    """An initrd with a module of the kernel's own and an added one."""
    return cpio([
        CpioFile(f"usr/lib/modules/{K}/kernel/net/own.ko", FILE, elf.module("own", build_id="aa")),
        CpioFile(f"usr/lib/modules/{K}/updates/dkms/my-mod.ko", FILE, elf.module("my-mod", build_id=build_id)),
    ])  # fmt: skip


def mark(build_id: str) -> str:
    return initrd.mark(elf.module("my-mod", build_id=build_id))


def modules(path: Path, ours: Path | None, kinds: tuple[str, ...] = ("gzip",)) -> Inside:
    return initrd_digests.modules((path,), K, kinds, ours)


def test_it_is_read_once(tmp_path: Path) -> None:
    path, ours = tmp_path / "initrd", tmp_path / "state" / "initrd"
    path.write_bytes(archive("0102"))
    inside = modules(path, ours)
    assert inside.copies == {"my_mod": mark("0102")}
    assert inside.has_own("own")
    assert not inside.has_own("my_mod")
    kept = ours / f"{K}.json"
    kept.write_text(kept.read_text().replace(mark("0102"), mark("0304")))
    assert modules(path, ours).copies == {"my_mod": mark("0304")}, "it is what was kept"
    assert modules(path, ours).has_own("own")
    path.write_bytes(archive("0506") + bytes(4))
    assert modules(path, ours).copies == {"my_mod": mark("0506")}, "another initrd is read"
    assert mark("0506") in kept.read_text(), "and its answer is kept in the place of the other"
    before = kept.stat().st_mtime_ns
    assert modules(path, ours, ("xz",)).copies == {"my_mod": mark("0506")}
    assert kept.stat().st_mtime_ns != before, "by another kernel's configuration"


def test_all_of_the_answer_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "initrd"
    packed = lzma.compress(elf.module("packed", build_id="07"))
    path.write_bytes(cpio([CpioFile(f"lib/modules/{K}/updates/packed.ko.xz", FILE, packed), CpioFile("init", FILE, b"#!")]))
    first = modules(path, tmp_path / "ours")
    assert (first.init, list(first.refused)) == (True, ["packed"])
    assert modules(path, tmp_path / "ours") == first


def test_what_another_version_kept_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, ours = tmp_path / "initrd", tmp_path / "state"
    path.write_bytes(archive("0102"))
    modules(path, ours)
    kept = ours / f"{K}.json"
    kept.write_text(kept.read_text().replace(mark("0102"), mark("0304")))
    monkeypatch.setattr(initrd_digests, "__version__", "0.9")
    assert modules(path, ours).copies == {"my_mod": mark("0102")}


@pytest.mark.parametrize("damage", [
    "", "[]", "{}", '{"identity": 1, "modules": 2}', '{"modules": {}, "own": ""}', "null", "[" * 100_000, '{"identity": NaN}',
])  # fmt: skip
def test_a_damaged_answer_is_none(tmp_path: Path, damage: str) -> None:
    path, ours = tmp_path / "initrd", tmp_path / "state"
    path.write_bytes(archive("0102"))
    modules(path, ours)
    (ours / f"{K}.json").write_text(damage)
    assert modules(path, ours).copies == {"my_mod": mark("0102")}


@pytest.mark.parametrize(("key", "value"), [('"own": "', '"own": 5, "x": "'), ('"my_mod": "', '"my_mod": [1], "x": "')])
def test_a_wrong_value_in_the_right_identity_is_no_answer(tmp_path: Path, key: str, value: str) -> None:
    path, ours = tmp_path / "initrd", tmp_path / "state"
    path.write_bytes(archive("0102"))
    modules(path, ours)
    kept = ours / f"{K}.json"
    assert key in kept.read_text()
    kept.write_text(kept.read_text().replace(key, value))
    assert modules(path, ours).copies == {"my_mod": mark("0102")}


def test_without_a_place_to_keep_it(tmp_path: Path) -> None:
    path = tmp_path / "initrd"
    path.write_bytes(archive("0102"))
    assert modules(path, None).copies == {"my_mod": mark("0102")}
    assert os.listdir(tmp_path) == ["initrd"]
    assert modules(path, path).copies == {"my_mod": mark("0102")}, "a file is in the directory's place"
    with pytest.raises(FileNotFoundError):
        modules(tmp_path / "absent", tmp_path)
