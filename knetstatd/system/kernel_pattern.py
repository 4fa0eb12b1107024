# SPDX-License-Identifier: GPL-2.0-or-later
"""The regular expressions of dkms.conf (BUILD_EXCLUSIVE_KERNEL, MAKE_MATCH), asked of a kernel's release.

Rule 1: dkms asks bash: `[[ $kernelver =~ $pattern ]]`, a POSIX extended expression. So does this; a simple expression, which
        means the same to Python and cannot take long, is asked of Python.
Rule 2: the expression is a stranger's. In time or memory it costs no more than a limit: then there is no answer.
"""

from __future__ import annotations

import functools
import re

from knetstatd.core.errors import KnetstatdError

_SECONDS, _KILOBYTES = 2.0, 131072
# Letters, dots, groups and plain brackets; a quantifier after a single character, a dot or a bracket, not after a group.
_SIMPLE = re.compile(r"(?:(?:[A-Za-z0-9_~.-]|\\[.+~-]|\[\^?[A-Za-z0-9_.+~-]+\])[*+?]?|[\^$|()])*")
_MOST_QUANTIFIERS = 3
_BASH = f"ulimit -S -v {_KILOBYTES} -t {_SECONDS:.0f} -c 0 2>/dev/null; [[ $2 =~ $1 ]]"


@functools.lru_cache(maxsize=256)
def matches(pattern: str, kernel: str, seconds: float = _SECONDS) -> bool | None:
    """Whether a kernel's release matches; None if the pattern is none, or has no answer within the limits. Raises nothing.

    seconds: how long it may take.
    """
    simple = len(pattern) <= 200 and _SIMPLE.fullmatch(pattern) and sum(map(pattern.count, "*+?")) <= _MOST_QUANTIFIERS
    if simple:
        try:
            return re.search(pattern, kernel) is not None
        except re.error:
            pass  # a parenthesis too many; bash may take it otherwise
    if "\0" in pattern or len(pattern) > 1 << 16:
        return None
    from knetstatd.system import process  # only here: what starts programs takes 5 ms to import

    try:
        done = process.run(["bash", "-c", _BASH, "bash", pattern, kernel], timeout=seconds, limit=4096)
    except KnetstatdError:
        return None
    return {0: True, 1: False}.get(done.code) if not done.timed_out else None
