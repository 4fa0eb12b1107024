# SPDX-License-Identifier: GPL-2.0-or-later
"""Which values of a module's parameters a kernel takes: each is written to the kernel, which parses it as at the loading."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING

import pytest

from knetstatd.formats import compression
from knetstatd.machine import signature_policy
from knetstatd.rehearsal import vm
from knetstatd.verify import install_checks
from tests import kernels
from tests.vm.conftest import QUICK, SERIES

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.vm

KINDS = (
    "byte",
    "short",
    "ushort",
    "int",
    "uint",
    "hexint",
    "long",
    "ulong",
    "ullong",
    "bool",
    "invbool",
    "bint",
    "charp",
    "array of int",
)
VALUES = (
    "0", "1", "-1", "+1", "--1", "7", "08", "010", "0x10", "0X1f", "0x", "x", "1x", "1.5", "1k", "255", "256", "-128", "32767",
    "32768", "-32768", "-32769", "65535", "65536", "2147483647", "2147483648", "-2147483648", "-2147483649", "4294967295",
    "4294967296", "9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809",
    "18446744073709551615", "18446744073709551616", "0b1", "0o7", "1_000", "y", "Y", "n", "N", "yes", "no", "yep", "true",
    "True", "false", "1,2", "1,x", ",1", "1,", "t", "f", "on", "off", "On", "OFF", "o", "enable", "disable", "e", "d", "2",
)  # fmt: skip
# bint is a bool in an int (kernel/params.c): module_param() takes it by that name.
SOURCE = """\
#include <linux/module.h>
{declared}
static int __init kt_init(void) {{ return 0; }}
static void __exit kt_exit(void) {{ }}
module_init(kt_init);
module_exit(kt_exit);
MODULE_LICENSE("GPL");
"""
TYPES = {"byte": "unsigned char", "ushort": "unsigned short", "uint": "unsigned int", "hexint": "unsigned int",
         "ulong": "unsigned long", "ullong": "unsigned long long", "bool": "bool", "invbool": "bool", "bint": "int",
         "charp": "char *"}  # fmt: skip


@pytest.mark.parametrize(("series", "suite"), SERIES, ids=["-".join(row) for row in SERIES])
def test_the_kernel_takes_the_same(series: str, suite: str, tmp_path: Path) -> None:
    kernel = kernels.fetch(series, "cloud-amd64", suite)
    source = tmp_path / "source"
    source.mkdir()
    plain = [kind for kind in KINDS if " " not in kind]
    each = "static {1} p_{0};\nmodule_param(p_{0}, {0}, 0644);"
    declared = "\n".join(each.format(kind, TYPES.get(kind, kind)) for kind in plain)
    declared += "\nstatic int p_list[4];\nmodule_param_array_named(p_array, p_list, int, NULL, 0644);"
    (source / "kt_param.c").write_text(SOURCE.format(declared=declared))
    (source / "Kbuild").write_text("obj-m += kt_param.o\n")
    (source / "Makefile").write_text("all:\n\t$(MAKE) -C $(KDIR) M=$(CURDIR) modules\n")
    built = kernels.make(kernel, source, tmp_path / "build", [])
    assert built.returncode == 0, built.log
    # The kernel keeps a string and takes any: it is not asked for the numbers' sake.
    asked = list(itertools.product(KINDS, VALUES))
    lines = ["#!/bin/sh", *(
        f"echo '{value}' 2>/dev/null >/sys/module/kt_param/parameters/p_{kind.split()[0]}; echo {number} $?"
        for number, (kind, value) in enumerate(asked)
    )]  # fmt: skip
    module = vm.Module("kt_param", (tmp_path / "build/kt_param.ko").read_bytes())
    said = vm.rehearse(kernel.vmlinuz, vm.Plan((module,), vm.Program("\n".join([*lines, ""]).encode())), timeout=180)
    taken = {int(number): code == "0" for number, code in re.findall(r"^(\d+) (\d+)$", said.output, re.MULTILINE)}
    assert set(taken) == set(range(len(asked))), said.console[-2000:]
    ours = {number: install_checks.is_taken(kind, value, kernel.release) for number, (kind, value) in enumerate(asked)}
    differ = [
        (*asked[number], "taken" if taken[number] else "refused") for number in taken if taken[number] is not ours[number]
    ]
    print(f"\n{kernel.release}: {len(asked)} asked, {sum(taken.values())} taken; otherwise than we say: {differ}")
    assert differ == []


@pytest.mark.parametrize("series", QUICK, ids=["-".join(row) for row in QUICK])
def test_command_lines_after_which_it_takes_no_module(series: tuple[str, str], tmp_path: Path) -> None:
    kernel = kernels.fetch(series[0], "cloud-amd64", series[1])
    file = next(kernel.modules.glob("kernel/net/ipv4/tcp_westwood.ko*"))
    module = vm.Module("tcp_westwood", compression.unpack(file.read_bytes()))
    for words, opens in (
        ("", True), ("nomodule", False), ("nomodule=0", True), ("nomodule=1x", False), ("-- nomodule", True),
        ("sysctl.kernel.modules_disabled=1", False), ("sysctl/kernel//modules_disabled=0x1", False),
        ("initcall_blacklist=x,tcp_westwood_register", False), ("initcall_blacklist=init_module", True),
        ("module_blacklist=tcp_westwood", False), ("-- module_blacklist=tcp_westwood", True),
    ):  # fmt: skip
        said = vm.rehearse(kernel.vmlinuz, vm.Plan((module,)), arguments=[words], timeout=180)
        entry = tmp_path / "boot/grub/grub.cfg"
        entry.parent.mkdir(parents=True, exist_ok=True)
        entry.write_text(f"menuentry a {{\n linux /boot/vmlinuz-{kernel.release} {words}\n}}\n")
        policy = signature_policy.policy(tmp_path, kernel.release, None, signature_policy.firmware(tmp_path))
        taken = not policy.closed and install_checks.refused("tcp_westwood", file, policy) is None
        assert (said.insertions[0].loaded, taken) == (opens, opens), (words, said.console[-1500:])
