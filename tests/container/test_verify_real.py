# SPDX-License-Identifier: GPL-2.0-or-later
"""The proof against real kernels and their thousand modules: on its own kernel each loads, and kmod says the same of the rest.

No container is booted: the kernels' packages are unpacked side by side under one root, as dpkg would.
"""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import oracles
import pytest

from knetstatd.core import names
from knetstatd.core.model import Result
from knetstatd.formats import elf, module_file, pkcs7
from knetstatd.machine import modprobe_conf
from knetstatd.verify import loader_checks, target_kernel, verify
from tests.vm import modules

from . import rig, roots

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


def output(*argv: str | Path) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=True, env=ENVIRONMENT)
    return done.stdout + done.stderr


class Kernels:
    """Every kernel of the rig under one root, with this machine's kmod; /lib is a symlink to usr/lib, as on Debian."""

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
        modules.add_kmod(root)  # what unpacks the modules here, and answers the tests' questions

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


def test_sections_symbols_and_relocations_as_pyelftools_reads_them(kernels: Kernels) -> None:
    count = 0
    for release in kernels.releases:
        for path in kernels.modules(release, 100):
            data = module_file.unsigned(path.read_bytes())
            read, file = oracles.elf(data), elf.Elf(elf.Source(-1, 0, data), len(data))
            symbols = elf.Symbols(file)
            assert (file.machine.machine, file.machine.bits, file.machine.little) == (read.machine, read.bits, read.little)
            assert [(file.name(one).decode(), *one[1:]) for one in file.sections] == read.sections, path
            assert [
                oracles.Symbol(symbols.name(row), symbols.sections[row], symbols.bind(row), symbols.value(row))
                for row in range(len(symbols.names))
            ] == read.symbols, path
            rela = {file.name(one).decode(): one.size // 24 for one in file.sections if one.kind == elf.RELA}
            assert rela == read.relocations, path
            count += sum(rela.values())
    assert count > 10_000


def test_signers_as_asn1crypto_and_modinfo_read_them(kernels: Kernels) -> None:
    count = 0
    for release in kernels.releases:
        for path in kernels.modules(release, 40):
            signature = module_file.from_path(path).signature
            if signature is None:
                continue
            ours, theirs = pkcs7.signature(signature), oracles.signer(signature)
            assert (ours.key.issuer, int.from_bytes(ours.key.serial, "big"), ours.key.skid) == theirs[:3], path
            assert (ours.digest, ours.value) == (theirs.digest, theirs.value), path
            fields = ("sig_id", "signer", "sig_key", "sig_hashalgo")
            shown = {name: output("modinfo", "-F", name, path).strip() for name in fields}
            if shown["sig_key"]:  # kmod without libcrypto tells the kind alone
                assert (shown["sig_id"], shown["sig_hashalgo"]) == ("PKCS#7", ours.digest)
                assert int(shown["sig_key"].replace(":", ""), 16) == theirs.serial
                assert str(ours.key).startswith(shown["signer"])
            count += 1
    assert count > 50


RULES = """\
blacklist snd-pcm
blacklist  loop
install dummy /bin/false
install tun-* /bin/true \\
  --more
alias net-pf-99 dummy
alias my-[a-c]-card e1000e
options loop max_loop=8
softdep loop pre: crc32
# blacklist commented
"""


def test_rules_as_modprobe_reads_them(tmp_path: Path) -> None:
    """`modprobe --showconfig` merges one directory; the names and the commands are those that we find in it."""
    directory = tmp_path / "etc/modprobe.d"
    directory.mkdir(parents=True)
    (directory / "b.conf").write_text(RULES)
    (directory / "a.conf").write_text("blacklist first-one\n")
    (directory / "ignored.txt").write_text("blacklist nobody\n")
    lines = output("modprobe", "-C", directory, "--showconfig").splitlines()
    shown = [line.split(maxsplit=2) for line in lines if line.strip()]
    rules = modprobe_conf.rules(tmp_path)
    assert [line.module for line in rules.blacklist] == [words[1] for words in shown if words[0] == "blacklist"]
    assert [[line.module, *line.text.split()] for line in rules.install] == [
        [words[1], *words[2].split()] for words in shown if words[0] == "install"
    ]
    ours = [(line.module, names.canonical(line.text)) for line in rules.alias]
    # What a kernel's own modules.alias adds comes after the files.
    assert ours == [(words[1], names.canonical(words[2])) for words in shown if words[0] == "alias"][: len(ours)]
