# SPDX-License-Identifier: GPL-2.0-or-later
"""Module.symvers: what is wanted is found, in every format, and a file of another kind is refused."""

from __future__ import annotations

import gzip
import lzma
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packers import zstd

from knetstatd.core.errors import KernelFileError
from knetstatd.formats import symvers
from knetstatd.formats.symvers import Export

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXT = (
    b"0x4c9d28b0\tphys_base\tvmlinux\tEXPORT_SYMBOL\t\n"
    b"0x00000000\twrite_ibpb\tvmlinux\tEXPORT_SYMBOL_GPL\tmodule:kvm,kvm-amd\n"
    b"0xffffffff\tsnd_card_new\tsound/core/snd-core\tEXPORT_SYMBOL\tSND\n"
    b"0x00000001\told\tvmlinux\tEXPORT_UNUSED_SYMBOL_GPL\n"
    b"0x00000002\tfuture\tvmlinux\tEXPORT_SYMBOL_GPL_FUTURE\n"
    b"0x00000003\told\tdrivers/second\tEXPORT_SYMBOL\n"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "Module.symvers"


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress, zstd])
def test_found(path: Path, pack: Callable[[bytes], bytes]) -> None:
    path.write_bytes(pack(TEXT))
    found = symvers.find(path, ["phys_base", "write_ibpb", "snd_card_new", "old", "future", "absent", "vmlinux", ""])
    assert found == {
        "phys_base": Export(0x4C9D28B0, "vmlinux", gpl_only=False),
        "write_ibpb": Export(0, "vmlinux", gpl_only=True, namespace="module:kvm,kvm-amd"),
        "snd_card_new": Export(0xFFFFFFFF, "sound/core/snd-core", gpl_only=False, namespace="SND"),
        "old": Export(1, "vmlinux", gpl_only=True),
        "future": Export(2, "vmlinux", gpl_only=False),
    }
    assert [found[name].module for name in ("phys_base", "snd_card_new")] == ["", "snd_core"]


def test_nothing_wanted(path: Path) -> None:
    path.write_bytes(TEXT)
    assert symvers.find(path, ()) == {}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is empty"),
        (b"#!/bin/sh\n", "unexpected line"),
        (b"\n" + TEXT, "unexpected line"),
        (TEXT[:-5], "ends in the middle of a line"),
        (TEXT + b"0x1\twanted\tvmlinux\tEXPORT_SYMBOL\n0x\n", None),
        (TEXT + b"0x0000000g\twanted\tvmlinux\tEXPORT_SYMBOL\n", "unexpected line"),
        (TEXT + b"0x00000000\twanted\t\tEXPORT_SYMBOL\n", "unexpected line"),
        (TEXT + b"0x00000000\twanted\tvmlinux\n", "unexpected line"),
        (TEXT + b"0x00000000\twanted\tvmlinux\tE\tN\tmore\n", "unexpected line"),
        (b"0x00000000\t\tvmlinux\tEXPORT_SYMBOL\n", "unexpected line"),
        (gzip.compress(TEXT)[:-4], "ends too early"),
    ],
)
def test_damaged(path: Path, data: bytes, why: str | None) -> None:
    path.write_bytes(data)
    if why is None:
        assert symvers.find(path, ["wanted"]) == {}
        return
    with pytest.raises(KernelFileError, match=why) as caught:
        symvers.find(path, ["wanted"])
    assert caught.value.where == str(path)
    assert caught.value.fix


def test_files_of_other_kinds(path: Path) -> None:
    with pytest.raises(KernelFileError, match="No such file"):
        symvers.find(path, ())
    os.mkfifo(path)
    with pytest.raises(KernelFileError, match="not a regular file"):
        symvers.find(path, ())
    path.unlink()
    with open(path, "wb") as f:
        f.truncate(symvers.LIMIT + 1)
    with pytest.raises(KernelFileError, match="is larger than"):
        symvers.find(path, ())
    with pytest.raises(KernelFileError, match="Is a directory|not a regular file"):
        symvers.find(path.parent, ())


@given(st.binary(max_size=200), st.lists(st.text(max_size=8), max_size=4))
def test_nothing_but_kernel_file_error(tmp_path: Path, data: bytes, wanted: list[str]) -> None:
    path = tmp_path / "Module.symvers"
    for prefix in (b"", TEXT, b"0x00000000\t"):
        path.write_bytes(prefix + data)
        try:
            assert set(symvers.find(path, wanted)) <= set(wanted)
        except KernelFileError as e:
            assert e.what
