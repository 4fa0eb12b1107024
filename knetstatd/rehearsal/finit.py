# SPDX-License-Identifier: GPL-2.0-or-later
"""The program by which the throwaway machine inserts a compressed module as kmod does: the kernel unpacks it.

busybox's insmod unpacks by itself and never sets the flag for that (finit_module(2), MODULE_INIT_COMPRESSED_FILE); there may
be no compiler here; kmod would come with six libraries. So these are 13 instructions, for x86-64 alone, as rehearsals are.
"""

from __future__ import annotations

import errno
import os
import struct

# Its command line: the module's file, and all its parameters in one word. Its exit status: the kernel's errno, 0 for none.
_CODE = bytes.fromhex(
    "488b7c2410"  # mov  0x10(%rsp),%rdi     argv[1]
    "31f6"        # xor  %esi,%esi           O_RDONLY
    "b802000000"  # mov  $2,%eax             open
    "0f05"        # syscall
    "89c7"        # mov  %eax,%edi           the descriptor
    "488b742418"  # mov  0x18(%rsp),%rsi     argv[2]
    "ba04000000"  # mov  $4,%edx             MODULE_INIT_COMPRESSED_FILE
    "b839010000"  # mov  $313,%eax           finit_module
    "0f05"        # syscall
    "f7d8"        # neg  %eax
    "89c7"        # mov  %eax,%edi
    "b83c000000"  # mov  $60,%eax            exit
    "0f05"        # syscall
)  # fmt: skip
_BASE, _HEADERS = 0x400000, 64 + 56
# busybox's words for some numbers (libbb, moderror()); for the others it has the C library's.
_WORDS = {
    2: "unknown symbol in module, or unknown parameter", 3: "module has wrong symbol version", 8: "invalid module format",
    38: "kernel does not support requested operation",
}  # fmt: skip
# The errno for each of insmod's words.
_NUMBERS = {_WORDS.get(code) or os.strerror(code): code for code in errno.errorcode}


def program() -> bytes:
    """The program, a static ELF file (elf(5)): its header, one segment, the code."""
    size = _HEADERS + len(_CODE)
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 4096) + _CODE


def words(code: int) -> str:
    """What busybox's insmod would have written for an exit status."""
    return _WORDS.get(code) or os.strerror(code)


def number(words: str) -> int:
    """The errno that insmod's words stand for, 0 for none."""
    return _NUMBERS.get(words, 0)
