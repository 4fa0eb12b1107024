# SPDX-License-Identifier: GPL-2.0-or-later
"""Proofs of files that come together, and for how long they stand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import kerneltree
from kerneltree import KERNEL

from knetstatd.verify.proof_cache import Look, Proofs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_modules_of_one_package_may_need_each_other(tmp_path: Path) -> None:
    kerneltree.make(tmp_path)
    for name, text in (("Makefile", ""), (".config", ""), ("scripts", "")):
        (tmp_path / f"usr/src/linux-headers-{KERNEL}/{name}").write_text(text)
    crcs = {name: kerneltree.CRCS[name] for name in ("module_layout", "printk")} | {"fn": 7}
    needs, gives = tmp_path / "needs.ko", tmp_path / "gives.ko"
    needs.write_bytes(kerneltree.module("needs", undefined=["printk", "fn"], crcs=crcs))
    gives.write_bytes(kerneltree.module("gives", exports={"fn": (7, "", "")}))
    proofs = Proofs(tmp_path)

    def failed(*others: Path) -> list[str]:
        proof = proofs.file(Look(tmp_path, KERNEL), needs, others)
        return [check.name for check in proof.checks if check.result in ("fail", "unknown")]

    assert failed() == ["symbols"]
    assert failed(needs, gives) == []
    assert failed() == ["symbols"], "an answer with others is none without them"
    gives.write_bytes(kerneltree.module("gives"))
    assert failed(needs, gives) == ["symbols"], "another file, another answer"


def test_a_proof_falls_with_a_file_that_is_inserted_before(tmp_path: Path) -> None:
    tree = kerneltree.make(tmp_path)
    kerneltree.add(tree, "updates/other.ko", kerneltree.module("other"))
    kerneltree.add(tree, "updates/demo.ko", kerneltree.module(), "updates/other.ko")
    proofs = Proofs(tmp_path)
    [(_, proof)] = proofs.installed(Look(tmp_path, KERNEL), {"demo": None})
    assert proof.loads
    (tree / "updates/other.ko").write_bytes(b"")
    [(_, proof)] = proofs.installed(Look(tmp_path, KERNEL), {"demo": None})
    assert not proof.loads


def test_a_proof_comes_whole_out_of_another_process(tmp_path: Path) -> None:
    """Whatever carries it knows JSON only."""
    tree = kerneltree.make(tmp_path)
    kerneltree.add(tree, "updates/other.ko", kerneltree.module("other"))
    kerneltree.add(tree, "updates/demo.ko", kerneltree.module(build_id="0102"), "updates/other.ko")

    def carried(work: Callable[[], list[Any]]) -> list[Any]:
        made: list[Any] = json.loads(json.dumps(work(), sort_keys=True))
        return made

    [(_, here)] = Proofs(tmp_path).installed(Look(tmp_path, KERNEL), {"demo": None})
    [(_, there)] = Proofs(tmp_path, carried).installed(Look(tmp_path, KERNEL), {"demo": None})
    assert here.needed
    assert here == there
    assert [type(check.result) for check in there.checks] == [type(check.result) for check in here.checks]
