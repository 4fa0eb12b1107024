# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel's boot image says, read once: it takes up to a second to unpack.

Rule 1: what is kept is a pure function of the file and of our code; files.Identity tells a file from another. It is kept for
        this boot alone, since after a power cut the same identity may have other contents.
Rule 2: what somebody else than root or this user may have written is not believed.
Rule 3: losing what is kept changes no answer.
"""

from __future__ import annotations

import contextlib
import os
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knetstatd import __version__
from knetstatd.core.errors import KnetstatdError
from knetstatd.formats import compression, elf, kernel_image
from knetstatd.formats.kernel_image import Image
from knetstatd.system import documents, files

if TYPE_CHECKING:
    from collections.abc import Sequence

_LIMIT = 8 << 20  # bytes of a file that is kept; one has 0.7 MB
_YOUNG = 2.0  # seconds: some file systems tell two times of a file apart only if a second is between them

_TEXTS, _BYTES = ("release", "banner", "vermagic", "build_id"), ("symvers", "config")
# The last one: a look goes kernel by kernel.
_last: list[tuple[str, files.Identity, Image]] = []


def read(path: Path, kept: Sequence[Path] = ()) -> Image:
    """The image in a file. kept: our directories with such readings; the last is the one that this process writes to.

    Raises KernelFileError if it cannot be read, is damaged, or is of a kind that is not known (see formats/kernel_image).
    """
    identity = files.identity(path)
    for known_path, known_identity, known in _last:
        if identity is not None and (known_path, known_identity) == (os.fspath(path), identity):
            return known
    image = _load(path, identity, kept)
    if image is None:
        image = kernel_image.read(path)
        if identity is None or identity != files.identity(path):
            return image
        # Who writes to the file from now on changes its times only if they are not of this moment.
        if time.time() - identity.ctime_ns / 1e9 < _YOUNG:
            return image
        _save(path, identity, image, kept)
    if identity is not None:
        _last[:] = [(os.fspath(path), identity, image)]
    return image


def _place(directory: Path, path: Path) -> Path:
    return directory / f"{path.name[:100]}-{zlib.crc32(os.fsencode(path)):08x}.image.json"


def _code() -> list[Any]:
    """What tells our code from another's that reads otherwise."""
    code = (compression, elf, kernel_image)
    return [__version__, *([*(files.identity(Path(str(one.__file__))) or ())] for one in code)]


# As it was when this process took it into its memory: an upgrade replaces the files, and the old code still runs.
_CODE = _code()


def _save(path: Path, identity: files.Identity, image: Image, kept: Sequence[Path]) -> None:
    if not kept:
        return
    texts = {name: getattr(image, name) for name in _TEXTS}
    data = {name: getattr(image, name).decode("latin-1") for name in _BYTES}
    document = {"mark": [[*identity], *_CODE], **texts, **data, "crcs": image.crcs, "btf": image.btf}
    with contextlib.suppress(OSError):
        kept[-1].mkdir(parents=True, exist_ok=True)
        files.write_json(_place(kept[-1], path), document, durable=False)


def _load(path: Path, identity: files.Identity | None, kept: Sequence[Path]) -> Image | None:
    for directory in kept if identity is not None else ():
        for owner in dict.fromkeys((0, os.geteuid())):
            with contextlib.suppress(OSError, KnetstatdError, ValueError):
                document = documents.parse(files.untrusted(_place(directory, path), _LIMIT, owner=owner))
                if document.get("mark").value == [[*(identity or ())], *_CODE]:
                    release, banner, vermagic, build_id = map(document.text, _TEXTS)
                    symvers, config = (document.text(name).encode("latin-1") for name in _BYTES)
                    flags = document.flag("crcs"), document.flag("btf")
                    return Image(release, banner, vermagic, build_id, symvers, *flags, config)
    return None
