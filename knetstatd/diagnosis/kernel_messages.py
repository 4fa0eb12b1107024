# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel writes when it does not take a module, and what that means.

Source: kernel/module/*.c (before 5.17 kernel/module.c) from 5.10 to 7.3; asked of real kernels by tests/vm/test_agreement.py.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import names

if TYPE_CHECKING:
    from collections.abc import Iterable


class Refusal(NamedTuple):
    """check: the check of `verify` that judges the same.  reason: what the kernel means, a sentence without its subject."""

    check: str
    reason: str


# The checks by which a kernel says that the file was made for another one.
FOREIGN = frozenset({"crcs", "vermagic", "release", "struct-module", "symbols", "btf"})

# What it refuses before it runs any of the module's code.
_REFUSALS = (
    (r"disagrees about version of symbol (\S+)", "crcs", "the symbol {1} has another checksum there"),
    (r"no symbol version for (\S+)", "crcs", "the module has no checksum for the symbol {1}"),
    (r"version magic '(\S+) ([^']*)' should be '\1 ([^']*)'", "vermagic", "its version magic is '{2}', and must be '{3}'"),
    (r"version magic '(\S+) [^']*' should be '(\S+) [^']*'", "release", "it was built for {1}, and this is {2}"),
    (r"section size must match", "struct-module", "its struct module has another size"),
    (r"failed to validate module \[[^]]*\] BTF", "btf", "its type information (BTF) is damaged, or made for another build"),
    (r"Unknown symbol (\S+)", "symbols", "that kernel has no symbol {1} for it"),
    (r"exports duplicate symbol (\S+)", "exports", "it exports {1}, which the kernel has already"),
    # kernel/module/decompress.c
    (r"decompression failed with|-compressed data has|not an? \w+ compressed module", "compression", "it cannot unpack it"),
    (r"[Mm]odule \S+ is blacklisted", "denied", "module_blacklist= on the kernel's command line denies it"),
    (
        r"Loading of .* is rejected|loading is restricted|Key was rejected|Required key not available",
        "signature",
        "its signature is none that this kernel accepts",
    ),
)
# Of a register dump, the lines that say what and where.
OOPS = re.compile(r"^kernel BUG|^BUG:|^WARNING|^Oops|^RIP: 0010|^Kernel panic|nable to handle")


def find(lines: Iterable[str]) -> Refusal | None:
    """What the first of these that fits means; None if nothing in the lines is such a word of the kernel's."""
    lines = tuple(lines)
    for pattern, check, sentence in _REFUSALS:
        for line in lines:
            if match := re.search(pattern, line):
                for number, group in enumerate(match.groups(), 1):
                    sentence = sentence.replace(f"{{{number}}}", names.clean(group, 160))
                return Refusal(check, sentence)
    return None
