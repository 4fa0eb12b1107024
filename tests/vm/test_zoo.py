# SPDX-License-Identifier: GPL-2.0-or-later
"""What knetstat prints is what the kernel says by its other ways, on every kernel; see zoo.c.

pytest tests/vm/test_zoo.py -k '6.1 and options'
pytest tests/vm/test_zoo.py -m slow           # the other kernels, 100,000 sockets, the mutants
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from knetstatd.rehearsal.vm import Ending
from tests import kernels
from tests.vm import zoo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from knetstatd.rehearsal.vm import Module

pytestmark = pytest.mark.vm


@pytest.mark.parametrize(
    ("arguments", "memory"),
    [
        pytest.param((), 512, id="options-and-states"),
        pytest.param(("many", "0"), 256, id="0"),
        pytest.param(("many", "1"), 256, id="1"),
        pytest.param(("many", "10000"), 768, id="10000"),
        pytest.param(("many", "100000"), 2048, id="100000", marks=pytest.mark.slow),
        pytest.param(("crowd", "2000"), 512, id="crowd"),
        pytest.param(("unload",), 256, id="unload"),
        pytest.param(("churn", "20"), 512, id="churn"),
        pytest.param(("reload", "20"), 512, id="reload"),
    ],
)
def test_zoo(
    booted: kernels.Kernel, build: Callable[[kernels.Kernel], Module], program: bytes, arguments: tuple[str, ...], memory: int
) -> None:
    modules = [build(booted), *zoo.sock_diag(booted)]
    zoo.assert_fine(zoo.run(booted.vmlinuz, modules, program, *arguments, memory=memory, timeout=800))


# Each makes one thing wrong that the zoo must see, and the part of the zoo that does.
MUTANTS = {
    "halved": ("READ_ONCE(sk->sk_sndbuf) / 2", "READ_ONCE(sk->sk_sndbuf)", ()),
    "state": ('[TCP_CLOSING]\t\t= "CLSG"', '[TCP_CLOSING]\t\t= "LACK"', ()),
    "diag": ("we_closed = !READ_ONCE(tp->rcv_wnd)", "we_closed = !READ_ONCE(tp->snd_wnd)", ()),
    "bare placeholder": (
        "return put_tcp_state(p, READ_ONCE(tw->tw_substate));",
        'return put(put_tcp_state(p, READ_ONCE(tw->tw_substate)), "     ");',
        (),
    ),
    "bare request": (
        "return put_tcp_state(p, TCP_NEW_SYN_RECV);",
        'return put(put_tcp_state(p, TCP_NEW_SYN_RECV), "     SO_REUSEADDR=0");',
        (),
    ),
    "namespace": ("net_eq(sock_net(sk), seq_file_net(seq))", "true", ()),
    "position": ("\t++*pos;\n\treturn udp_seek", "\t*pos += 2;\n\treturn udp_seek", ()),
    "width": ("pad < 6", "pad < 5", ()),
    "backlog": ("recv = READ_ONCE(sk->sk_ack_backlog)", "recv = READ_ONCE(sk->sk_max_ack_backlog)", ()),
    "last bucket": ("1 + listening + hinfo->ehash_mask + 1", "1 + listening + hinfo->ehash_mask / 2", ("many", "10000")),
    "wrapped": (
        "if (timeo < HZ) {",
        "if (timeo >= HZ) {\n\t\tp = put_u64(p, timeo / HZ * 1ULL * MSEC_PER_SEC + ms);\n\t} else if (timeo < HZ) {",
        (),
    ),
    "torn": (
        "seq_write(seq, spare, put_row(spare, sk) - spare);",
        "if (seq_write(seq, spare, put_row(spare, sk) - spare))\n\t\tseq->count = 0;",
        ("crowd", "2000"),
    ),
    "file": ("while (count--)", "while (--count)", ("unload",)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_the_zoo_sees_a_mutant(name: str, tmp_path: Path, program: bytes) -> None:
    kernel = kernels.fetch("6.1")
    old, new, arguments = MUTANTS[name]
    module = zoo.module(tmp_path, (old, new), make=lambda source, into: kernels.make(kernel, source, into, []))
    outcome = zoo.run(kernel.vmlinuz, [module, *zoo.sock_diag(kernel)], program, *arguments, memory=768, timeout=400)
    # A file that stays behind is found by a reader too, which the kernel does not survive.
    assert outcome.ending is Ending.PANIC or (outcome.ending is Ending.FAILED and "FAIL" in outcome.output), outcome.console[
        -4000:
    ]
