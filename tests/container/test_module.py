# SPDX-License-Identifier: GPL-2.0-or-later
"""The bundled module on a Debian machine: put into DKMS, built for two kernels, judged, loaded, taken out again."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

import knetstatd
from knetstatd.formats import compression, knetstat_proc
from knetstatd.rehearsal import vm

from . import product

if TYPE_CHECKING:
    from pathlib import Path

    from .rig import Container, Kernel

CHECKOUT = "/root/knetstatd"
MODULE = f"knetstat/{knetstatd.__version__}"
PLACES = ("/usr/src", "/var/lib/dkms", "/lib/modules", "/etc/modprobe.d", "/etc/modules-load.d", "/etc/dkms")


def checkout(c: Container) -> None:
    c.path(CHECKOUT).mkdir()
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(product.CHECKOUT / name, c.path(CHECKOUT))
    shutil.copytree(product.CHECKOUT / "module", c.path(f"{CHECKOUT}/module"))


@pytest.fixture
def c(machine: Container) -> Container:
    checkout(machine)
    return machine


def target(c: Container, name: str) -> None:
    c.run(["make", "-C", CHECKOUT, name], check=True)


def everything(c: Container) -> set[str]:
    """The name of each file where modules are, and what depmod made of those of each kernel."""
    names = c.output("find", *PLACES, "-printf", r"%p %y %m %l\n")
    return {*names.splitlines(), *c.output("sh", "-c", "cat /lib/modules/*/modules.dep").splitlines()}


def answer_of_the_kernel(c: Container, kernel: Kernel) -> vm.Rehearsal:
    images = [c.path(f"/boot/vmlinuz-{kernel.release}"), c.path(f"/usr/lib/modules/{kernel.release}/vmlinuz")]
    image: Path = next(path for path in images if path.exists())
    file = c.module_file(kernel, "knetstat")
    assert file is not None
    module = vm.Module("knetstat", compression.unpack(file.read_bytes()))
    plan = vm.Plan((module,), None, tuple(f"/{kind.path}" for kind in knetstat_proc.Kind))
    return vm.rehearse(image, plan, timeout=180, memory=512)


def test_two_kernels_at_once(c: Container) -> None:
    old, new = c.kernels()[:2]
    product.install(c, ["knetstat"])
    c.install_kernel(new)
    before = everything(c)
    target(c, "module-install")
    target(c, "module-install")  # again changes nothing, and is no error
    c.run(["dkms", "install", MODULE, "-k", old.release, "-k", new.release], check=True, timeout=600)
    for kernel in (old, new):
        product.right_module(c, kernel, "knetstat")
        judged = c.run(["knetstatctl", "verify", "--kernel", kernel.release])
        assert judged.returncode == 0, judged.stdout
        outcome = answer_of_the_kernel(c, kernel)
        assert outcome.ending is vm.Ending.LOADED, outcome.console
        for kind in knetstat_proc.Kind:
            assert knetstat_proc.parse(outcome.files[f"/{kind.path}"], kind) == []
    target(c, "module-uninstall")
    # The machine's signing key is dkms's own, made at its first build of anything.
    assert {line for line in everything(c) if "/mok." not in line} == before
    target(c, "module-uninstall")


def test_installed_again_and_only_added(bookworm: Container) -> None:
    """A change of any file is copied, and nothing else is; and it goes without having been built."""
    c = bookworm
    checkout(c)
    before = everything(c)
    target(c, "module-install")
    there = c.path(f"/usr/src/{MODULE.replace('/', '-')}")
    stamps = {path.name: path.stat().st_ino for path in there.iterdir()}
    assert set(stamps) == {path.name for path in (product.CHECKOUT / "module").iterdir()}
    target(c, "module-install")
    assert {path.name: path.stat().st_ino for path in there.iterdir()} == stamps
    for name in stamps:
        file = c.path(f"{CHECKOUT}/module/{name}")
        file.write_text(file.read_text() + "\n")
        target(c, "module-install")
        assert (there / name).read_text() == file.read_text(), name
    assert "added" in c.output("dkms", "status", MODULE)
    target(c, "module-uninstall")
    assert everything(c) == before


def test_a_module_of_another_kernel_is_called_loadable_if_the_kernel_takes_it(c: Container) -> None:
    """The one for the other kernel, in its place: it is wrong there, and `verify` says of loading what the kernel says."""
    old, new = c.kernels()[:2]
    product.install(c, ["knetstat"])
    c.install_kernel(new)
    target(c, "module-install")
    c.run(["dkms", "install", MODULE, "-k", old.release, "-k", new.release], check=True, timeout=600)
    there, here = c.module_file(old, "knetstat"), c.module_file(new, "knetstat")
    assert there is not None
    assert here is not None
    shutil.copy(there, here)
    loose = c.run(["knetstatctl", "verify", f"/{here.relative_to(c.root)}", "--kernel", new.release])
    installed = c.run(["knetstatctl", "verify", "--kernel", new.release])
    outcome = answer_of_the_kernel(c, new)
    loads = outcome.ending is vm.Ending.LOADED
    assert (loose.returncode == 0) == loads, (loose.stdout, outcome.words)
    assert installed.returncode == 1, "whether it loads or not, it is not the one that was built"
    word = "may load, but is not the right one" if loads else "will not load"
    assert f": {word} on {new.release}\n" in installed.stdout, (installed.stdout, outcome.words)
