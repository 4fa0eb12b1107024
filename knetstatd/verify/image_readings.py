# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel's boot image says, read once: it takes up to a second to unpack.

Rule 1: what is kept is a pure function of the file and of our code; files.Identity tells a file from another. It is kept for
        this boot alone, since after a power cut the same identity may have other contents.
Rule 2: what somebody else than root or this user may have written is not believed.
Rule 3: losing what is kept changes no answer.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from knetstatd.formats import compression, elf, kernel_image
from knetstatd.formats.kernel_image import Image
from knetstatd.system import documents, files
from knetstatd.verify import module_readings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from knetstatd.system.documents import Node

_TEXTS, _BYTES = ("release", "banner", "vermagic", "build_id"), ("symvers", "config")
_readings = documents.Readings(8 << 20, compression, elf, kernel_image)  # bytes; one has 0.7 MB

# The last one: a look goes kernel by kernel.
_last: list[tuple[str, files.Identity, Image]] = []


def read(path: Path, kept: Sequence[Path] = ()) -> Image:
    """The image in a file. kept: our directories with such readings; the last is the one that this process writes to.

    Raises KernelFileError if it cannot be read, is damaged, or is of a kind that is not known (see formats/kernel_image).
    """
    identity = files.identity(path)
    if identity is None:
        return kernel_image.read(path)
    for known_path, known_identity, known in _last:
        if (known_path, known_identity) == (os.fspath(path), identity):
            return known
    image = _readings.load(kept, path, identity, _from_json)
    if image is None:
        settled = module_readings.settle(identity)
        image = kernel_image.read(path)
        if not settled or identity != files.identity(path):
            return image
        texts = {name: getattr(image, name) for name in _TEXTS}
        data = {name: getattr(image, name).decode("latin-1") for name in _BYTES}
        _readings.save(kept, path, identity, {**texts, **data, "crcs": image.crcs, "btf": image.btf})
    _last[:] = [(os.fspath(path), identity, image)]
    return image


def _from_json(document: Node) -> Image:
    release, banner, vermagic, build_id = map(document.text, _TEXTS)
    symvers, config = (document.text(name).encode("latin-1") for name in _BYTES)
    return Image(release, banner, vermagic, build_id, symvers, document.flag("crcs"), document.flag("btf"), config)
