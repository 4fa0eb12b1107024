# SPDX-License-Identifier: GPL-2.0-or-later
"""Which entry systemd-boot starts when nobody touches a key, and the entry files of the Boot Loader Specification.

Rule 1: an entry whose image is not there, or whose architecture is another, is none for systemd-boot, and none here.
Rule 2: the answer is that of the systemd-boot that lies on the disk. If versions differ and it is not known, Undecided.

Sources, systemd 252 and 257: src/boot/boot.c (until 253 in src/boot/efi), efi-string.c, and src/fundamental:
bootspec-fundamental.c and string-util-fundamental.c.
"""

from __future__ import annotations

import functools
import os
import struct
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.boot import boot_entries
from knetstatd.boot.boot_entries import Entry, lines, lower, matches
from knetstatd.boot.grub_state import Undecided
from knetstatd.core import roots
from knetstatd.core.errors import KnetstatdError
from knetstatd.system import files

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

# boot.c, EFI_MACHINE_TYPE_NAME.
_ARCHITECTURES = {"x86_64": "x64", "i686": "ia32", "aarch64": "aa64", "armv7l": "arm", "riscv64": "riscv64"}
# The last version known to keep boot counting's suffix in an entry's id, and the first known to take it off.
_KEEPS_COUNTER, _DROPS_COUNTER = 252, 257
# sort-key came with 251, the keys uki and preferred with 258.
_OLDEST, _NEWEST = 251, 257
_AUTOMATIC = (
    "auto-osx", "auto-windows", "auto-efi-shell", "auto-efi-default", "auto-reboot-to-firmware-setup", "auto-poweroff",
    "auto-reboot",
)  # fmt: skip


class Variables(NamedTuple):
    """The Boot Loader Interface's EFI variables, "" where unset."""

    one_shot: str = ""
    default: str = ""
    last_booted: str = ""


def choose(places: Sequence[Path], variables: Variables, version: int) -> tuple[Entry, str] | None:
    """The entry that is started, and what chose it: "one-shot", "default", "saved" or "first".

    places: the ESP, then, if there is one, the XBOOTLDR partition.  version: systemd-boot's, 0 if it is not known.
    None if there are no entries. Raises Undecided.
    """
    if version and not _OLDEST <= version <= _NEWEST:
        raise Undecided(f"is version {version}, whose rules are not known here")
    offered = [entry for place in places for entry in (*unified(place), *entries(place))]
    default = ""
    for key, value in lines(_read(places[0] / "loader/loader.conf") or b"", " \t"):
        # An unknown word with an @ is ignored, and what stood before holds.
        if key == "default" and (not value.startswith("@") or value.lower() == "@saved"):
            default = value
    patterns = []
    for source, text in (("one-shot", variables.one_shot), ("default", variables.default), ("default", default)):
        saved = source == "default" and lower(text) == "@saved"
        patterns.append(("saved", lower(variables.last_booted)) if saved else (source, lower(text)))
    old, new = (_choose(offered, patterns, keeps_counter=keeps) for keeps in (True, False)) if offered else (None, None)
    if version >= _DROPS_COUNTER or old == new:
        return new
    if 0 < version <= _KEEPS_COUNTER:
        return old
    raise Undecided("is of an unknown version, and versions differ in what they take for an entry's name")


def _choose(offered: Sequence[Entry], patterns: Sequence[tuple[str, str]], *, keeps_counter: bool) -> tuple[Entry, str]:
    """config_select_default_entry (until 253 config_default_entry_select)."""
    compare = functools.partial(boot_entries.compare, keeps_counter=keeps_counter)
    ordered = sorted(offered, key=functools.cmp_to_key(compare))
    chosen, by = ordered[0], "first"
    for source, pattern in patterns:
        fits = (entry for entry in ordered if pattern and matches(pattern, entry.id(keeps_counter=keeps_counter)))
        if entry := next(fits, None):
            chosen, by = entry, source
            break
        if automatic := next((name for name in _AUTOMATIC if pattern and matches(pattern, name)), ""):
            raise Undecided(f"may start {automatic}, which is no entry of this system")
    # The order in the directory decides, which is not seen.
    if any(other != chosen and other.place == chosen.place and compare(chosen, other) == 0 for other in ordered):
        raise Undecided(f"has two entries of the same rank, one of them {chosen.name}")
    return chosen, by


# -- entries --------------------------------------------------------------------------------------------------------------


def entries(place: Path, *, present: bool = True) -> Iterator[Entry]:
    """The entry files below a partition's loader/entries: boot_entry_add_type1. present: only those whose image is there."""
    architecture = _ARCHITECTURES.get(os.uname().machine, "")
    for name in names(place / "loader/entries"):
        if not lower(name).endswith(".conf") or name.startswith((".", "auto-")):
            continue
        fields: dict[str, str] = {}
        many: dict[str, list[str]] = {"options": [], "initrd": []}
        for key, value in lines(_read(place / "loader/entries" / name) or b"", " \t"):
            if key in many:
                many[key].append(value)
            elif key in ("linux", "efi"):
                fields["image"] = value
            elif key == "architecture" and architecture and value.lower() != architecture:
                fields.clear()
                break
            else:
                fields[key] = value
        image = fields.get("image", "")
        if image and (not present or is_there(place, image)):
            yield Entry(
                name, fields.get("title", ""), image, place, fields.get("version", ""), fields.get("sort-key"),
                fields.get("machine-id", ""), " ".join(many["options"]), tuple(many["initrd"]),
            )  # fmt: skip


def unified(place: Path) -> Iterator[Entry]:
    """The unified kernel images below a partition's EFI/Linux: boot_entry_add_type2."""
    for name in names(place / "EFI/Linux"):
        if not lower(name).endswith(".efi") or name.startswith((".", "auto-")):
            continue
        sections = pe_sections(place / "EFI/Linux" / name)
        if not sections.get(".osrel"):
            continue
        release = dict(lines(sections[".osrel"], "="))
        if not any(release.get(key) is not None for key in ("PRETTY_NAME", "IMAGE_ID", "NAME", "ID")):
            continue
        version = next((release[key] for key in ("IMAGE_VERSION", "VERSION", "VERSION_ID", "BUILD_ID") if key in release), "")
        title = next(release[key] for key in ("PRETTY_NAME", "IMAGE_ID", "NAME", "ID") if key in release)
        sort_key = release.get("IMAGE_ID", release.get("ID"))
        told = sections.get(".cmdline", b"").partition(b"\0")[0].decode("utf-8", "replace").strip()
        yield Entry(name, title, f"/EFI/Linux/{name}", place, version, sort_key, options=told)


def pe_sections(path: Path, limit: int = 1 << 16) -> dict[str, bytes]:
    """The sections of a PE file by name, each up to `limit` bytes, the first of a name; none of a file that is no PE."""
    sections: dict[str, bytes] = {}
    try:
        with roots.regular(path) as f:
            head = f.read(4096)
            at = int.from_bytes(head[0x3C:0x40], "little")
            if head[:2] != b"MZ" or head[at : at + 4] != b"PE\0\0":
                return sections
            count, optional = struct.unpack_from("<H12xH", head, at + 6)
            for i in range(count):
                name, size, _, raw, offset = struct.unpack_from("<8sIIII", head, at + 24 + optional + 40 * i)
                f.seek(offset)
                sections.setdefault(name.rstrip(b"\0").decode("ascii", "replace"), f.read(min(size, raw, limit)))
    except FileNotFoundError:
        return sections
    except (OSError, struct.error) as error:
        raise Undecided(f"has an image that cannot be read: {path.name}: {error}") from None
    return sections


def find(entry: Entry, name: str) -> Path:
    """Where a file that an entry names lies, or would."""
    return entry.place / name.replace("\\", "/").lstrip("/")


def is_there(place: Path, image: str) -> bool:
    """Whether an entry's file lies on its partition."""
    return os.path.isfile(place / image.replace("\\", "/").lstrip("/"))


def names(directory: Path) -> list[str]:
    """The names in a directory, none if it is not there. Raises Undecided if it cannot be read."""
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise Undecided(f"has a directory that cannot be read: {directory}: {error.strerror}") from None


def _read(path: Path) -> bytes | None:
    try:
        return files.read(path, 1 << 14)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except (OSError, KnetstatdError) as error:
        raise Undecided(f"has a file that cannot be read: {error}") from None
