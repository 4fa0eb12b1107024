# SPDX-License-Identifier: GPL-2.0-or-later
"""The distribution's own programs make an initrd anew, under the system's root; what fails is told with its last words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import machinetree
import pytest
from machinetree import KERNEL

from knetstatd.build import initrd
from knetstatd.core.errors import BuildError
from knetstatd.core.model import Check, Kind, Proof, Result

if TYPE_CHECKING:
    from pathlib import Path

MAKER = "usr/sbin/update-initramfs"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    machinetree.make(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("results", "against"),
    [
        ([], None), ([Result.PASS, Result.NOT_APPLICABLE, Result.WARN], None), ([Result.PASS, Result.FAIL], Result.FAIL),
        ([Result.UNKNOWN, Result.FAIL], Result.UNKNOWN),
    ],
)  # fmt: skip
def test_what_stands_against_it(results: list[Result], against: Result | None) -> None:
    """The first module's answer that is not good; other checks are not about it."""
    proofs = [Proof("/m.ko", (Check("symbols", Result.FAIL), Check("initrd", result))) for result in results]
    check = initrd.wrong(proofs)
    assert (check.result if check else None) is against
    assert check is None or check.name == "initrd"


@pytest.mark.spawns
def test_it_is_made_by_the_systems_own_program(root: Path) -> None:
    machinetree.program(root / MAKER, root, 'echo "$TMPDIR" >"$root/ran/tmpdir"')
    initrd.make(root, KERNEL, 20.0, ())
    assert machinetree.ran(root, "update-initramfs") == [f"-c -k {KERNEL}"]
    assert machinetree.ran(root, "tmpdir") == [f"{root}/var/tmp"]


@pytest.mark.spawns
def test_a_program_that_fails_ends_it(root: Path) -> None:
    machinetree.write(root / f"boot/efi/token/{KERNEL}/initrd", "x")
    entry = f"version {KERNEL}\nlinux /token/{KERNEL}/linux\ninitrd /token/{KERNEL}/initrd\n"
    machinetree.write(root / "boot/efi/loader/entries/a.conf", entry)
    machinetree.write(root / f"boot/efi/token/{KERNEL}/linux", "image")
    machinetree.program(root / "usr/bin/kernel-install", root, "")
    machinetree.program(root / MAKER, root, "for n in 1 2 3 4 5 6; do echo line $n; done; exit 3")
    with pytest.raises(BuildError) as caught:
        initrd.make(root, KERNEL, 20.0, ())
    error = caught.value
    assert (error.kind, error.what) == (Kind.INITRD, "update-initramfs ended with 3")
    assert error.fix == f"Run: update-initramfs -c -k {KERNEL}"
    assert error.evidence == ("line 3", "line 4", "line 5", "line 6")
    assert machinetree.ran(root, "kernel-install") == [], "nothing is copied that was not made"
    machinetree.program(root / MAKER, root, "")
    initrd.make(root, KERNEL, 20.0, ())
    assert machinetree.ran(root, "kernel-install") == [f"add {KERNEL} /boot/vmlinuz-{KERNEL}"]


@pytest.mark.spawns
def test_a_program_that_does_not_end(root: Path) -> None:
    machinetree.program(root / MAKER, root, "sleep 60")
    with pytest.raises(BuildError, match="update-initramfs did not end within 0.1 s") as caught:
        initrd.make(root, KERNEL, 0.1, ())
    assert caught.value.where == ""


@pytest.mark.spawns
def test_it_holds_our_lock_and_its_starter_is_told_that_it_runs(root: Path) -> None:
    """A builder that dies leaves a maker at work: no other builder may begin before that has ended."""
    machinetree.program(root / MAKER, root, 'sleep 0.6; ls -l /proc/$$/fd >"$root/ran/held"')
    lock, ticks = machinetree.write(root / "lock", ""), []
    with open(lock) as held:
        initrd.make(root, KERNEL, 20.0, [held.fileno()], lambda: ticks.append(1))
    assert any(line.endswith(f"-> {lock}") for line in machinetree.ran(root, "held"))
    assert ticks


class TestInAUnit:
    UNIT = "knetstatd-initrd@6.1.0\\x2d1\\x2damd64.service"

    @pytest.fixture
    def root(self, root: Path) -> Path:
        machinetree.write(root / "usr/lib/systemd/system/knetstatd-initrd@.service", "")
        (root / "run/systemd/system").mkdir(parents=True)
        machinetree.program(root / MAKER, root, "")
        return root

    @pytest.mark.spawns
    def test_it_is_made_there(self, root: Path) -> None:
        machinetree.tell(root, "systemctl start", f"{machinetree.WAIT}; sleep 0.1")  # it has more time than none
        initrd.make(root, KERNEL, 20.0, (), (root / "ticked").touch)
        assert (root / "ticked").exists(), "its starter is told that it runs"
        assert machinetree.ran(root, "update-initramfs") == [], "its hooks may do anything"
        assert machinetree.ran(root, "systemctl")[0] == f"start -- {self.UNIT}"

    @pytest.mark.spawns
    @pytest.mark.parametrize(("result", "said"), [("exit-code", "exit-code"), ("", "no result")])
    def test_it_fails_there(self, root: Path, result: str, said: str) -> None:
        machinetree.tell(root, "systemctl show", f"echo ActiveState=failed; echo Result={result}; exit")
        with pytest.raises(BuildError) as caught:
            initrd.make(root, KERNEL, 20.0, ())
        error = caught.value
        assert (error.kind, error.what, error.where) == (Kind.INITRD, f"{self.UNIT} ended with {said}", self.UNIT)
        assert error.fix == f"Run: update-initramfs -c -k {KERNEL}"
