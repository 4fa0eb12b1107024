# SPDX-License-Identifier: GPL-2.0-or-later
"""DKMS's own configuration, /etc/dkms/framework.conf: where its tree lies, and what it signs with.

Rule 1: the file is a shell script, and it is never executed here (see shell_assignments). A value that needs a shell is not
        followed: the default stands in its place.
Rule 2: dkms reads framework.conf, then framework.conf.d/*.conf in the order of their names; a later value replaces an earlier
        one. dkms evaluates each value a second time, between double quotes.
Rule 3: no text raises.

Sources: dkms 3.0.10 and 3.2.2, read_framework_conf and safe_source; bash(1): NUL bytes in a script are skipped.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.formats.shell_assignments import assigned
from knetstatd.system import files
from knetstatd.system.once import once

if TYPE_CHECKING:
    from collections.abc import Iterator, Set
    from pathlib import Path

DIRECTORY = "/etc/dkms/framework.conf.d"
_FILE = "/etc/dkms/framework.conf"
_LIMIT = 1 << 18  # bytes
# What means something between double quotes, in the second evaluation.
_SPECIAL = re.compile(r'[$`"\\]')
_KERNEL = re.compile(r"\$\{kernelver\}")
# Set when dkms reads the file, and not known here.
_UNKNOWN = ("kernelver", "HOME", "PATH", "PWD", "USER", "SHELL", "HOSTNAME", "TMPDIR", "arch", "module", "module_version")


class Framework(NamedTuple):
    """The settings that matter here, each as dkms has it; "" if it is not set.

    dkms_tree, source_tree, install_tree: absolute paths.  sign_file, mok_signing_key, mok_certificate: paths; the key may be
    a pkcs11: URI.  compress_*_opts: what the packing programs are told, from dkms 3.1 on.
    """

    dkms_tree: str = "/var/lib/dkms"
    source_tree: str = "/usr/src"
    install_tree: str = "/lib/modules"
    sign_file: str = ""
    mok_signing_key: str = ""
    mok_certificate: str = ""
    compress_xz_opts: str = ""
    compress_gzip_opts: str = ""
    compress_zstd_opts: str = ""


@once
def framework(root: Path, kernel: str = "") -> Framework:
    """The settings of the machine under `root`. kernel: for which dkms would sign; without one, what the file calls
    $kernelver stays in the paths as `${kernelver}`."""
    known = Framework()
    given = {**known._asdict(), **({"kernelver": kernel} if kernel else {})}
    texts = tuple(text.replace("\0", "") for path in _files(root) if (text := files.text(path, _LIMIT)) is not None)
    said = assigned(texts, tuple(given.items()), _UNKNOWN)
    values = {name: said.scalar(name).removesuffix("\r") for name in known._fields}
    usable = {name: value for name, value in values.items() if value and _is_usable(name, value, said.dynamic)}
    return known._replace(**usable)


def _files(root: Path) -> Iterator[Path]:
    yield files.inside(root, _FILE)
    yield from (files.inside(root, f"{DIRECTORY}/{name}") for name in files.names(files.inside(root, DIRECTORY))
                if name.endswith(".conf") and not name.startswith("."))  # fmt: skip


def _is_usable(name: str, value: str, dynamic: Set[str]) -> bool:
    """Whether a value is known without a shell; and, for a tree, whether it is a directory of its own."""
    if dynamic & {name, "*"} or _SPECIAL.search(_KERNEL.sub("", value)):
        return False
    if name.endswith("_tree"):
        place = PurePosixPath(value)
        return place.is_absolute() and len(place.parts) > 2 and ".." not in place.parts and "$" not in value
    return True
