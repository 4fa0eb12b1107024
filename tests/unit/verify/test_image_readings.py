# SPDX-License-Identifier: GPL-2.0-or-later
"""Readings of boot images: kept for as long as the file is the same, and believed only if nobody else can have written them."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import images
import pytest

from knetstatd.core.errors import KernelFileError
from knetstatd.formats import kernel_image
from knetstatd.system import documents
from knetstatd.verify import image_readings, module_readings

if TYPE_CHECKING:
    from pathlib import Path

    from knetstatd.formats.kernel_image import Image

EXPORTS = {"printk": (0xFFFFFFFF, "EXPORT_SYMBOL", ""), "n\u00f6": (5, "EXPORT_SYMBOL_GPL", "SPACE")}


@pytest.fixture(autouse=True)
def forgotten() -> None:
    image_readings._last.clear()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinuz-6.1.0-1-amd64"
    write(path, images.bzimage(images.vmlinux(EXPORTS)))
    return path


def write(path: Path, data: bytes) -> None:
    """A file whose times are not of this moment."""
    path.write_bytes(data)
    os.utime(path, (1e9, 1e9))


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are never young, here on a file system whose clock never stands."""
    monkeypatch.setattr(module_readings, "_TICK", -1.0)
    monkeypatch.setattr(module_readings, "_SECOND", -1.0)


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The images that are really read."""
    counted: list[Path] = []
    read = kernel_image.read

    def count(path: Path) -> Image:
        counted.append(path)
        return read(path)

    monkeypatch.setattr(kernel_image, "read", count)
    return counted


@pytest.mark.usefixtures("old")
def test_it_is_kept(path: Path, tmp_path: Path, readings: list[Path]) -> None:
    kept = tmp_path / "kept"
    image = image_readings.read(path, [tmp_path / "none", kept])
    assert len(readings) == 1
    assert image_readings.read(path, [kept]) == image
    image_readings._last.clear()
    assert image_readings.read(path, [kept, tmp_path / "other"]) == image
    assert len(readings) == 1
    assert [place.name for place in tmp_path.iterdir() if place.is_dir()] == ["kept"]
    image_readings._last.clear()
    assert image_readings.read(path) == image
    assert len(readings) == 2, "nowhere to keep it"


@pytest.mark.usefixtures("old")
def test_another_file_is_read_anew(path: Path, tmp_path: Path) -> None:
    kept = [tmp_path / "kept"]
    first = image_readings.read(path, kept)
    write(path, images.bzimage(images.vmlinux({"printk": (1, "EXPORT_SYMBOL", "")})))
    second = image_readings.read(path, kept)
    assert second != first
    image_readings._last.clear()
    assert image_readings.read(path, kept) == second


@pytest.mark.usefixtures("old")
def test_other_code_reads_anew(path: Path, tmp_path: Path, readings: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    image_readings.read(path, [tmp_path / "kept"])
    image_readings._last.clear()
    monkeypatch.setattr(image_readings, "_readings", documents.Readings(1 << 20, images))
    image_readings.read(path, [tmp_path / "kept"])
    assert len(readings) == 2


def test_what_was_written_just_now_is_not_remembered(path: Path, tmp_path: Path) -> None:
    image_readings.read(path, [tmp_path / "kept"])
    assert not image_readings._last
    assert not (tmp_path / "kept").exists()


@pytest.mark.usefixtures("old")
def test_it_is_believed_of_root_and_oneself_alone(path: Path, tmp_path: Path, readings: list[Path]) -> None:
    kept = [tmp_path / "kept"]
    first = image_readings.read(path, kept)
    [file] = kept[0].iterdir()
    document = json.loads(file.read_text())
    file.write_text(json.dumps(document | {"symvers": "0x00000001\tprintk\tvmlinux\tEXPORT_SYMBOL\t\n"}))
    os.chown(file, 12345, 12345)
    image_readings._last.clear()
    assert image_readings.read(path, kept) == first
    assert len(readings) == 2


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("key", ["mark", "release", "banner", "vermagic", "build_id", "symvers", "config", "crcs", "btf"])
def test_what_is_kept_may_be_anything(key: str, path: Path, tmp_path: Path, readings: list[Path]) -> None:
    kept = [tmp_path / "kept"]
    first = image_readings.read(path, kept)
    for wrong in (7.5, None, {"a": [1]}, ["\ud800"]):
        [file] = kept[0].iterdir()
        document = json.loads(file.read_text())
        file.write_text(json.dumps(document | {key: wrong}))
        image_readings._last.clear()
        readings.clear()
        assert image_readings.read(path, kept) == first
        assert len(readings) == 1


@pytest.mark.usefixtures("old")
def test_no_image(path: Path, tmp_path: Path) -> None:
    write(path, b"nothing")
    for _ in range(2):
        with pytest.raises(KernelFileError, match="of a kind that is not known"):
            image_readings.read(path, [tmp_path / "kept"])
    path.unlink()
    with pytest.raises(KernelFileError, match="No such file"):
        image_readings.read(path, [tmp_path / "kept"])
    assert not (tmp_path / "kept").exists()


@pytest.mark.usefixtures("old")
def test_no_room_to_keep_it(path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    assert image_readings.read(path, [tmp_path / "file/kept"]) == kernel_image.read(path)
