# SPDX-License-Identifier: GPL-2.0-or-later
"""What knetstat prints is what the kernel says by its other ways, on every kernel; see zoo.c.

    pytest tests/vm/test_zoo.py -k '6.1 and options'
    pytest tests/vm/test_zoo.py -m slow           # 100,000 sockets, the mutants, the debug kernel
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from knetstatd.rehearse import Module, Outcome, Plan, Program, Rehearsal, rehearse
from tests import kernels
from tests.vm.conftest import SOURCE

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.vm

BAD = re.compile(r"WARNING|BUG|Oops|KASAN|lockdep|possible|stall|blocked for|leak|buggy|suspicious|unregister_netdevice")


def run_zoo(image: Path, module: Module, program: bytes, *arguments: str, memory: int, timeout: float) -> Rehearsal:
    return rehearse(image, Plan((module,), Program(program, arguments)), memory=memory, timeout=timeout)


def assert_fine(told: Rehearsal) -> None:
    complaints = [line for line in told.output.splitlines() if line.startswith(("FAIL", "DIE"))]
    assert told.outcome is Outcome.LOADED, (complaints, told.words[-40:], told.log[-40:], told.console[-4000:])
    assert [line for line in told.log if BAD.search(line)] == []


@pytest.mark.parametrize(
    ("arguments", "memory"),
    [
        pytest.param((), 512, id="options-and-states"),
        pytest.param(("many", "0"), 256, id="0"),
        pytest.param(("many", "10000"), 768, id="10000"),
        pytest.param(("many", "100000"), 2048, id="100000", marks=pytest.mark.slow),
        pytest.param(("unload",), 256, id="unload"),
        pytest.param(("churn", "20"), 512, id="churn"),
    ],
)
def test_zoo(
    booted: kernels.Kernel,
    build: Callable[[kernels.Kernel], Module],
    compiled: Callable[[str], bytes],
    arguments: tuple[str, ...],
    memory: int,
) -> None:
    assert_fine(run_zoo(booted.vmlinuz, build(booted), compiled("zoo"), *arguments, memory=memory, timeout=800))


# Each makes one thing wrong that the zoo must see.
MUTANTS = {
    "halved": ("READ_ONCE(sk->sk_sndbuf) / 2", "READ_ONCE(sk->sk_sndbuf)"),
    "state": ('[TCP_CLOSING]\t\t= "CLSG"', '[TCP_CLOSING]\t\t= "LACK"'),
    "diag": ("we_closed = !READ_ONCE(tp->rcv_wnd)", "we_closed = !READ_ONCE(tp->snd_wnd)"),
    "namespace": ("net_eq(sock_net(sk), seq_file_net(seq))", "true"),
    "bucket": ("\t++*pos;\n\treturn udp_seek", "\t*pos += 2;\n\treturn udp_seek"),
    "width": ("pad < 6", "pad < 5"),
    "backlog": ("recv = READ_ONCE(sk->sk_ack_backlog)", "recv = READ_ONCE(sk->sk_max_ack_backlog)"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_the_zoo_sees_a_mutant(name: str, tmp_path: Path, compiled: Callable[[str], bytes]) -> None:
    kernel = kernels.fetch("6.1")
    source = tmp_path / "source"
    shutil.copytree(SOURCE / "module", source)
    text = (source / "knetstat.c").read_text()
    old, new = MUTANTS[name]
    assert text.count(old) == 1
    (source / "knetstat.c").write_text(text.replace(old, new))
    built = kernels.make(kernel, source, tmp_path / "build", [])
    assert built.returncode == 0, built.log
    module = Module("knetstat", (tmp_path / "build/knetstat.ko").read_bytes())
    told = run_zoo(kernel.vmlinuz, module, compiled("zoo"), memory=512, timeout=400)
    assert told.outcome is Outcome.FAILED, told.console[-4000:]
    assert "FAIL" in told.output


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [(), ("unload",), ("churn", os.environ.get("KNETSTATD_CHURN", "600"))], ids="-".join)
def test_under_sanitizers(arguments: tuple[str, ...], tmp_path: Path, compiled: Callable[[str], bytes]) -> None:
    """On the kernel that tests/vm/debug-kernel.sh built; its directory is in KNETSTATD_DEBUG_KERNEL."""
    if not (directory := os.environ.get("KNETSTATD_DEBUG_KERNEL")):
        pytest.skip("KNETSTATD_DEBUG_KERNEL is not set")
    home = Path(directory)
    built = kernels.make_here(home / "build", SOURCE / "module", tmp_path / "build", [])
    assert built.returncode == 0, built.log
    module = Module("knetstat", (tmp_path / "build/knetstat.ko").read_bytes())
    told = run_zoo(home / "bzImage", module, compiled("zoo"), *arguments, memory=1536, timeout=3000)
    assert_fine(told)
