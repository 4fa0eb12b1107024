# SPDX-License-Identifier: GPL-2.0-or-later
"""Secure Boot as it is: real firmware, Debian's signed shim, GRUB and kernel; what `check` says before a boot, the boot shows.

    pytest tests/vm/test_secure_boot.py -m vm          # the slow ones, too: six boots of each kernel, two minutes

The module is signed as the daemon signs, by the key that DKMS has.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from knetstatd.build import sign
from knetstatd.cli.main import main
from knetstatd.core.exits import Exit
from knetstatd.state import paths
from tests import kernels
from tests.vm import modules, secure_boot

if TYPE_CHECKING:
    from collections.abc import Callable

    from knetstatd.rehearsal import vm

pytestmark = pytest.mark.vm

SERIES = [("6.12", "trixie"), pytest.param(("6.1", "bookworm"), marks=pytest.mark.slow)]
REFUSED = "Loading of module with unavailable key is rejected"


class Installed:
    """A machine's root on which knetstat is installed, signed by a key that was made for it."""

    def __init__(self, kernel: kernels.Kernel, directory: Path, module: bytes) -> None:
        self.kernel, self.root = kernel, directory / "root"
        modules.machine(kernel, self.root, {"knetstat.ko": module})
        (self.root / "var/lib/dkms").mkdir(parents=True)
        (self.root / "usr/bin").mkdir(exist_ok=True)
        (self.root / "usr/bin/openssl").symlink_to("/usr/bin/openssl")
        headers = self.root / "usr/src" / kernel.headers.name
        shutil.copy(next(kernel.tree.rglob("sign-file")), headers / "scripts/sign-file")
        key = sign.key_for(self.root, paths.places(self.root), kernel.release, headers)
        assert key is not None
        work = directory / "work"
        work.mkdir()
        self.path = self.root / "usr/lib/modules" / kernel.release / "updates/dkms/knetstat.ko"
        sign.sign(self.path, sign.prepare(key, work), work)
        self.module, self.certificate = self.path.read_bytes(), (self.root / "var/lib/dkms/mok.pub").read_bytes()
        self._register()
        self.start_with("")

    def _register(self) -> None:
        """What dkms leaves when it installs a package."""
        source, home = self.root / "usr/src/knetstat-1.0", self.root / "var/lib/dkms/knetstat"
        source.mkdir()
        conf = 'PACKAGE_NAME="knetstat"\nPACKAGE_VERSION="1.0"\nBUILT_MODULE_NAME="knetstat"\nDEST_MODULE_LOCATION="/updates"\n'
        (source / "dkms.conf").write_text(conf)
        built = home / "1.0" / self.kernel.release / os.uname().machine
        (built / "module").mkdir(parents=True)
        shutil.copy(self.path, built / "module")
        (home / "1.0/source").symlink_to("/usr/src/knetstat-1.0")
        (home / f"kernel-{self.kernel.release}-{os.uname().machine}").symlink_to(built.relative_to(home))

    def start_with(self, words: str) -> None:
        """What the boot loader tells the kernel."""
        (self.root / "boot/grub").mkdir(exist_ok=True)
        (self.root / "boot/grub/grub.cfg").write_text(f"menuentry x {{\nlinux /vmlinuz-{self.kernel.release} {words}\n}}\n")

    def firmware(self, **values: bytes) -> None:
        """These variables of the firmware, and no others."""
        # UEFI 2.10, 8.2: attributes 6 are those of a variable that is made anew at each boot.
        self._variables({secure_boot.in_efivarfs(name): b"\6\0\0\0" + value for name, value in values.items()})

    def firmware_of(self, said: secure_boot.Said) -> None:
        """The variables that a system saw which ran under this firmware."""
        self._variables(said.variables)

    def _variables(self, files: dict[str, bytes]) -> None:
        directory = self.root / "sys/firmware/efi/efivars"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        for name, data in files.items():
            (directory / name).write_bytes(data)

    def check(self, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str, str]:
        """`knetstatctl check`: the exit status, and of the verdict the state, reason and fix."""
        capsys.readouterr()
        code = main(["--root", os.fspath(self.root), "check", "--json", self.kernel.release])
        [verdict] = json.loads(capsys.readouterr().out)["verdicts"]
        return code, verdict["state"], verdict["reason"], verdict["fix"]


@pytest.fixture(params=SERIES, ids="-".join)
def installed(request: pytest.FixtureRequest, build: Callable[[kernels.Kernel], vm.Module], tmp_path: Path) -> Installed:
    series, suite = request.param
    kernel = kernels.fetch(series, "cloud-amd64", suite)
    return Installed(kernel, tmp_path, build(kernel).data)


def inserted(said: secure_boot.Said) -> tuple[bool, str]:
    """Whether the kernel took the module; if not, its words."""
    answer = said.rehearsal.insertions[-1]
    return answer.loaded, "" if answer.loaded else answer.words[0]


def test_a_key_until_it_is_enrolled(installed: Installed, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Red with the next step, and the kernel refuses it; asked for by mokutil, red; confirmed, green, and it loads."""
    assert shutil.which("mokutil"), "apt-get install mokutil"
    machine = secure_boot.Machine(installed.kernel.suite, installed.kernel, tmp_path)
    installed.firmware(SecureBoot=b"\1")
    before = installed.check(capsys)
    assert before[:2] == (Exit.FAILED, "blocked"), before
    assert before[2] == f"The key is not enrolled, and the kernel insists (Secure Boot): '{REFUSED}'"
    assert before[3].startswith("Run: mokutil --import /var/lib/dkms/mok.pub # ")

    certificate = tmp_path / "mok.pub"
    certificate.write_bytes(installed.certificate)
    ask = f"mokutil --generate-hash=secret >/tmp/hash; mokutil --import {certificate} --hash-file /tmp/hash; mokutil --list-new"
    said = machine.boot(
        {"knetstat": installed.module}, script=ask, files=[certificate, *secure_boot.with_libraries(Path("/usr/bin/mokutil"))]
    )
    assert inserted(said) == (False, REFUSED)
    assert "DKMS module signing key" in said.output, said.output
    installed.firmware_of(said)
    waiting = installed.check(capsys)
    assert waiting[:2] == (Exit.FAILED, "blocked")
    assert waiting[2].startswith("The key's enrolment is requested (mokutil --list-new)")
    assert waiting[3] == 'Reboot, and choose "Enroll MOK" on the blue screen (MokManager)'

    machine.confirm("secret")
    installed.firmware(SecureBoot=b"\1", MokListRT=secure_boot.signature_list(installed.certificate))
    assert installed.check(capsys)[:2] == (Exit.OK, "ready")
    said = machine.boot({"knetstat": installed.module})
    assert inserted(said) == (True, "")
    installed.firmware_of(said)
    assert installed.check(capsys)[:2] == (Exit.OK, "ready")


@pytest.mark.slow
def test_keys_that_are_enrolled_and_that_no_kernel_takes(
    installed: Installed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With Secure Boot off a kernel that insists takes no key of shim's, but those of the firmware, unless shim says no."""
    keys = secure_boot.signature_list(installed.certificate)
    installed.start_with("module.sig_enforce=1")
    for variables, seen, takes in (
        ({"MokList": keys}, {"MokListRT": keys}, False),
        ({"db": keys}, {"db": keys}, True),
        ({"db": keys, "MokDBState": b"\1"}, {"db": keys, "MokIgnoreDB": b"\1"}, False),
    ):
        machine = secure_boot.Machine(installed.kernel.suite, installed.kernel, tmp_path, on=False)
        for name, value in variables.items():
            machine.set(name, value)
        installed.firmware(SecureBoot=b"\0", **seen)
        before = installed.check(capsys)
        assert (before[0] == Exit.OK) is takes, (variables.keys(), before)
        said = machine.boot({"knetstat": installed.module}, "module.sig_enforce=1")
        assert inserted(said) == (takes, "" if takes else REFUSED), (variables.keys(), said.variables.keys())
        installed.firmware_of(said)
        assert installed.check(capsys) == before
        assert {name.partition("-")[0] for name in said.variables} >= {*seen}
