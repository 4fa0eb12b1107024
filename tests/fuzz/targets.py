# SPDX-License-Identifier: GPL-2.0-or-later
"""What `make fuzz` gives bytes to: a target for each parser, which asserts what the parser promises.

A target is a function of bytes, in TARGETS under the name of the module that it tries: "formats.elf". What it raises is a fault
of ours: an error that no docstring of the parser names, or an assertion about the answer.

A parser that reads files gets a root: of a `tree` the bytes are the contents of its files, with a line `====` between two of
them; of one that has `grown` they are lines that say what lies where.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knetstatd.boot import (
    boot_entries,
    boot_image,
    bootloader,
    firmware,
    grub,
    grub_cfg,
    grub_run,
    grub_script,
    grub_state,
    kernel_parameters,
    own_system,
    systemd_boot,
)
from knetstatd.boot.boot_entries import Entry
from knetstatd.boot.grub_state import Undecided
from knetstatd.core import config
from knetstatd.core.errors import ConfigError, Damaged, KernelFileError, KnetstatdError, ModuleFileError
from knetstatd.core.model import Kind, Loaded, Outcome, Proof
from knetstatd.daemon import step
from knetstatd.diagnosis import build_log, hooks, uname_traps
from knetstatd.dkms import dkms_conf, dkms_framework, dkms_program, dkms_tree
from knetstatd.formats import (
    compression,
    elf,
    form,
    initrd,
    kernel_image,
    knetstat_proc,
    module_file,
    modules_dep,
    pkcs7,
    relocations,
    symvers,
)
from knetstatd.formats.shell_assignments import Shell
from knetstatd.machine import (
    busy,
    dpkg_status,
    initramfs,
    kernels,
    kmod,
    loaded_modules,
    modprobe_conf,
    module_needs,
    paths,
    root_drivers,
    signature_policy,
)
from knetstatd.state import attempts, digests, guarded, leftovers, load_history, next_boot, rehearsal_results, sources, staged
from knetstatd.state import paths as state_paths
from knetstatd.system import documents, files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Target = Callable[[bytes], None]

# Modules of the folders of PARSERS that have no target, each with the reason.
PARSERS = ("formats", "boot", "dkms", "machine", "state")
WITHOUT = {
    "dkms.stored": "reads nothing: it writes, and takes any bytes",
    "machine.host": "puts together what boot.bootloader, machine.signature_policy and machine.modprobe_conf read",
}
TARGETS: dict[str, Target] = {}

KERNEL, PACKAGE, MODULE = "6.1.0-1-amd64", "demo", "demo"
_SEPARATOR = b"\n====\n"
_MEMORY = Path("/dev/shm")


def target(name: str, *errors: type[Exception]) -> Callable[[Target], Target]:
    """Puts a target into the table. errors: those that the parser's docstring names."""

    def put(function: Target) -> Target:
        def run(data: bytes) -> None:
            with contextlib.suppress(*errors):
                function(data)

        TARGETS[name] = run
        return function

    return put


@contextlib.contextmanager
def a_root() -> Iterator[Path]:
    """An empty directory, in memory if there is such a place."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as directory:
        yield Path(directory)


@contextlib.contextmanager
def tree(data: bytes, *names: str) -> Iterator[Path]:
    """A root with these files: the first part of the data is the first file's, and so on."""
    with a_root() as root:
        for name, contents in zip(names, data.split(_SEPARATOR), strict=False):
            write(root / name, contents)
        yield root


def write(path: Path, contents: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(contents)


@contextlib.contextmanager
def grown(data: bytes, below: str = "") -> Iterator[Path]:
    """A root in which each line is a file, or a link if it says `PATH -> WHERE`, or a directory if it ends in /."""
    with a_root() as root:
        base = root / below
        base.mkdir(parents=True, exist_ok=True)
        for line in data.decode("utf-8", "surrogateescape").split("\n")[:100]:
            name, arrow, where = line.partition(" -> ")
            parts = [part for part in name.split("/") if part not in ("", ".", "..")]
            place = base.joinpath(*parts)
            with contextlib.suppress(OSError, ValueError):
                if not parts or not Path(os.path.realpath(place.parent)).is_relative_to(root):
                    continue  # no line leads outside
                place.parent.mkdir(parents=True, exist_ok=True)
                if arrow:
                    place.symlink_to(where)
                elif name.endswith("/"):
                    place.mkdir()
                elif not os.path.lexists(place):
                    place.write_bytes(b"x")
        yield root


def is_line(text: str) -> bool:
    """Whether a text for people is one line that can be printed."""
    return text.isprintable()


# -- formats ------------------------------------------------------------------------------------------------------------------


@target("formats.compression", Damaged)
def try_compression(data: bytes) -> None:
    limit = 1 << 22
    assert isinstance(compression.kind(data), str)
    assert not (data[:8] and compression.refused(data[:8])) or compression.is_packed(data)
    for kind in initrd.OPTIONS if data[:1] == b"?" else ():  # each of them, whatever it begins with
        with contextlib.suppress(Damaged):
            for size, piece in enumerate(compression.Stream(kind, data[1:])):
                assert piece
                if size > 1 << 8:
                    break
    assert len(compression.unpack(data, limit)) <= limit


@target("formats.elf", Damaged)
def try_elf(data: bytes) -> None:
    file = elf.Elf(elf.Source(-1, 0, data), len(data))
    assert str(file.machine)
    for section in file.sections:
        assert isinstance(file.name(section), bytes)
        with contextlib.suppress(Damaged):
            assert len(file.data(section)) in (0, section.size)
    symbols = elf.Symbols(file)
    assert len(symbols.values) == len(symbols.names) == len(symbols.sections)
    for row in range(len(symbols.names)):
        symbols.name(row).encode()
        assert 0 <= symbols.bind(row) < 16
        assert symbols.value(row) == symbols.values[row]
        with contextlib.suppress(Damaged):
            assert isinstance(symbols.target(row), bytes)


@target("formats.form", Damaged)
def try_form(data: bytes) -> None:
    """As module_file asks, with whichever section is there for struct module."""
    file = elf.Elf(elf.Source(-1, 0, data), len(data))
    symbols = elf.Symbols(file)
    labels = {symbols.name(row): row for row in range(len(symbols.names)) if symbols.name(row).startswith("__ksymtab_")}
    for section in file.sections:
        if file.name(section) == b".gnu.linkonce.this_module":
            wrong = form.fault(file, symbols, section, MODULE, labels)
            assert wrong is None or is_line(wrong)
            assert all(isinstance(offset, int) for offset in form.hooks(file, symbols, section).values())


@target("formats.relocations", Damaged)
def try_relocations(data: bytes) -> None:
    file = elf.Elf(elf.Source(-1, 0, data), len(data))
    symbols = elf.Symbols(file)
    wrong = relocations.fault(file, symbols)
    assert wrong is None or is_line(wrong)
    assert relocations.misplaced(file, symbols) in (True, False)


@target("formats.module_file", ModuleFileError, Damaged)
def try_module_file(data: bytes) -> None:
    if compression.is_packed(data):
        return  # see formats.compression
    with tree(data, "demo.ko") as root:
        write(root / "demo.ko", data)
        try:
            module = module_file.from_path(root / "demo.ko", formed=True)
        except ModuleFileError as error:
            assert is_line(str(error).replace(os.fspath(root), ""))
            module = None
        try:
            assert module_file.parse(data, "demo.ko") == (module and module._replace(form=None))
        except ModuleFileError:
            assert module is None or not data, "what can be read from memory can be read from the file"
    assert data.startswith(module_file.unsigned(data))


@target("formats.initrd", Damaged)
def try_initrd(data: bytes) -> None:
    with a_root() as root:
        write(root / "initrd", data)
        inside = initrd.contents([root / "initrd"], KERNEL)
    assert inside.copies.keys() >= inside.refused.keys()
    assert inside.init in (True, False)
    assert inside.has_own("no such one") is False


@target("formats.knetstat_proc", knetstat_proc.MalformedError)
def try_knetstat_proc(data: bytes) -> None:
    text = data.decode("ascii", "replace")
    for kind in knetstat_proc.Kind:
        try:
            rows = knetstat_proc.parse(text, kind)
        except knetstat_proc.MalformedError as error:
            assert is_line(str(error))
            continue
        assert len(rows) == text.count("\n") - 1


@target("formats.modules_dep")
def try_modules_dep(data: bytes) -> None:
    names = ("modules.dep", "modules.order", "modules.builtin", "modules.dep.bin")
    with tree(data, *(f"lib/modules/{KERNEL}/{name}" for name in names)) as root:
        tables = modules_dep.Tables(root, root / "lib/modules" / KERNEL)
        for module in (MODULE, "my-lib", "my_lib", ""):
            entry = tables.entry(module)
            assert tables.has(module) is (entry is not None)
            if entry is not None:
                assert all(path.is_relative_to(root) for path in (entry.file, *entry.added, *entry.needed))
                assert tables.is_indexed(entry) in (True, False)
            assert tables.builtin(module) in (True, False)
            assert tables.shipped(module) == tables.added(module) == []
        assert all(isinstance(name, str) for name in tables.in_tree(3))


def _digest(algorithm: str) -> bytes:
    return hashlib.new(algorithm, b"contents").digest()


@target("formats.pkcs7")
def try_pkcs7(data: bytes) -> None:
    known = pkcs7.Certificate(pkcs7.Key(b"", b"", b"\1"), (1 << 1023) + 1, 65537)
    with contextlib.suppress(Damaged):
        signature = pkcs7.signature(data)
        assert is_line(str(signature.key))
        assert pkcs7.is_genuine(signature, known, _digest) in (True, False, None)
    with contextlib.suppress(Damaged):
        certificate = pkcs7.certificate(data)
        signed = pkcs7.Signature(certificate.key, "sha256", b"\1", data)
        assert pkcs7.is_genuine(signed, certificate, _digest) in (True, False, None)
        assert not certificate.key.issuer or certificate.key.is_same(certificate.key)
        assert is_line(str(certificate.key))
    with contextlib.suppress(Damaged):
        assert len(pkcs7.certificates(data)) * 28 <= len(data)


@target("formats.shell_assignments")
def try_shell_assignments(data: bytes) -> None:
    shell = Shell({"given": "value"}, ("unset",))
    for text in data.decode("utf-8", "replace").split("\n====\n"):
        shell.run(text)
        word = shell.value(text, 0)
        assert 0 <= word.end <= len(text)
    for array in shell.values.values():
        assert len(array) <= 1000
        assert all(len(text) <= 4096 for text in array.values())


@target("formats.kernel_image", KernelFileError)
def try_kernel_image(data: bytes) -> None:
    with a_root() as root:
        write(root / "vmlinuz", data)
        image = kernel_image.read(root / "vmlinuz")
    if image.symvers:
        assert symvers.search(io.BytesIO(image.symvers), ["printk"]).keys() <= {"printk"}
    assert all(line.count(b"\t") == 4 for line in image.symvers.splitlines())
    assert image.banner.startswith(f"Linux version {image.release} ")
    assert not image.vermagic or image.vermagic.startswith(f"{image.release} ")


@target("formats.symvers", KernelFileError)
def try_symvers(data: bytes) -> None:
    if compression.is_packed(data):
        return
    wanted = ["printk", "module_layout", "a"]
    with a_root() as root:
        write(root / "Module.symvers", data)
        exports = symvers.find(root / "Module.symvers", wanted)
    assert exports.keys() <= set(wanted)
    for export in exports.values():
        assert 0 <= export.crc < 1 << 32
        assert isinstance(export.module, str)


# -- boot ---------------------------------------------------------------------------------------------------------------------


@target("boot.boot_entries")
def try_boot_entries(data: bytes) -> None:
    pairs = [*boot_entries.lines(data, " \t"), *boot_entries.lines(data, "=")]
    entries = [Entry(f"{key}.conf", value, "/linux", Path("/"), value, key, value) for key, value in pairs[:8]]
    for one, (key, value) in zip(entries, pairs, strict=False):
        assert isinstance(boot_entries.matches(value, key), bool)
        assert boot_entries.compare_versions(key, value) == -boot_entries.compare_versions(value, key)
        for keeps in (True, False):
            assert isinstance(one.id(keeps_counter=keeps), str)
            for other in entries:
                here, there = (boot_entries.compare(*pair, keeps_counter=keeps) for pair in ((one, other), (other, one)))
                assert (here > 0) == (there < 0)


_EFI = "sys/firmware/efi/efivars"
_LOADER, _GLOBAL = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f", "8be4df61-93ca-11d2-aa0d-00e098032b8c"


@target("boot.boot_image")
def try_boot_image(data: bytes) -> None:
    with tree(data, "image") as root:
        release = boot_image.release(root / "image")
        assert boot_image.is_whole(root / "image") in (True, False)
    assert not release or is_line(release)


@target("boot.firmware")
def try_firmware(data: bytes) -> None:
    numbers = [f"{_EFI}/Boot{number}-{_GLOBAL}" for number in ("Order", "Current", "0001", "0002")]
    with tree(data, *numbers, f"{_EFI}/LoaderInfo-{_LOADER}", "boot/efi/EFI/a/grubx64.efi", "boot/efi/EFI/b/b.efi") as root:
        assert isinstance(firmware.text(root, "LoaderInfo"), str)
        assert len(firmware.variable(root, "BootOrder")) <= 4096
        for by_systemd_boot in (True, False):
            assert is_line(firmware.other_loader(root, [root / "boot/efi"], by_systemd_boot) or "none")


@target("boot.bootloader")
def try_bootloader(data: bytes) -> None:
    with tree(
        data, "boot/grub/grub.cfg", "boot/grub/grubenv", "boot/loader/loader.conf", "boot/loader/entries/a.conf",
        "boot/EFI/Linux/b.efi", f"{_EFI}/LoaderInfo-{_LOADER}", f"{_EFI}/LoaderEntryDefault-{_LOADER}",
        f"{_EFI}/BootNext-{_GLOBAL}", f"boot/vmlinuz-{KERNEL}", "etc/default/kexec", f"lib/modules/{KERNEL}/pkgbase",
        "boot/custom", "proc/cmdline",
    ) as root:  # fmt: skip
        following = bootloader.next_kernel(root, [KERNEL, "5.10.0-9-amd64"])
        assert is_line(following.detail + following.source)
        assert bool(following.release) is (following.basis is not bootloader.Basis.UNKNOWN)
        assert isinstance(bootloader.command_line(root, KERNEL), str)
        assert all(path.is_absolute() for path in bootloader.initrds(root, KERNEL) or ())
        assert bootloader.inputs(root)


@target("boot.kernel_parameters")
def try_kernel_parameters(data: bytes) -> None:
    line = data.decode("utf-8", "replace")
    words, own = kernel_parameters.parameters(line), kernel_parameters.own_parameters(line)
    assert words[: len(own)] == own
    assert all(word in line for word in kernel_parameters.listed(words, "a"))


@target("boot.own_system")
def try_own_system(data: bytes) -> None:
    arguments, _, rest = data.partition(_SEPARATOR)
    with tree(rest, "etc/fstab", "proc/cmdline", "efi/EFI/a/grub.cfg") as root:
        other = own_system.other(root, arguments.decode("utf-8", "replace"))
        assert not other or is_line(other)
        assert own_system.other(root, "ro quiet") == ""
        assert is_line(own_system.other_menu(root, [root / "efi"], None) or "none")


@target("boot.grub", Undecided)
def try_grub(data: bytes) -> None:
    with tree(data, "boot/grub/grub.cfg", "boot/grub/grubenv", "boot/grub2/grub.cfg", "boot/loader/entries/a.conf") as root:
        for start in grub.starts(root):
            assert start.image
            assert grub.find(root, start.image).is_relative_to(root)
        assert all(map(isinstance, grub.saved(root).values(), [str] * 999))
        choice = grub.choose(root)
    assert choice is None or is_line(choice.source + choice.detail)


@target("boot.grub_cfg", Undecided)
def try_grub_cfg(data: bytes) -> None:
    parts = dict(zip(("grub.cfg", "grubenv", "custom.cfg"), data.split(_SEPARATOR), strict=False))
    entries = list(grub_cfg.Menu(parts.get, "efi", lambda image: False).every())
    assert all(start.image and grub_state.UNKNOWN not in start.image + start.arguments for start in entries)
    try:
        start = grub_cfg.Menu(parts.get, "pc", lambda image: len(image) % 2 == 0).next()
    except Undecided as error:
        assert "\n" not in str(error)
    else:
        assert start is None or grub_state.UNKNOWN not in start.image


@target("boot.grub_run", Undecided, grub_run.Ended)
def try_grub_run(data: bytes) -> None:
    def read(name: str) -> bytes | None:
        return parts.get(name)

    parts = dict(zip(("grub.cfg", "grubenv", "custom.cfg"), data.split(_SEPARATOR), strict=False))
    script = grub_run.Script(read, "pc")
    assert script.source("grub.cfg") in (True, False, None)
    for entry in script.state.menu[:20]:
        script.enter(script.state.copy(), entry)


@target("boot.grub_script", Damaged)
def try_grub_script(data: bytes) -> None:
    try:
        body = grub_script.parse(data.decode("utf-8", "surrogateescape"))
    except Damaged as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(body, tuple)


@target("boot.grub_state")
def try_grub_state(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    value, rest = grub_state.number(text)
    assert text.endswith(rest)
    assert value is None or value >= 0
    first, others = grub_state.component(text.replace(grub_state.UNKNOWN, ""))
    assert len(first) + len(others) <= len(text)
    for name, said in grub_state.environment(data).items():
        assert "\0" not in name + said
    words = text.split(" ")
    assert grub_state.test(words, lambda operator, path: None if path else True) in (True, False, None)
    grub_state.menu_entry(words, (), False)


@target("boot.systemd_boot", Undecided)
def try_systemd_boot(data: bytes) -> None:
    names = ("loader/loader.conf", "loader/entries/a.conf", "loader/entries/b+3-1.conf", "EFI/Linux/c.efi", "linux")
    with tree(data, *names) as root:
        entries = [*systemd_boot.unified(root), *systemd_boot.entries(root), *systemd_boot.entries(root, present=False)]
        assert all(isinstance(entry.title + entry.version + entry.options, str) for entry in entries)
        said = systemd_boot.Variables(default=entries[0].title if entries else "")
        chosen = systemd_boot.choose([root], said, 0)
    assert chosen is None or chosen[1] in ("one-shot", "default", "saved", "first")


# -- dkms ---------------------------------------------------------------------------------------------------------------------


@target("dkms.dkms_conf")
def try_dkms_conf(data: bytes) -> None:
    source = "usr/src/demo-1.0"
    with tree(data, f"{source}/dkms.conf", "etc/dkms/demo.conf", "etc/dkms/demo--6.1.0-1-amd64.conf") as root:
        conf = dkms_conf.evaluate(root / source, root, PACKAGE, "1.0", KERNEL, "x86_64")
    assert len(conf.modules) <= 1000
    assert all(isinstance(fault, str) for fault in conf.faults)
    assert conf.knows("PACKAGE_NAME") in (True, False)


@target("dkms.dkms_framework")
def try_dkms_framework(data: bytes) -> None:
    with tree(data, "etc/dkms/framework.conf", "etc/dkms/framework.conf.d/a.conf") as root:
        said = dkms_framework.framework(root)
        for place in (said.dkms_tree, said.source_tree, said.install_tree):
            assert place.startswith("/")
            assert files.inside(root, place).is_relative_to(root)


@target("dkms.dkms_program")
def try_dkms_program(data: bytes) -> None:
    with a_root() as root:
        write(root / "usr/sbin/dkms", data)
        said = dkms_program.program(root)
        assert said.by_kernel or b"module" in data
        assert said.strips_cr is (b"%$CR}" in data)


@target("dkms.dkms_tree")
def try_dkms_tree(data: bytes) -> None:
    with grown(data) as root:
        registered = dkms_tree.registered(root)
        assert all(map(is_line, registered.refused))
        packages = registered.packages.values()
        for package in packages:
            assert dkms_tree.package(root, package.name) == package
            assert package.highest in package.versions
            dkms_tree.conf(root, package.name, package.highest, KERNEL, "x86_64")
            package.installed(KERNEL)
        assert isinstance(dkms_tree.installed(packages), dict)
        assert not dkms_tree.unregistered(root, registered.packages).keys() & registered.packages.keys()
        assert dkms_tree.hook_present(root) in (True, False)


# -- machine ------------------------------------------------------------------------------------------------------------------


@target("machine.busy")
def try_busy(data: bytes) -> None:
    with tree(
        data, "proc/7/comm", "proc/7/cmdline", "proc/7/stat", "proc/7/mountinfo", "proc/self/mountinfo",
        "etc/dkms/framework.conf", "var/lib/dpkg/lock",
    ) as root:  # fmt: skip
        for ours in (None, 1):
            other = busy.foreign_dkms(root, ours)
            assert other is None or is_line(other.shown)
        who = busy.package(root)
        assert who is None or is_line(who)


@target("machine.dpkg_status")
def try_dpkg_status(data: bytes) -> None:
    with tree(data, "var/lib/dpkg/status", "var/lib/dpkg/updates/0001") as root:
        packages = dpkg_status.unfinished(root)
        for package in packages:
            assert is_line(package.name + package.kernel)
            assert package.boots in (True, False)
        assert set(dpkg_status.of_kernel(packages, KERNEL)) <= set(packages)
        assert dpkg_status.is_removed(root, "linux-image-amd64") in (True, False)
        assert dpkg_status.has_dpkg(root) in (True, False)


@target("machine.initramfs")
def try_initramfs(data: bytes) -> None:
    module = f"lib/modules/{KERNEL}/updates/dkms/demo.ko"
    hook = "usr/share/initramfs-tools/hooks/a"
    with tree(
        data, hook, "etc/initramfs-tools/modules", "etc/dracut.conf", f"lib/modules/{KERNEL}/modules.dep", "etc/fstab",
        "boot/grub/grub.cfg",
    ) as root:  # fmt: skip
        for program in ("usr/sbin/mkinitramfs", "usr/bin/dracut", f"boot/initrd.img-{KERNEL}", module):
            write(root / program, b"")
        if (root / hook).exists():
            (root / hook).chmod(0o755)
        tables = modules_dep.Tables(root, root / "lib/modules" / KERNEL)
        rules = modprobe_conf.rules(root)
        why = initramfs.wanted(root, KERNEL, tables, rules, MODULE, root / module, lambda name: len(name) % 2 == 0)
        assert why is None or is_line(why.where)
        assert all(path.is_absolute() for path in initramfs.inputs(root, KERNEL))
        assert "\n" not in initramfs.fix(root, KERNEL)


@target("machine.kernels")
def try_kernels(data: bytes) -> None:
    build = f"lib/modules/{KERNEL}/build"
    with tree(
        data, f"{build}/include/generated/utsrelease.h", f"{build}/Makefile", f"{build}/.config", f"boot/vmlinuz-{KERNEL}",
        f"{build}/Module.symvers", f"{build}/scripts", "etc/debian_version",
    ) as root:  # fmt: skip
        headers = kernels.headers(root, KERNEL)
        assert is_line(headers.reason)
        assert kernels.directories(root).kernels == (KERNEL,)
        assert (kernels.image(root, KERNEL) is None) or not kernels.is_torn(root, KERNEL)
        assert kernels.state(root, KERNEL)
        for fix in (kernels.headers_fix(root, KERNEL), kernels.headers_reinstall(root, KERNEL, "fixdep")):
            assert is_line(fix)
        if headers.path is not None:
            assert isinstance(kernels.compiler(root, headers.path)[0], str)
            assert kernels.fingerprint(root, root / "usr/src", headers.path)


@target("machine.kmod")
def try_kmod(data: bytes) -> None:
    with tree(data, "usr/bin/kmod", "usr/lib/libkmod.so.2", "usr/lib/libz.so.1", "usr/lib/liblzma.so.5") as root:
        for one in kmod.installed(root):
            assert one.unpacks <= {"gzip", "xz", "zstd"}
        kmod.inputs(root)


@target("machine.loaded_modules")
def try_loaded_modules(data: bytes) -> None:
    place = f"sys/module/{MODULE}"
    with tree(
        data, "proc/modules", f"{place}/initstate", f"{place}/srcversion", f"{place}/notes/.note.gnu.build-id",
        "sys/module/knetstat/initstate", "proc/1/net/tcpstat", "proc/1/net/tcp6stat", f"{place}/holders/knetstat",
    ) as root:  # fmt: skip
        proofs = tuple((name, Proof("", (), "", (), "aa", name)) for name in (MODULE, "knetstat"))
        state, words = loaded_modules.Live(root).look(proofs, wanted=True)
    assert isinstance(state, Loaded)
    assert is_line(words)


@target("machine.modprobe_conf")
def try_modprobe_conf(data: bytes) -> None:
    with tree(data, "etc/modprobe.d/a.conf", "usr/lib/modprobe.d/b.conf", "etc/modules-load.d/c.conf", "etc/modules") as root:
        rules = modprobe_conf.rules(root)
    for line in (*rules.blacklist, *rules.install, *rules.alias, *rules.load):
        assert is_line(line.text + line.where)
        modprobe_conf.find(rules.blacklist, line.module)
    for module in (MODULE, "a" * 50):
        modprobe_conf.command(rules, module)
        modprobe_conf.redirect(rules, module)


@target("machine.module_needs")
def try_module_needs(data: bytes) -> None:
    tables = f"lib/modules/{KERNEL}"
    with tree(
        data, "etc/modprobe.d/a.conf", f"{tables}/modules.dep", f"{tables}/modules.softdep", f"{tables}/modules.alias",
        f"{tables}/modules.weakdep",
    ) as root:  # fmt: skip
        needs = module_needs.Needs(root, modules_dep.Tables(root, root / tables), modprobe_conf.rules(root), MODULE)
        for name in (MODULE, "a", "b", *(soft.module for soft in needs.soft[:20])):
            assert needs.sure(name) in (None, *module_needs.Sure)


@target("machine.paths")
def try_paths(data: bytes) -> None:
    with grown(data) as root:
        watched = [*paths.watched(root, [KERNEL], [PACKAGE], [root / "usr/src/demo-1.0"], [KERNEL])]
        assert len(watched) < 5000
        assert all(path.is_relative_to(root) for _, path in watched)
        assert all(path.is_relative_to(root) for path in paths.inputs(root, KERNEL))
        assert kernels.directories(root)


@target("machine.root_drivers")
def try_root_drivers(data: bytes) -> None:
    with tree(data, "etc/fstab", "proc/mounts", "boot/grub/grub.cfg", "names") as root:
        if (root / "names").exists():
            os.rename(root / "names", root / "list")
            with grown((root / "list").read_bytes(), "sys") as other:
                os.rename(other / "sys", root / "sys")
        for module, why in root_drivers.needed(root, KERNEL):
            assert isinstance(module + why, str)


@target("machine.signature_policy")
def try_signature_policy(data: bytes) -> None:
    shim, database = "605dab50-e046-4300-abb6-3dd810dd8b23", "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
    with tree(
        data, f"{_EFI}/SecureBoot-{_GLOBAL}", f"{_EFI}/MokListRT-{shim}", f"{_EFI}/db-{database}",
        f"{_EFI}/MokSBStateRT-{shim}", "proc/cmdline", "var/lib/dkms/mok.pub", "sys/kernel/security/lockdown",
        "etc/dkms/framework.conf", f"{_EFI}/MokIgnoreDB-{shim}",
    ) as root:  # fmt: skip
        firmware = signature_policy.firmware(root)
        assert firmware.secure_boot in (True, False, None)
        for options in (None, (), signature_policy.OPTIONS):
            policy = signature_policy.policy(root, KERNEL, options, firmware)
            assert is_line(policy.enforced + policy.doubt)
        assert signature_policy.running_insists(root) in (True, False)


# -- others that read what strangers wrote -------------------------------------------------------------------------------------


@target("core.config", ConfigError)
def try_config(data: bytes) -> None:
    with tree(data, "etc/knetstatd/knetstatd.toml", "etc/knetstatd/knetstatd.toml.d/a.toml") as root:
        try:
            settings, origins = config.with_origins(root)
        except ConfigError as error:
            assert all(map(is_line, error.what.splitlines()))
            raise
    for row in config.describe(settings, origins):
        assert all(map(is_line, map(str, row)))


@target("daemon.step", KnetstatdError)
def try_step(data: bytes) -> None:
    try:
        kind, kernel, held = step.parse(data)
    except KnetstatdError as error:
        assert is_line(str(error))
        raise
    assert step.line(kernel, kind, held=held) == data


@target("diagnosis.build_log")
def try_build_log(data: bytes) -> None:
    log, _, output = data.decode("utf-8", "replace").partition("\n====\n")
    for code in (2, 3, 7, 10, 77):
        cause = build_log.classify(log, output, code)
        assert all(map(is_line, (cause.reason, cause.fix, cause.subject, *cause.evidence)))


@target("diagnosis.hooks")
def try_hooks(data: bytes) -> None:
    with tree(data, "dkms.conf", "post.sh") as root:
        for one in hooks.writes_by_name(root, "/var/lib/dkms"):
            assert one.line > 0
            assert is_line(one.hook + one.file)
        log = (files.text(root / "dkms.conf") or "", files.text(root / "post.sh") or "")
        for hook in hooks.ran(*log):
            assert all(map(is_line, (hook.name, hook.denied, hook.place, *hook.lines)))


@target("diagnosis.uname_traps")
def try_uname_traps(data: bytes) -> None:
    with tree(data, "Makefile", "dkms.conf", "Kbuild", "configure") as root:
        conf = dkms_conf.evaluate(root, root)
        lines = uname_traps.reads(root, ["KVER"])
        for line in lines:
            assert line.line > 0
        made = uname_traps.override("demo", "1.0", conf, uname_traps.active(conf, lines), root)
        assert made is None or made.text.endswith("\n")


# -- what we wrote ourselves --------------------------------------------------------------------------------------------------


@target("system.documents", documents.Malformed)
def try_documents(data: bytes) -> None:
    document = documents.parse(data)
    getters: list[Callable[[str], Any]] = [
        document.text, document.path, document.texts, document.table, document.flag, document.integer, document.number,
        document.items, lambda key: document.word(key, Kind), lambda key: document.word(key, Outcome),
    ]  # fmt: skip
    for key in [*document.value, "no such key"][:50]:
        for get in getters:
            try:
                get(key)
            except documents.Malformed as error:
                str(error).encode("utf-8", "surrogatepass")


def _places(root: Path) -> state_paths.Places:
    return state_paths.places(root, runs=False)


@target("state.attempts")
def try_attempts(data: bytes) -> None:
    with a_root() as root:
        places = _places(root)
        write(places.attempt(KERNEL, PACKAGE), data)
        write(root / "proc/sys/kernel/random/boot_id", b"boot\n")
        attempt = attempts.load(root, places, KERNEL, PACKAGE, "fingerprint")
        if attempt is not None:
            attempts.save(root, places, KERNEL, PACKAGE, "1.0", "fingerprint", attempt)
            assert attempts.load(root, places, KERNEL, PACKAGE, "fingerprint") == attempt


@target("state.digests")
def try_digests(data: bytes) -> None:
    with a_root() as root:
        places = _places(root)
        write(places.digests(KERNEL, PACKAGE), data)
        digest = digests.of(places, KERNEL, PACKAGE, root / "demo.ko")
        assert digest is None or isinstance(digest.file + digest.contents, str)


@target("state.sources")
def try_sources(data: bytes) -> None:
    with a_root() as root:
        places, copy = _places(root), root / "demo.ko"
        write(copy, b"module")
        write(places.sources(KERNEL, PACKAGE), data)
        known = sources.of(places, KERNEL, PACKAGE, copy)
        assert known is None or isinstance(known.mark + known.digest, str)
        source = sources.Source("times", "contents")
        sources.save(places, KERNEL, PACKAGE, [copy], source)
        assert sources.of(places, KERNEL, PACKAGE, copy) == source


@target("state.guarded")
def try_guarded(data: bytes) -> None:
    with a_root() as root:
        places = _places(root)
        write(places.guarded, data)
        known = guarded.load(places)
        guarded.save(places, known)
        assert guarded.load(places) == known
        missing = guarded.missing(root, places, {})
        for name in known:
            assert all(isinstance(part, str) for part in missing.explain(name))
        assert guarded.now(root, places, known, {}, missing, ()).keys() <= known.keys()


@target("state.next_boot")
def try_next_boot(data: bytes) -> None:
    """What was kept, with the mark of this machine in the place of MARK."""
    with a_root() as root:
        places = _places(root)
        mark = [[*(files.identity(path) or ())] for path in bootloader.inputs(root)]
        write(places.next_boot, data.replace(b"MARK", json.dumps(mark).encode()))
        known = next_boot._known(places, mark)
        if known is not None:
            next_boot._keep(places, mark, known)
            assert next_boot._known(places, mark) == known


@target("state.leftovers")
def try_leftovers(data: bytes) -> None:
    with grown(data, "var/lib/knetstatd") as root:
        places = _places(root)
        for path in leftovers.find(places, [KERNEL], [PACKAGE]):
            assert path.is_relative_to(root / "var/lib/knetstatd")
        leftovers.forget(places, [KERNEL], [PACKAGE])
        assert leftovers.find(places, [KERNEL], [PACKAGE]) == []


@target("state.load_history")
def try_load_history(data: bytes) -> None:
    with a_root() as root:
        places = _places(root)
        for path, part in zip(
            (places.loads(PACKAGE), places.seen(PACKAGE), places.refused(PACKAGE)), data.split(_SEPARATOR), strict=False
        ):
            write(path, part)
        times = load_history.known(places, PACKAGE)
        assert list(times) == sorted(times)
        assert load_history.refused(places, PACKAGE, [root / "demo.ko"]) in (True, False)
        load_history.add(places, PACKAGE, 5.0)
        load_history.seen(places, PACKAGE, 6.0)
        load_history.forget(places, PACKAGE)


@target("state.paths")
def try_state_paths(data: bytes) -> None:
    with grown(data, "var/lib/knetstatd") as root:
        places = _places(root)
        for name, path in (*places.of_kernels(), *places.of_packages()):
            assert "/" not in name
            assert path.is_relative_to(root)


@target("state.rehearsal_results")
def try_rehearsal_results(data: bytes) -> None:
    with a_root() as root:
        places = _places(root)
        modules = ((Path("/demo.ko"), ()),)
        subject = rehearsal_results.Subject(KERNEL, PACKAGE, Path("/boot/vmlinuz"), modules, ("lockdown=x",))
        write(places.rehearsal(KERNEL, PACKAGE), data)
        answer = rehearsal_results.load(places, subject)
        same = rehearsal_results.same(places, subject, ["aa", "bb"])
        for one in (answer, same):
            assert one is None or one.outcome in Outcome
            for _, check in rehearsal_results.checks(subject, one, ""):
                assert isinstance(check.found + check.reason, str)


@target("state.staged")
def try_staged(data: bytes) -> None:
    stage = f"var/lib/knetstatd/stage/{KERNEL}/{PACKAGE}"
    with grown(data, stage) as root:
        if not os.path.lexists(root / stage / "fingerprint"):
            write(root / stage / "fingerprint", b"made of")
        one = staged.find(_places(root), KERNEL, PACKAGE, "1.0", "made of")
        assert one is None or all(path.is_relative_to(root) for path in one.modules)
        staged.clear(_places(root), KERNEL, PACKAGE)
