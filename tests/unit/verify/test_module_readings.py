# SPDX-License-Identifier: GPL-2.0-or-later
"""Readings: a file is read once, and again if it, or our code, is another; what is kept says the same as the file."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
import random
import time
from typing import TYPE_CHECKING, Any

import elf
import pytest
from keys import Key

from knetstatd.core.errors import KnetstatdError, ModuleFileError
from knetstatd.formats import compression, module_file, relocations
from knetstatd.formats.module_file import Module
from knetstatd.system import documents
from knetstatd.verify import module_readings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SHA = {256: bytes.fromhex("608648016503040201"), 512: bytes.fromhex("608648016503040203")}
NOISE = random.Random(7).randbytes(module_readings.LARGE + 1000)  # so that a file is a large one
FULL: dict[str, Any] = {
    "undefined": ["printk"], "weak": ["maybe"], "crcs": {"module_layout": 0x11223344, "printk": 0}, "build_id": "00ff",
    "info": {"depends": "a,b", "alias": ["x"], "parmtype": ["debug:int"], "intree": "Y", "version": "\xe4"},
    "exports": {"fn": (7, "_gpl", "NS")},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _new_process() -> Iterator[None]:
    module_readings._known.clear()
    yield
    module_readings._known.clear()


@pytest.fixture
def unpackings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a file was unpacked."""
    count: list[int] = []
    pieces = compression.pieces

    def counted(read: Callable[[int], bytes], limit: int = compression.LIMIT) -> Iterator[bytes]:
        count.append(1)
        return pieces(read, limit)

    monkeypatch.setattr(compression, "pieces", counted)
    return count


def large(signature: bytes | None = None) -> bytes:
    data = elf.module("demo", **FULL, more=[elf.Sec(".noise", NOISE, 0)])
    return gzip.compress(elf.sign(data, signature) if signature is not None else data, 1, mtime=0)


def settle() -> None:
    time.sleep(module_readings._TICK)


def test_one_reading_is_all(tmp_path: Path, unpackings: list[int]) -> None:
    path = tmp_path / "demo.ko.gz"
    path.write_bytes(large(Key().signature(b"x")))
    reading = module_readings.read(path)
    plain = gzip.decompress(path.read_bytes())
    contents = module_file.unsigned(plain)
    unpackings.clear()
    assert reading.module == module_file.from_path(path, formed=True)
    assert reading.digest.file == hashlib.sha256(path.read_bytes()).hexdigest()
    assert reading.digest.contents == hashlib.sha256(contents).hexdigest()
    assert reading.contents_by("sha256") == hashlib.sha256(contents).digest()
    assert reading.contents_by("md5") is None
    unpackings.clear()
    assert module_readings.read(path) == reading
    assert unpackings == []


def test_the_digest_that_a_signature_names(tmp_path: Path) -> None:
    path = tmp_path / "demo.ko"
    plain = elf.module("demo", **FULL)
    path.write_bytes(elf.sign(plain, Key().signature(b"x").replace(SHA[256], SHA[512])))
    reading = module_readings.read(path)
    assert reading.contents_by("sha512") == hashlib.sha512(plain).digest()
    assert reading.contents_by("sha256") == hashlib.sha256(plain).digest()


def test_it_is_kept_for_other_commands(tmp_path: Path, unpackings: list[int]) -> None:
    path, kept = tmp_path / "demo.ko.gz", tmp_path / "kept"
    path.write_bytes(large(Key().signature(b"x")))
    reading = module_readings.read(path, [kept])
    assert (kept.stat().st_mode & 0o777, len(list(kept.iterdir())), unpackings) == (0o755, 1, [1])
    module_readings._known.clear()
    assert module_readings.read(path, [kept]) == reading
    assert unpackings == [1]
    module_readings._known.clear()
    assert module_readings.read(path, [tmp_path / "none", kept]) == reading
    assert unpackings == [1], "whoever has kept it"


def test_every_field_of_a_module_is_kept() -> None:
    assert set(module_readings._FIELDS) == set(Module._fields)


def test_another_file_is_read_anew(tmp_path: Path, unpackings: list[int]) -> None:
    path, kept = tmp_path / "demo.ko.gz", [tmp_path / "kept"]
    path.write_bytes(large())
    first = module_readings.read(path, kept)

    def replace() -> None:
        path.rename(tmp_path / "was")
        path.write_bytes(large())

    changes: list[Callable[[], object]] = [
        lambda: os.utime(path, (0, 0)),  # ctime tells
        lambda: path.write_bytes(large(b"another")),
        replace,
    ]
    for change in changes:
        settle()
        unpackings.clear()
        change()
        module_readings._known.clear()
        again = module_readings.read(path, kept)
        assert unpackings == [1]
        assert (again.digest == first.digest) == (path.read_bytes() == large())


def test_a_copy_is_compared_and_not_unpacked(tmp_path: Path, unpackings: list[int]) -> None:
    (tmp_path / "dkms").mkdir()
    path, copy = tmp_path / "demo.ko.gz", tmp_path / "dkms/demo.ko.gz"
    for one in (path, copy):
        one.write_bytes(large())
    assert module_readings.read(path) is module_readings.read(copy)
    assert unpackings == [1]
    settle()
    copy.write_bytes(large()[:-1] + b"\1")  # as long, and damaged
    with pytest.raises(ModuleFileError):
        module_readings.read(copy)
    assert unpackings == [1, 1]


def test_a_copy_whose_times_were_set_back_is_compared_again(tmp_path: Path) -> None:
    (tmp_path / "dkms").mkdir()
    path, copy = tmp_path / "demo.ko.gz", tmp_path / "dkms/demo.ko.gz"
    for one in (path, copy):
        one.write_bytes(large())
    assert module_readings.read(path) is module_readings.read(copy)
    was = copy.stat()
    settle()
    copy.write_bytes(large()[:-1] + b"\1")
    os.utime(copy, ns=(was.st_atime_ns, was.st_mtime_ns))
    with pytest.raises(ModuleFileError):
        module_readings.read(copy)


def test_a_copy_of_what_is_replaced_meanwhile_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dkms").mkdir()
    path, copy = tmp_path / "demo.ko.gz", tmp_path / "dkms/demo.ko.gz"
    path.write_bytes(large())
    copy.write_bytes(large()[:-1] + b"\1")
    module_readings.read(path)
    are_equal = module_readings.are_equal

    def replaced(one: Path, other: Path) -> bool:
        path.write_bytes(copy.read_bytes())
        return are_equal(one, other)

    monkeypatch.setattr(module_readings, "are_equal", replaced)
    with pytest.raises(ModuleFileError):
        module_readings.read(copy)


def test_other_code_reads_anew(tmp_path: Path, unpackings: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    path, kept = tmp_path / "demo.ko.gz", [tmp_path / "kept"]
    path.write_bytes(large())
    module_readings.read(path, kept)
    (tmp_path / "code.py").write_text("")
    monkeypatch.setattr(relocations, "__file__", os.fspath(tmp_path / "code.py"))
    module_readings._known.clear()
    module_readings.read(path, kept)
    assert unpackings == [1], "what runs is what was there when the process began, whatever lies there now"
    others = [documents.Readings(1 << 20, relocations)]
    monkeypatch.setattr(documents, "__version__", "0.9")
    others += [documents.Readings(1 << 20, relocations)]
    for other in others:
        monkeypatch.setattr(module_readings, "_readings", other)
        module_readings._known.clear()
        unpackings.clear()
        module_readings.read(path, kept)
        assert unpackings == [1]


def test_what_is_kept_is_believed_of_root_and_oneself_alone(tmp_path: Path, unpackings: list[int]) -> None:
    path, kept = tmp_path / "demo.ko.gz", [tmp_path / "kept"]
    path.write_bytes(large())
    first = module_readings.read(path, kept)
    [file] = kept[0].iterdir()
    document = json.loads(file.read_text())
    document["contents"] = "0" * 64
    file.write_text(json.dumps(document))
    os.chown(file, 12345, 12345)
    module_readings._known.clear()
    assert module_readings.read(path, kept) == first
    assert unpackings == [1, 1]


@pytest.mark.parametrize(
    "key", ["mark", "file", "contents", "signed", "fault", "module", "module.crcs", "module.exports", "module.machine"]
)
def test_what_is_kept_may_be_anything(key: str, tmp_path: Path, unpackings: list[int]) -> None:
    path, kept = tmp_path / "demo.ko.gz", [tmp_path / "kept"]
    path.write_bytes(large())
    first = module_readings.read(path, kept)
    [file] = kept[0].iterdir()
    for wrong in (7, [7], {"a": 7.5}, {"a": [1]}, "\ud800", [1, 2, 3]):
        document = json.loads(file.read_text())
        where = document["module"] if "." in key else document
        where[key.rpartition(".")[2]] = wrong
        file.write_text(json.dumps(document))
        module_readings._known.clear()
        unpackings.clear()
        assert module_readings.read(path, kept) == first
        assert unpackings == [1]


def test_a_small_file_is_not_kept(tmp_path: Path) -> None:
    path, kept = tmp_path / "demo.ko", tmp_path / "kept"
    path.write_bytes(elf.module())
    settle()
    module_readings.read(path, [kept])
    assert not kept.exists()


def test_what_may_still_be_written_is_read_again(tmp_path: Path) -> None:
    """Two contents within one tick of the file system's clock have one identity."""
    path = tmp_path / "demo.ko"
    for version in ("1", "2", "3", "4") * 5:
        path.write_bytes(elf.module(info={"version": version}))
        assert module_readings.module(path).version == version


def test_what_was_written_just_now_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, on a file system whose clock ticks once a minute."""
    monkeypatch.setattr(module_readings, "_TICK", 60.0)
    monkeypatch.setattr(module_readings, "_SECOND", 60.0)
    for name, data in (("small.ko", elf.module()), ("large.ko", large())):
        (tmp_path / name).write_bytes(data)
        module_readings.read(tmp_path / name, [tmp_path / "kept"])
    assert not module_readings._known
    assert not (tmp_path / "kept").exists()


def test_a_damaged_file_is_read_once(tmp_path: Path, unpackings: list[int]) -> None:
    path, kept = tmp_path / "demo.ko.gz", [tmp_path / "kept"]
    path.write_bytes(large()[:-9])
    for _ in range(3):
        with pytest.raises(ModuleFileError, match="ends too early"):
            module_readings.read(path, kept)
    assert unpackings == [1]
    assert not kept[0].exists()


def test_what_is_no_module_has_a_digest(tmp_path: Path) -> None:
    path, kept = tmp_path / "demo.ko", [tmp_path / "kept"]
    path.write_bytes(NOISE)
    for _ in range(2):
        module_readings._known.clear()
        assert module_readings.read(path, kept).digest.contents == hashlib.sha256(NOISE).hexdigest()
        with pytest.raises(ModuleFileError, match="not an ELF file"):
            module_readings.module(path, kept)


def test_what_cannot_be_read_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "demo.ko"
    with pytest.raises(ModuleFileError, match="does not exist"):
        module_readings.read(path)
    path.mkdir()
    with pytest.raises(ModuleFileError):
        module_readings.read(path)


def test_no_room_to_keep_it(tmp_path: Path) -> None:
    path = tmp_path / "demo.ko.gz"
    path.write_bytes(large())
    (tmp_path / "kept").write_text("no directory")
    assert module_readings.read(path, [tmp_path / "kept"]).module is not None


# -- the same module -----------------------------------------------------------------------------------------------------------

WHOLE = elf.module(build_id="aa")
SIGNED = [elf.sign(WHOLE, signature) for signature in (b"one", b"another")]
FORMS = [WHOLE, *SIGNED, gzip.compress(WHOLE), lzma.compress(SIGNED[0])]


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return tmp_path / "one.ko"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return tmp_path / "other.ko"


@pytest.mark.parametrize("here", FORMS)
@pytest.mark.parametrize("there", FORMS)
def test_the_same(one: Path, other: Path, here: bytes, there: bytes) -> None:
    one.write_bytes(here)
    other.write_bytes(there)
    assert module_readings.are_same(one, other)
    assert module_readings.has_contents(other, module_readings.digest(one))


@pytest.mark.parametrize("here", FORMS)
def test_not_the_same(one: Path, other: Path, here: bytes) -> None:
    one.write_bytes(here)
    for there in (elf.module(build_id="aa", info={"version": "2"}), WHOLE[:-1] + b"\1", here[:-1], b"", b"x" * 99):
        other.write_bytes(there)
        assert not module_readings.are_same(one, other)
        assert not module_readings.are_same(other, one)
        assert not module_readings.has_contents(other, module_readings.digest(one))


def test_a_file_that_was_changed_is_compared_again(one: Path, other: Path) -> None:
    for path in (one, other):
        path.write_bytes(WHOLE)
    assert module_readings.are_same(one, other)
    other.write_bytes(WHOLE.replace(b"GPL", b"BSD"))
    assert not module_readings.are_same(one, other)


def test_times_that_were_set_back_hide_no_change(one: Path, other: Path) -> None:
    for path in (one, other):
        path.write_bytes(WHOLE)
    assert module_readings.are_same(one, other)
    was = other.stat()
    time.sleep(module_readings._TICK)
    other.write_bytes(WHOLE.replace(b"GPL", b"BSD"))
    os.utime(other, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert not module_readings.are_same(one, other)


def test_what_cannot_be_read(one: Path, other: Path) -> None:
    one.write_bytes(WHOLE)
    assert not module_readings.are_same(one, other)
    assert not module_readings.has_contents(other, module_readings.digest(one))
    other.write_bytes(gzip.compress(WHOLE)[:-9])
    with pytest.raises(KnetstatdError):
        module_readings.digest(other)
    other.unlink()
    other.mkdir()
    assert not module_readings.are_same(one, other)
    assert not module_readings.has_contents(other, module_readings.digest(one))


def test_a_link_is_the_same_file(one: Path, other: Path) -> None:
    one.write_bytes(b"whatever")
    other.symlink_to(one)
    assert module_readings.are_same(one, other)
