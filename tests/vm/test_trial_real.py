# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel did with a module, and what becomes of that: an answer, or none; on the oldest and the newest kernel.

pytest tests/vm/test_trial_real.py -k 'bug and 7.3'
"""

from __future__ import annotations

import lzma
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from knetstatd.core import config
from knetstatd.core.model import Answer, Outcome, Result
from knetstatd.rehearsal import answers, rehearse
from knetstatd.state import rehearsal_results
from knetstatd.verdict.observe import Machine
from knetstatd.verify import verify
from tests import kernels
from tests.vm import modules
from tests.vm.conftest import QUICK
from tests.vm.zoo import SOURCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from knetstatd.rehearsal import vm

    Zoo = Callable[[kernels.Kernel], dict[str, bytes]]

pytestmark = pytest.mark.vm

TIMEOUT = 180.0  # the machine may be shared
HERE = Path("/")


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """The modules of modules.py for a kernel."""
    made: dict[str, dict[str, bytes]] = {}

    def build(kernel: kernels.Kernel) -> dict[str, bytes]:
        if kernel.release not in made:
            made[kernel.release] = modules.build(kernel, tmp_path_factory.mktemp("modules"))
        return made[kernel.release]

    return build


def ask(
    kernel: kernels.Kernel,
    root: Path,
    files: dict[str, bytes],
    arguments: tuple[str, ...] = (),
    timeout: float = TIMEOUT,
    without: str = "",
) -> tuple[Answer, bool, str]:
    """What the kernel says of the first of the modules when all are installed; whether `verify` finds nothing against it, and
    on what the two disagree. without: one of the kernel's own that is not there."""
    modules.machine(kernel, root, files)
    if without:
        [path] = (root / "lib/modules" / kernel.release).rglob(f"{without}.ko*")
        path.unlink()
        subprocess.run(["depmod", "-b", root, kernel.release], check=True, capture_output=True)
    modules.add_kmod(root)
    machine = Machine(root, config.Config())
    name = next(iter(files)).partition(".ko")[0]
    look = machine.look(kernel.release)
    proofs = [proof for _, proof in machine._proofs.installed(look, {name: None})]
    subject = rehearsal_results.subject_of(root, kernel.release, name, proofs, arguments)
    assert subject is not None
    answer = rehearse.carry_out(HERE, subject, rehearse.inputs(subject), timeout)
    # Of a file that dkms did not build, a 7.x kernel alone knows whether it takes the type information.
    loads = all(proof.holds(frozenset({"btf"})) for proof in proofs)
    return answer, loads, answers.disagreement(answer, proofs)


def xz(data: bytes) -> bytes:
    """As the kernel's own decompressor takes it."""
    return lzma.compress(data, check=lzma.CHECK_CRC32)


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-c"], input=data, capture_output=True, check=True).stdout


@pytest.mark.parametrize("packed", [("", bytes), (".xz", xz), (".zst", zstd)], ids=["ko", "xz", "zst"])
def test_a_good_module(
    booted: kernels.Kernel,
    build: Callable[[kernels.Kernel], vm.Module],
    packed: tuple[str, Callable[[bytes], bytes]],
    tmp_path: Path,
) -> None:
    suffix, pack = packed
    answer, loads, disagreement = ask(booted, tmp_path, {f"knetstat.ko{suffix}": pack(build(booted).data)})
    assert answer.outcome is Outcome.LOADED, answer
    assert (loads, disagreement, answer.reason, answer.remark) == (True, "", "", "")
    assert answer.machine in ("KVM", "emulation")


@pytest.mark.parametrize(("series", "suite"), QUICK)
def test_a_good_module_on_a_generic_kernel(
    series: str, suite: str, build: Callable[[kernels.Kernel], vm.Module], tmp_path: Path
) -> None:
    """The other tests take cloud kernels, whose images are a third as large."""
    kernel = kernels.fetch(series, "amd64", suite)
    answer, loads, disagreement = ask(kernel, tmp_path, {"knetstat.ko": build(kernel).data})
    assert (answer.outcome, loads, disagreement) == (Outcome.LOADED, True, ""), answer
    answer, loads, disagreement = ask(kernel, tmp_path / "x", {"knetstat.ko": build(kernel).data}, ("module.sig_enforce=1",))
    assert (answer.outcome, answer.check) == (Outcome.REFUSED, "signature"), answer


def test_what_a_module_needs_goes_in_before_it(booted: kernels.Kernel, zoo: Zoo, tmp_path: Path) -> None:
    answer, loads, disagreement = ask(booted, tmp_path, {"kt_tunnel.ko": zoo(booted)["kt_tunnel"]})
    assert (answer.outcome, loads, disagreement) == (Outcome.LOADED, True, ""), answer
    assert any("setup_udp_tunnel_sock" in line and "[udp_tunnel]" in line for line in answer.words), answer.words


@pytest.mark.parametrize(
    ("name", "outcome", "check", "reason"),
    [
        ("kt_einval", Outcome.DECLINED, "", ""),
        ("kt_nodev", Outcome.DECLINED, "", ""),
        ("kt_noent", Outcome.UNDECIDED, "", "kt_noent asks for something that the rehearsal's machine does not have"),
        ("kt_bug", Outcome.PANIC, "panic", "the kernel gives up while it loads kt_bug"),
        ("kt_reset", Outcome.PANIC, "panic", "the machine resets itself while it loads kt_reset"),
        ("kt_undef", Outcome.REFUSED, "symbols", "the kernel refuses kt_undef: that kernel has no symbol kt_no_such_symbol"),
    ],
)
def test_what_its_init_does(
    booted: kernels.Kernel, zoo: Zoo, name: str, outcome: Outcome, check: str, reason: str, tmp_path: Path
) -> None:
    answer, loads, disagreement = ask(booted, tmp_path, {f"{name}.ko": zoo(booted)[name]})
    assert (answer.outcome, answer.check) == (outcome, check), answer
    assert answer.reason.startswith(reason)
    assert loads is (name != "kt_undef")
    assert not disagreement, "an init function is no matter of the analysis"
    if outcome is Outcome.DECLINED:
        assert f"proven to link, not to work: in the rehearsal's machine its init function declined ({name}: " in answer.remark
        assert not any("initcall" in line for line in answer.words)
    if name == "kt_bug":
        assert any("RIP" in line and "kt_init" in line for line in answer.words), answer.words


def test_an_init_that_hangs(zoo: Zoo, tmp_path: Path) -> None:
    kernel = kernels.fetch("5.10")
    answer, loads, _ = ask(kernel, tmp_path, {"kt_hang.ko": zoo(kernel)["kt_hang"]}, timeout=90)
    assert (answer.outcome, answer.check, loads) == (Outcome.HANG, "hang", True), answer
    assert answer.reason.endswith("while it loads kt_hang")


def test_a_time_that_is_too_short_says_nothing(zoo: Zoo, tmp_path: Path) -> None:
    kernel = kernels.fetch("5.10")
    answer, *_ = ask(kernel, tmp_path, {"kt_fine.ko": zoo(kernel)["kt_fine"]}, timeout=1)
    assert answer.outcome is Outcome.UNDECIDED
    assert "were not enough for it" in answer.reason


def test_another_kernel_s_module(booted: kernels.Kernel, build: Callable[[kernels.Kernel], vm.Module], tmp_path: Path) -> None:
    """With MODVERSIONS the checksums decide; without them the release, and before that the size of struct module."""
    other = kernels.fetch("6.1")
    answer, loads, disagreement = ask(booted, tmp_path, {"knetstat.ko": build(other).data})
    assert (answer.outcome, loads, disagreement) == (Outcome.REFUSED, False, ""), answer
    assert answer.check in (("struct-module", "release") if booted.series.startswith("7.") else ("crcs",)), answer


def test_one_wrong_checksum(zoo: Zoo, tmp_path: Path) -> None:
    kernel = kernels.fetch("5.10")
    data = bytearray(zoo(kernel)["kt_tunnel"])
    at = data.index(b"setup_udp_tunnel_sock\0" + bytes(8))  # in __versions: an unsigned long, then the name in 56 bytes
    data[at - 8] ^= 1
    answer, loads, disagreement = ask(kernel, tmp_path, {"kt_tunnel.ko": bytes(data)})
    assert (answer.outcome, answer.check, loads, disagreement) == (Outcome.REFUSED, "crcs", False, ""), answer
    assert "the symbol setup_udp_tunnel_sock has another checksum there" in answer.reason


def test_a_dependency_that_is_not_installed(booted: kernels.Kernel, zoo: Zoo, tmp_path: Path) -> None:
    """The kernel has the symbol's name in its headers, and nobody to export it; test_what_a_module_needs_… is the twin."""
    answer, loads, disagreement = ask(booted, tmp_path, {"kt_tunnel.ko": zoo(booted)["kt_tunnel"]}, without="udp_tunnel")
    assert (answer.outcome, loads, disagreement) == (Outcome.REFUSED, False, ""), answer
    assert answer.reason == "the kernel refuses kt_tunnel: that kernel has no symbol setup_udp_tunnel_sock for it"


def test_another_compiler(build: Callable[[kernels.Kernel], vm.Module], tmp_path: Path) -> None:
    """The kernel takes what another major version made, and the analysis says that it was another."""
    kernel = kernels.fetch("6.1")
    newer, *_ = kernels.COMPILERS["trixie"].split(",")
    made = kernels.make(kernel._replace(suite="trixie"), SOURCE / "module", tmp_path / "build", [f"CC={newer}"])
    assert made.returncode == 0, made.log
    modules.machine(kernel, tmp_path / "root", {})
    found = {}
    for name, data in (("same", build(kernel).data), ("other", (made.directory / "knetstat.ko").read_bytes())):
        file = tmp_path / f"{name}.ko"
        file.write_bytes(data)
        proof = verify.verify(tmp_path / "root", kernel.release, file)
        assert proof.loads
        [found[name]] = [check for check in proof.checks if check.name == "compiler"]
        answer, *_ = ask(kernel, tmp_path / name, {"knetstat.ko": data})
        assert answer.outcome is Outcome.LOADED, answer
    assert found["same"].result is Result.PASS
    assert (found["other"].result, "gcc-12" in found["other"].fix) == (Result.WARN, True), found


def test_a_dependency_that_is_refused(zoo: Zoo, tmp_path: Path) -> None:
    """A wrong udp_tunnel among the updates, which depmod prefers."""
    kernel = kernels.fetch("5.10")
    made = zoo(kernel)
    [original] = kernel.modules.rglob("udp_tunnel.ko")
    wrong = original.read_bytes().replace(kernel.release.encode() + b" SMP", kernel.release.encode() + b" UMP")
    answer, loads, _ = ask(kernel, tmp_path, {"kt_tunnel.ko": made["kt_tunnel"], "udp_tunnel.ko": wrong})
    assert (answer.outcome, loads) == (Outcome.REFUSED, False)
    assert answer.reason.startswith("the kernel refuses udp_tunnel: "), answer


def test_unsigned_where_signatures_are_enforced(booted: kernels.Kernel, zoo: Zoo, tmp_path: Path) -> None:
    answer, *_ = ask(booted, tmp_path, {"kt_fine.ko": zoo(booted)["kt_fine"]}, ("module.sig_enforce=1",))
    assert (answer.outcome, answer.check) == (Outcome.REFUSED, "signature"), answer


def test_denied_on_the_command_line(booted: kernels.Kernel, zoo: Zoo, tmp_path: Path) -> None:
    answer, *_ = ask(booted, tmp_path, {"kt_fine.ko": zoo(booted)["kt_fine"]}, ("module_blacklist=kt_fine",))
    assert (answer.outcome, answer.check) == (Outcome.REFUSED, "denied"), answer


def test_signed_with_a_key_that_the_machine_does_not_have(zoo: Zoo, tmp_path: Path) -> None:
    """The key may well be enrolled in this machine's firmware: the rest is answered, and the signature left to the analysis."""
    kernel = kernels.fetch("5.10")
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    request = ["openssl", "req", "-new", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "9", "-subj", "/CN=nobody"]
    subprocess.run([*request, "-outform", "DER", "-keyout", key, "-out", certificate], check=True, capture_output=True)
    file = tmp_path / "kt_fine.ko"
    file.write_bytes(zoo(kernel)["kt_fine"])
    sign = next((kernel.tree / "usr/lib").glob("linux-kbuild-*/scripts/sign-file"))
    command = [f"{sign}", "sha256", f"{key}", f"{certificate}", f"{file}"]
    done = kernels.enter(kernels.buildroot(kernel.suite), [kernel.tree, tmp_path], command, 60)
    assert done.returncode == 0, done.stdout
    answer, *_ = ask(kernel, tmp_path / "root", {"kt_fine.ko": file.read_bytes()}, ("module.sig_enforce=1",))
    assert answer.outcome is Outcome.LOADED, answer
    assert answer.remark.startswith("its signature was not rehearsed")


def test_signed_with_the_kernel_s_own_key(booted: kernels.Kernel, tmp_path: Path) -> None:
    """One of the kernel's own modules, where signatures are enforced."""
    own = next(p for p in booted.modules.rglob("udp_tunnel.ko*"))
    answer, *_ = ask(booted, tmp_path, {own.name: own.read_bytes()}, ("module.sig_enforce=1",))
    assert (answer.outcome, answer.remark) == (Outcome.LOADED, ""), answer
