# SPDX-License-Identifier: GPL-2.0-or-later
"""What comes of a kernel's refusal; real refusals by real kernels are in tests/vm and tests/faults."""

from __future__ import annotations

from typing import TYPE_CHECKING

import machinetree
import pytest

from knetstatd.build import load as loading
from knetstatd.core.errors import BuildError, KnetstatdError
from knetstatd.core.model import Kind

if TYPE_CHECKING:
    from pathlib import Path

BEFORE = "6,8,1,-;kt_new: Unknown symbol earlier (err -2)\n"
FAILED = "echo \"modprobe: ERROR: could not insert 'kt_new': Exec format error\"; exit 1"
MAGIC = "3,9,1,-;kt_new: version magic '6.1.0-1 SMP mod_unload ' should be '6.1.0-2 SMP mod_unload '\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    machinetree.make(tmp_path)
    machinetree.write(tmp_path / "dev/kmsg", BEFORE)
    return tmp_path


def load(root: Path, does: str = "", records: str = "", timeout: float = 20.0) -> None:
    """Asks for kt_new, and for one more, if modprobe does this and the kernel says that."""
    machinetree.write(root / "records", records)
    machinetree.tell(root, "modprobe -b", f'cat "$root/records" >>"$root/dev/kmsg"\n{does}')
    loading.load(root, [("kt-new", "kt_new"), ("kt_next", "kt_next")], timeout)


@pytest.mark.spawns
def test_loaded(root: Path) -> None:
    with pytest.raises(BuildError):
        load(root)  # kt-new is called kt_new when it is live
    machinetree.tell(root, "modprobe -b", "set -- -b -- $(echo $3 | tr - _)")
    loading.load(root, [("kt-new", "kt_new"), ("kt_next", "kt_next")])
    assert machinetree.ran(root, "modprobe") == ["-b -- kt-new", "-b -- kt-new", "-b -- kt_next"]


@pytest.mark.spawns
@pytest.mark.parametrize(
    ("does", "records", "kind", "reason", "evidence"),
    [
        (FAILED, f"6,8,1,-;kt: other\n{MAGIC}", Kind.MISMATCH, "it was built for 6.1.0-1", "magic"),
        (FAILED, "3,9,1,-;kt_new: Unknown symbol gone (err -2)\n A=other\n", Kind.MISMATCH, "no symbol gone", "(err -2)"),
        (FAILED, "5,9,1,-;Loading of unsigned module is rejected\n", Kind.REFUSED, "its signature is none", "unsigned"),
        (FAILED, "6,9,1,-;Module kt_new is blacklisted\n", Kind.DENIED, "module_blacklist=", "blacklisted"),
        (
            "echo other; echo; echo 1; echo 2; " + FAILED,
            "6,9,1,-;kt-new: no device here\n",
            Kind.REFUSED,
            "Exec format error",
            "no device here",
        ),
        (FAILED, "", Kind.REFUSED, "Exec format error", "Exec format error"),
        ("kill -9 $$", "4,9,1,-;BUG: kernel NULL pointer\n", Kind.REFUSED, "its init died", "BUG"),
        ("exit 1", "", Kind.REFUSED, "modprobe says nothing", ""),
        ("exit 0", "", Kind.DENIED, "modprobe's configuration", ""),
    ],
)
def test_refused(root: Path, does: str, records: str, kind: Kind, reason: str, evidence: str) -> None:
    with pytest.raises(BuildError) as e:
        load(root, does, records)
    assert (e.value.kind, reason in e.value.what) == (kind, True), e.value.what
    assert evidence in "\n".join(e.value.evidence)
    assert "other" not in "\n".join(e.value.evidence)
    assert "earlier" not in "\n".join(e.value.evidence), "that was said before"
    assert (e.value.fix == "") is (kind is Kind.MISMATCH)
    assert e.value.where == ("/etc/modprobe.d" if does == "exit 0" else "")
    assert machinetree.ran(root, "modprobe") == ["-b -- kt-new"], "the next one may need it"


@pytest.mark.spawns
def test_an_init_that_does_not_return(root: Path) -> None:
    with pytest.raises(BuildError, match="its init does not return") as e:
        load(root, "exec sleep 30", timeout=0.3)
    assert e.value.kind == Kind.REFUSED


@pytest.mark.spawns
def test_a_module_that_stays_coming_is_not_loaded(root: Path) -> None:
    machinetree.write(root / "sys/module/kt_new/initstate", "coming\n")
    with pytest.raises(BuildError, match="the kernel does not load kt_new"):
        load(root, FAILED)


@pytest.mark.spawns
def test_a_log_that_may_not_be_read(root: Path) -> None:
    (root / "dev/kmsg").unlink()
    with pytest.raises(BuildError, match="Exec format error") as e:
        load(root, 'rm -f "$root/dev/kmsg"; ' + FAILED)
    fix = "Tell the module's author what the kernel says"
    assert e.value.fix == f"{fix}; journalctl -k -b may have it"
    machinetree.write(root / "dev/kmsg", "")
    with pytest.raises(BuildError, match="Exec format error") as e:
        load(root, FAILED, "6,9,1,-;kt-new: no device here\n")
    assert e.value.fix == fix


@pytest.mark.spawns
def test_a_machine_without_modprobe(root: Path) -> None:
    (root / "usr/sbin/modprobe").unlink()
    with pytest.raises(KnetstatdError, match="cannot be started"):
        load(root)


def test_records_of_the_kernel_s_log() -> None:
    """/dev/kmsg: one for each read; what was overwritten is an error of its own, and later ones follow it."""
    records: list[bytes | OSError] = [
        b"6,1,1,-;one\n", BrokenPipeError(), b"6,3,1,-;two; and more\n SUBSYSTEM=x\n", b"6,5,1,-;\xff\n",
        BlockingIOError(), b"6,4,1,-;x\n",
    ]  # fmt: skip

    def read() -> bytes:
        record = records.pop(0)
        if isinstance(record, OSError):
            raise record
        return record

    assert list(loading.messages(read)) == ["one", "two; and more", "\ufffd"]
