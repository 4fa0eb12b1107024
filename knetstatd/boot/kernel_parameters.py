# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel's command line, taken apart as the kernel does it.

Rule: a word after `--` is init's. The kernel does not read it, but modprobe and systemd do: they read /proc/cmdline.

Sources, 5.10 to 7.3: lib/cmdline.c, next_arg(); kernel/params.c, parse_args() and parameq(); fs/proc/proc_sysctl.c,
process_sysctl_arg(); init/main.c, initcall_blacklist().
"""

from __future__ import annotations

import itertools
import re

_WORD = re.compile(r'(?:[^\s"]|"[^"]*(?:"|$))+')
_END = "--"


def parameters(line: str) -> list[str]:
    """All words: without quotes, and in a name `-` is `_`."""
    words = []
    for word in _WORD.findall(line):
        name, equals, value = (word[1:].removesuffix('"') if word.startswith('"') else word).partition("=")
        value = value[1:].removesuffix('"') if value.startswith('"') else value
        words.append((name if name == _END else name.replace("-", "_")) + equals + value)
    return words


def own_parameters(line: str) -> list[str]:
    """The words that the kernel reads itself."""
    return list(itertools.takewhile(lambda word: word != _END, parameters(line)))


def listed(words: list[str], name: str) -> list[str]:
    """The values of all parameters of a name, each a list with commas."""
    return [item for word in words if word.startswith(f"{name}=") for item in word.partition("=")[2].split(",") if item]
