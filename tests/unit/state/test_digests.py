# SPDX-License-Identifier: GPL-2.0-or-later
"""The digests of what we published: kept, and dropped when the file they are of is another one."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from knetstatd.state import digests
from knetstatd.state.paths import Places
from knetstatd.system.files import Digest

if TYPE_CHECKING:
    from pathlib import Path

K, P, KNOWN = "6.1.0-1-amd64", "demo", Digest("a" * 64, "b" * 64)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "state", tmp_path / "run", tmp_path / "caches")


@pytest.fixture
def copy(tmp_path: Path, places: Places) -> Path:
    path = tmp_path / "demo.ko"
    path.write_bytes(b"module")
    digests.save(places, K, P, {path: KNOWN})
    return path


def test_kept(tmp_path: Path, places: Places, copy: Path) -> None:
    assert digests.of(places, K, P, copy) == KNOWN
    assert digests.of(places, K, P, tmp_path / "other.ko") is None
    assert digests.of(places, K, "other", copy) is None
    assert digests.of(places, K, P, None) is None
    assert digests.of(places, "6.2", P, copy) is None


def test_another_file_has_none(tmp_path: Path, places: Places, copy: Path) -> None:
    new = tmp_path / "new"
    new.write_bytes(b"module")
    os.replace(new, copy)
    assert digests.of(places, K, P, copy) is None
    digests.save(places, K, P, {copy: KNOWN})
    assert digests.of(places, K, P, copy) == KNOWN
    copy.unlink()
    assert digests.of(places, K, P, copy) is None


def test_remarks(tmp_path: Path, places: Places) -> None:
    said = digests.Remark("it is not signed", "Look at the key")
    directory = tmp_path / f"demo/1.0/{K}/x86_64/module"
    directory.mkdir(parents=True)
    (copy := directory / "demo.ko").write_bytes(b"module")
    mark = tmp_path / f"demo/kernel-{K}-x86_64"
    mark.symlink_to(f"1.0/{K}/x86_64")
    digests.save(places, K, P, {copy: KNOWN})
    assert digests.remarks(places, K, P, directory) == ()
    digests.save(places, K, P, {copy: KNOWN}, [said])
    assert digests.of(places, K, P, copy) == KNOWN
    assert digests.remarks(places, K, P, directory) == (said,)
    whole = json.loads(places.digests(K, P).read_text())
    absurd: object
    for absurd in ({}, [1], [{"reason": "x"}], [{"reason": 1, "fix": ""}], None):
        places.digests(K, P).write_text(json.dumps(whole | {"remarks": absurd}))
        assert digests.remarks(places, K, P, directory) == ()
    places.digests(K, P).write_text(json.dumps(whole | {"schema": 2}))
    assert digests.remarks(places, K, P, directory) == ()
    places.digests(K, P).write_text(json.dumps(whole))
    assert digests.remarks(places, K, P, directory) == (said,)
    mark.unlink()
    assert digests.remarks(places, K, P, directory) == ()
    mark.symlink_to(f"1.0/{K}/x86_64")
    assert digests.remarks(places, K, P, directory) == (), "dkms has installed it anew"


@pytest.mark.parametrize(
    "damaged",
    [
        b"", b"[]", b"{}", b"\0", b'{"schema": 1}', b'{"schema": 1, "modules": []}',
        b'{"schema": 1, "modules": {"demo.ko": 7}}',
        b'{"schema": 1, "modules": {"demo.ko": ["x"]}}', b'{"schema": 1, "modules": {"demo.ko": []}}', b"[" * 100000,
        b'{"schema": 1, "modules": {"demo.ko": [null, 1, 2]}}', b" " * (2 << 20),
    ],
)  # fmt: skip
def test_a_damaged_file_is_none(places: Places, copy: Path, damaged: bytes) -> None:
    places.digests(K, P).write_bytes(damaged)
    assert digests.of(places, K, P, copy) is None


def test_absurd_digests_are_none(places: Places, copy: Path) -> None:
    whole = json.loads(places.digests(K, P).read_text())["modules"]["demo.ko"]
    for key in ("file", "contents", "copy"):
        absurd: object
        for absurd in (1, None, {}, []):
            document = {"schema": 1, "modules": {"demo.ko": {**whole, key: absurd}}}
            places.digests(K, P).write_text(json.dumps(document))
            assert digests.of(places, K, P, copy) is None
        document = {"schema": 1, "modules": {"demo.ko": {k: v for k, v in whole.items() if k != key}}}
        places.digests(K, P).write_text(json.dumps(document))
        assert digests.of(places, K, P, copy) is None
    places.digests(K, P).write_text(json.dumps({"schema": 2, "modules": {"demo.ko": whole}}))
    assert digests.of(places, K, P, copy) is None
    places.digests(K, P).write_text(json.dumps({"schema": 1, "modules": {"demo.ko": whole}}))
    assert digests.of(places, K, P, copy) == KNOWN


def test_they_are_among_what_is_kept(places: Places, copy: Path) -> None:
    """So that they go with their kernel, and with their package."""
    assert copy.exists()
    assert list(places.of_kernels()) == [(K, places.digests(K, P).parent)]
    assert list(places.of_packages()) == [(P, places.digests(K, P))]
