# SPDX-License-Identifier: GPL-2.0-or-later
"""The proof against real kernels and their thousand modules: on its own kernel each loads, and kmod says the same of the rest.

No container is booted: the kernels' packages are unpacked side by side under one root, as dpkg would.
"""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from knetstatd.core.model import Result
from knetstatd.formats import module_file
from knetstatd.verify import loader_checks, target_kernel, verify

from . import rig, roots

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


def output(*argv: str | Path) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=True, env=ENVIRONMENT)
    return done.stdout + done.stderr


class Kernels:
    """Every kernel of the rig under one root, /lib a symlink to usr/lib as on Debian."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "usr/lib/modules").mkdir(parents=True)
        (root / "lib").symlink_to("usr/lib")
        self.releases: list[str] = []
        for suite in rig.SUITES:
            made = roots.root(suite)
            with roots.in_use(made):
                for kernel in made.kernels():
                    self.releases.append(kernel.release)
                    for package in sorted(made.repo.glob(f"linux-*-{kernel.release}_*.deb")):
                        # Through tar: dpkg-deb -x would put a directory in the place of the symlink /lib.
                        subprocess.run(
                            f"dpkg-deb --fsys-tarfile '{package}' | tar -x --keep-directory-symlink -C '{root}'",
                            shell=True,
                            check=True,
                            env=ENVIRONMENT,
                        )
        for release in self.releases:
            output("depmod", "-b", root, release)

    def modules(self, release: str, step: int) -> Iterator[Path]:
        found = sorted((self.root / "usr/lib/modules" / release / "kernel").rglob("*.ko*"))
        assert len(found) > 500
        return iter(found[::step])


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    return Kernels(tmp_path_factory.mktemp("kernels"))


def test_a_kernels_own_modules_load(kernels: Kernels) -> None:
    for release in kernels.releases:
        facts = target_kernel.facts(kernels.root, release)
        for path in kernels.modules(release, 5):
            proof = verify.verify(kernels.root, release, path, facts=facts)
            assert proof.loads, (release, path.name, proof.worst)
            assert proof.worst is None, (release, path.name, proof.worst)


def test_no_module_of_a_kernel_has_another_form_than_its_linker_gave_it(kernels: Kernels) -> None:
    """All of them: what is strict with a damaged file must not be so with a good one."""
    count = 0
    for release in kernels.releases:
        for path in kernels.modules(release, 1):
            assert module_file.from_path(path, formed=True).form == "", path
            count += 1
    assert count > 5000


def test_read_as_modinfo_and_modprobe_read(kernels: Kernels) -> None:
    for release in kernels.releases:
        for path in kernels.modules(release, 40):
            module = module_file.from_path(path)
            info: dict[str, list[str]] = {}
            for entry in output("modinfo", "-0", path).split("\0"):
                key, _, value = entry.partition("=")
                info.setdefault(key, []).append(value)
            first = {key: values[0] for key, values in info.items()}
            assert module.vermagic == first["vermagic"]
            assert module.license == first["license"]
            assert ",".join(module.depends) == first.get("depends", "")
            assert module.import_ns == tuple(info.get("import_ns", ()))
            assert module.intree
            assert module.signed == ("sig_id" in info)
            assert (module.crcs is not None) == ("modversions" in module.flags)
            if module.crcs is not None:
                lines = output("modprobe", "--dump-modversions", path).splitlines()
                assert module.crcs == {name: int(crc, 16) for crc, name in (line.split("\t") for line in lines)}


def test_other_kernels_symbols_as_depmod_sees_them(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each module and symbol the same answer as `depmod -e -E Module.symvers`, which knows the kernel's own exports."""
    monkeypatch.setattr(loader_checks, "_SHOWN", 10**6)
    compared = 0
    facts = {release: target_kernel.facts(kernels.root, release) for release in kernels.releases}
    for here in kernels.releases:
        for there in kernels.releases:
            # Where one side has no checksums depmod compares with zero; the kernel compares releases.
            if here == there or not (facts[here].modversions and facts[there].modversions):
                continue
            paths = list(kernels.modules(here, 16))
            own, symvers = {loader_checks.LAYOUT}, kernels.root
            for release in (here, there):
                symvers = facts[release].symvers or kernels.root
                own |= {line.split("\t")[1] for line in symvers.read_text().splitlines() if "\tvmlinux\t" not in line}
            said = output("depmod", "-b", kernels.root, "-n", "-e", "-E", symvers, here, *paths)
            found = set(re.findall(r"WARNING: (\S+) (disagrees|needs)\D* symbol (\S+)", said))
            theirs = {(Path(path).name, verb, name) for path, verb, name in found}
            ours = set()
            for path in paths:
                proof = verify.verify(kernels.root, there, path, facts=facts[there])
                for check in proof.checks:
                    if check.name == "symbols" and "'Unknown symbol" in check.reason:
                        ours |= {(path.name, "needs", name) for name in check.found.split(", ")}
                    if check.name == "crcs" and check.result is Result.FAIL:
                        ours |= {(path.name, "disagrees", name) for name in check.found.partition(": ")[2].split(", ")}
                assert proof.loads == (not any(name == path.name for name, _, _ in ours)), (here, there, path.name)
            assert {row for row in ours if row[2] not in own} == {row for row in theirs if row[2] not in own}
            compared += len(theirs)
    assert compared > 1000


def test_the_release_decides_without_modversions(kernels: Kernels) -> None:
    """The 7 series, where the story happens as it did."""
    plain = [release for release in kernels.releases if target_kernel.facts(kernels.root, release).modversions is False]
    assert len(plain) > 1
    for here, there in zip(plain, reversed(plain), strict=True):
        if here == there:
            continue
        for path in kernels.modules(here, 100):
            found = {check.name: check for check in verify.verify(kernels.root, there, path).checks}
            assert found["release"].result is Result.FAIL
            assert f"version magic '{here} " in found["release"].reason
            assert f"should be '{there} " in found["release"].reason
            assert found["crcs"].result is Result.NOT_APPLICABLE


def test_the_file_that_modprobe_takes(kernels: Kernels) -> None:
    for release in kernels.releases:
        for path in kernels.modules(release, 50):
            name = path.name.partition(".ko")[0]
            expected = output("modinfo", "-b", kernels.root, "-k", release, "-n", name).strip()
            proof = verify.prove(kernels.root, release, [name])[0]
            assert Path(proof.path).samefile(expected)
            assert proof.loads, (release, name, proof.worst)
