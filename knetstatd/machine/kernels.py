# SPDX-License-Identifier: GPL-2.0-or-later
"""What is in /lib/modules and /boot: which kernels there are, and whether modules can be compiled for them."""

from __future__ import annotations

import os
import re
import shlex
import stat
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.boot import boot_image, bootloader
from knetstatd.core import names
from knetstatd.core.errors import KnetstatdError
from knetstatd.core.model import Headers, KernelState
from knetstatd.machine import dpkg_status, paths
from knetstatd.system import files
from knetstatd.system.once import once

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_UTS_RELEASE = re.compile(r'#define\s+UTS_RELEASE\s+"([^"]*)"')
_INCLUDE = re.compile(r"^include\s+(/\S+)\s*$", re.MULTILINE)
_CC_VERSION = re.compile(rb'^CONFIG_CC_VERSION_TEXT="([^"\n]*)"', re.MULTILINE)
_CONFIGURATION = 4 << 20  # bytes; Debian's has 280 KB


class Directories(NamedTuple):
    """The entries of /lib/modules: names that may be kernels, and those that may not be touched, each with the reason."""

    kernels: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]


class HeadersFound(NamedTuple):
    """The headers of one kernel. path: their directory, None if there is none.  reason: what is missing."""

    state: Headers
    path: Path | None
    reason: str = ""


def running() -> str:
    """The running kernel's release."""
    return os.uname().release


def directories(root: Path) -> Directories:
    """All entries of /lib/modules, oldest first. Never raises: no directory, no kernels."""
    base, good, refused = files.inside(root, "/lib/modules"), [], []
    for name in files.names(base):
        try:
            mode = os.lstat(base / name).st_mode
        except (OSError, ValueError):
            continue
        if stat.S_ISREG(mode):
            continue
        if not names.is_kernel(name):
            refused.append((name, "not a kernel release; a name like this could be run as a command by dkms"))
        elif not stat.S_ISDIR(mode):
            refused.append((name, "not a real directory (a symlink?)"))
        else:
            good.append(name)
    return Directories(tuple(sorted(good, key=names.version_key)), tuple(refused))


def image(root: Path, kernel: str) -> Path | None:
    """The kernel's boot image, None if there is none. Debian up to 6.12: /boot/vmlinuz-K; 7.x, Fedora: with the modules."""
    return next(filter(boot_image.is_whole, paths.images(root, kernel)), None)


@once
def started_image(root: Path, kernel: str) -> Path | None:
    """The image that the next boot starts, whole or not, if it is this kernel's; a copy on the ESP may be of another build.

    Else `image`.
    """
    started = bootloader.next_kernel(root, [kernel])
    if started.release == kernel and started.image is not None and os.path.isfile(started.image):
        return started.image
    return image(root, kernel)


def is_torn(root: Path, kernel: str) -> bool:
    """Whether the kernel has a boot image that is empty or cut off, and no other."""
    return image(root, kernel) is None and any(map(os.path.isfile, paths.images(root, kernel)))


def state(root: Path, kernel: str) -> KernelState:
    """Whether `kernel` can be booted, judged by its files."""
    tree = files.inside(root, f"/lib/modules/{kernel}")
    if not (os.path.exists(tree / "modules.builtin") or os.path.isdir(tree / "kernel")):
        return KernelState.NOT_A_KERNEL
    return KernelState.BOOTABLE if image(root, kernel) else KernelState.NO_IMAGE


def headers(root: Path, kernel: str) -> HeadersFound:
    """Whether everything that a module's compilation needs from the headers is there and says that it is for `kernel`."""
    link = files.inside(root, f"/lib/modules/{kernel}") / "build"
    if not os.path.lexists(link):
        return HeadersFound(Headers.MISSING, None, f"/lib/modules/{kernel}/build does not exist")
    path = files.inside(root, f"/lib/modules/{kernel}/build")
    if files.is_hidden(root, path):
        return HeadersFound(Headers.MISSING, None, f"/lib/modules/{kernel}/build leads to {path}, {files.HIDDEN}")
    if not os.path.isdir(path):
        return HeadersFound(Headers.MISSING, None, f"/lib/modules/{kernel}/build leads to nothing")
    for part in ("Makefile", ".config", "Module.symvers", "include/generated/utsrelease.h", "scripts"):
        if not os.path.exists(files.inside(root, f"/lib/modules/{kernel}/build/{part}")):
            return HeadersFound(Headers.PARTIAL, path, f"the headers have no {part}")
    build = f"/lib/modules/{kernel}/build"
    for included in _INCLUDE.findall(files.text(files.inside(root, f"{build}/Makefile")) or ""):
        if not os.path.exists(files.inside(root, included)):
            return HeadersFound(Headers.PARTIAL, path, f"the headers' Makefile needs {included}, which does not exist")
    release = uts_release(files.inside(root, f"{build}/include/generated/utsrelease.h"))
    if release != kernel:
        said = names.show(release) if release else "no release"
        return HeadersFound(Headers.PARTIAL, path, f"the headers are for another kernel: utsrelease.h says {said}")
    return HeadersFound(Headers.COMPLETE, path)


def uts_release(header: Path) -> str:
    """The kernel that headers are for, by their utsrelease.h; "" if it does not say."""
    match = _UTS_RELEASE.search(files.text(header, 4096) or "")
    return match[1] if match else ""


def configuration(path: Path) -> bytes | None:
    """A kernel's configuration (config-K, .config), None if it cannot be read or is empty."""
    try:
        return files.read(path, _CONFIGURATION) or None
    except (OSError, KnetstatdError):
        return None


def cc_version(configuration: bytes | None) -> str:
    """The compiler that made a kernel, in its own words (CONFIG_CC_VERSION_TEXT); "" if the configuration does not say."""
    match = _CC_VERSION.search(configuration or b"")
    return match[1].decode("utf-8", "replace") if match else ""


def _headers_packages(kernel: str) -> tuple[list[str], list[str]]:
    """The packages that may bring the headers of `kernel`, and those that keep headers coming with every later kernel.

    Proxmox renamed its packages with its kernel 6.5. XanMod's packages of a kind bring the kernel and its headers.
    """
    if kernel.endswith("-pve"):
        series = ".".join(kernel.split(".")[:2])
        return [f"proxmox-headers-{kernel}", f"pve-headers-{kernel}"], [
            "proxmox-default-headers", f"proxmox-headers-{series}", "pve-headers"
        ]  # fmt: skip
    xanmod = re.search(r"-(x64v\d)-xanmod\d*$", kernel)
    flavour = re.search(r"-((?:cloud-|rt-)?[a-z][a-z0-9-]*)$", kernel)
    metas = [f"linux-xanmod-{xanmod[1]}"] if xanmod else [f"linux-headers-{flavour[1]}"] if flavour else []
    return [f"linux-headers-{kernel}"], metas


def _offered(root: Path, packages: list[str]) -> str | None:
    """The first of these packages that an archive has, "" if none; None if apt has no lists that can be read."""
    there = dpkg_status.offered(root, packages)
    return None if there is None else next((name for name in packages if name in there), "")


def _is_debian(root: Path) -> bool:
    return files.inside(root, "/etc/debian_version").exists()


def headers_package(root: Path, kernel: str) -> str:
    """The package that brings the headers of `kernel` on this distribution; "" if no archive has one."""
    if not _is_debian(root):
        return f"kernel-devel-{kernel}"
    packages = _headers_packages(kernel)[0]
    package = _offered(root, packages)
    return packages[0] if package is None else package


def headers_fix(root: Path, kernel: str) -> str:
    """The sentence that tells how to get the headers of `kernel`, and how never to miss them again.

    A package is named only if there is one. Else it is said where the headers must lie.
    """
    if not _is_debian(root):
        return f"Run: dnf install kernel-devel-{kernel}; kernel-devel brings them with every later kernel"
    link = f"/lib/modules/{kernel}/build"
    names_, metas = _headers_packages(kernel)
    package = _offered(root, names_)
    if package:
        meta = _offered(root, metas)
        return f"Run: apt install {package}" + (f"; {meta} brings them with every later kernel" if meta else "")
    if files.is_hidden(root, place := files.inside(root, link)):
        hidden, usual = shlex.quote(files.below(root, place)), f"/usr/src/linux-headers-{kernel}"
        return f"Run: cp -a {names.clean(hidden, 300)} {usual} && ln -sfn {usual} {link}"
    if package is None:
        return f"Make {link} lead to the headers of {kernel}; to learn which package brings them, run: apt update"
    images = (f"linux-image-{kernel}", f"linux-image-unsigned-{kernel}")
    if image := next((name for name in images if dpkg_status.is_installed(root, name)), ""):
        return f"Install {names_[0]} from where {image} came: no archive of apt's has it; {link} must lead to the headers"
    return f"Make {link} lead to the headers of {kernel}, or to its build tree: no archive of apt's has them"


def headers_reinstall(root: Path, kernel: str, tool: str = "") -> str:
    """The sentence that tells how to get incomplete headers whole again. tool: what is missing, if it is one of kbuild's."""
    if not _is_debian(root):
        return f"Run: dnf reinstall kernel-devel-{kernel}"
    link = files.inside(root, f"/lib/modules/{kernel}/build")
    makefile = files.text(files.followed(root, link / "Makefile"), 65536) or ""
    packages = [included.split("/")[-2] for included in _INCLUDE.findall(makefile)][:1]
    try:
        kbuild = re.search(r"/(linux-kbuild-[^/]+)/", os.readlink(link / "scripts"))
    except OSError:
        kbuild = None
    packages = [kbuild[1]] if kbuild and tool else [*_headers_packages(kernel)[0], *packages, *([kbuild[1]] if kbuild else [])]
    there = dpkg_status.offered(root, packages)
    # Without lists: what is installed came from somewhere.
    known = [name for name in packages if (dpkg_status.is_installed(root, name) if there is None else name in there)]
    if named := [names.clean(name) for name in known]:
        return f"Run: apt install --reinstall {' '.join(named)}"
    if there is None:
        return f"Complete the headers of {kernel}; to learn which package brings them, run: apt update"
    return f"Complete the headers of {kernel}, or its build tree: no archive of apt's has them"


def compiler(root: Path, headers_path: Path) -> tuple[str, Path | None]:
    """The compiler that the kernel's configuration names (or `gcc`), and where it is, None if it is not installed."""
    wanted = (cc_version(configuration(files.followed(root, headers_path / ".config"))).split() or ["gcc"])[0]
    for name in (wanted, "gcc"):
        for directory in ("/usr/local/bin", "/usr/bin", "/bin"):
            path = files.inside(root, f"{directory}/{name}")
            if os.path.isfile(path):
                return wanted, path
    return wanted, None


# What compiles beside the compiler: if one of these is missing, and comes back, an attempt is worth while.
_TOOLS = ("make", "ld", "as", "objcopy", "awk", "pahole", "dkms")
_HEADERS_TOOLS = ("scripts/basic/fixdep", "scripts/mod/modpost", "tools/objtool/objtool")


def fingerprint(root: Path, source: Path, headers_path: Path | None) -> str:
    """What a failed attempt is remembered by: it changes when anything does that decides a build.

    That is the source, the headers, the compiler and its tools, and what dkms is told in /etc/dkms. Plain text, so that two can
    be compared by eye: for each part the number of files, their bytes and the newest change.
    """
    settings = files.inside(root, "/etc/dkms")
    told = [settings / name for name in files.names(settings)]
    told += [path / name for path in told if path.suffix == ".d" for name in files.names(path)]
    told = [path for name in told if name.suffix == ".conf" and _decides(path := files.followed(root, name))]
    parts = [_source(age(source)), f"settings {_newest(told)}"]
    if headers_path is not None:
        parts_of_headers = ("Makefile", ".config", "Module.symvers", "include/generated/utsrelease.h")
        key = [files.followed(root, headers_path / part) for part in parts_of_headers]
        tools = [files.followed(root, headers_path / part) for part in _HEADERS_TOOLS]
        tools += [files.inside(root, f"/{place}/{name}") for name in _TOOLS for place in ("usr/bin", "usr/sbin", "bin")]
        parts += [f"headers {_newest(key)}", f"tools {_newest(tools)}"]
        parts += [f"compiler {_newest([p for p in [compiler(root, headers_path)[1]] if p])}"]
    return "; ".join(parts)


def _source(source: Age) -> str:
    return f"source {source.mark}"


def is_of(mark: str, source: Age) -> bool:
    """Whether a fingerprint was taken of a source as it is, or was, then."""
    return mark.partition(";")[0] == _source(source)


# What says only whether dkms's hook builds the package.
_HOOK_ONLY = re.compile(r"\s*(?:#.*|AUTOINSTALL=\S*\s*)?")


def _decides(override: Path) -> bool:
    """Whether a file of /etc/dkms may change a build; one that cannot be read may."""
    text = files.text(override, 65536)
    return text is None or not all(map(_HOOK_ONLY.fullmatch, text.splitlines()))


def _newest(candidates: list[Path]) -> str:
    present = [i for i in map(files.identity, candidates) if i]
    return f"{len(present)} files {sum(i.size for i in present)} bytes {max((i.ctime_ns for i in present), default=0)}"


class Age(NamedTuple):
    """What a source tree's times say. mark: another one after every change of a file, plain text.

    changed: since when it may have other contents, in seconds since the epoch. A restored file keeps the time of its contents,
    and one from the future counts from when it came here.
    """

    mark: str
    changed: float


def age(source: Path) -> Age:
    """What the times of a source tree say now."""
    count = size = newest = 0
    changed = 0.0
    for st in _files(source):
        count, size, newest = count + 1, size + st.st_size, max(newest, st.st_ctime_ns)
        changed = max(changed, min(st.st_mtime, st.st_ctime))
    return Age(f"{count} files {size} bytes {newest}", changed)


def _files(directory: Path) -> Iterator[os.stat_result]:
    """The files of a source tree: some 10,000 at most, symlinks not followed."""
    count = 0
    for where, dirs, names_here in os.walk(directory):
        dirs.sort()
        for name in names_here:
            try:
                yield os.lstat(os.path.join(where, name))
            except OSError:
                continue
        count += len(names_here)
        if count > 10000:
            return
