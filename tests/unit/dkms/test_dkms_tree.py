# SPDX-License-Identifier: GPL-2.0-or-later
"""DKMS's tree, read from files, and held against what `dkms status` says of the same tree."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knetstatd.core.errors import NameRefused
from knetstatd.dkms import dkms_tree

if TYPE_CHECKING:
    from collections.abc import Callable

    Tree = Callable[[dict[str, str]], Path]

K, K2, A = "6.1.0-55-amd64", "6.12.115+deb12-amd64", "x86_64"
PROGRAM = Path("/usr/sbin/dkms")


def source(name: str, version: str, root: str = "") -> dict[str, str]:
    """A source and its registration, as `dkms add` leaves them. root: what a program outside finds the link's target in."""
    conf = f'PACKAGE_NAME="{name}"\nPACKAGE_VERSION="{version}"\nDEST_MODULE_LOCATION="/updates"\nAUTOINSTALL="yes"\n'
    return {
        f"usr/src/{name}-{version}/dkms.conf": conf,
        f"var/lib/dkms/{name}/{version}/source": f"-> {root}/usr/src/{name}-{version}",
        f"var/lib/dkms/{name}/{version}/build/": "",
    }


def built(name: str, version: str, kernel: str, *, installed: bool = False) -> dict[str, str]:
    entries = {
        f"var/lib/dkms/{name}/{version}/{kernel}/{A}/module/{name}.ko": "ELF",
        f"var/lib/dkms/{name}/{version}/{kernel}/{A}/log/make.log": "",
    }
    return entries | ({f"var/lib/dkms/{name}/kernel-{kernel}-{A}": f"-> {version}/{kernel}/{A}"} if installed else {})


def test_no_tree_at_all(tmp_path: Path) -> None:
    assert dkms_tree.registered(tmp_path) == dkms_tree.Registered({}, ())
    assert dkms_tree.package(tmp_path, "knetstat") is None


def test_registered_built_and_installed(tree: Tree) -> None:
    root = tree(source("a", "1.0") | source("a", "1.10") | source("a", "1.9") | source("b", "2"))
    tree(built("a", "1.9", K, installed=True) | built("a", "1.10", K) | built("b", "2", K2))
    registered = dkms_tree.registered(root)
    assert list(registered.packages) == ["a", "b"]
    assert registered.refused == ()
    a = registered.packages["a"]
    assert [v.version for v in a.versions] == ["1.0", "1.9", "1.10"]
    assert a.highest.version == "1.10"
    assert a.highest.source == root / "usr/src/a-1.10"
    assert a.highest.broken == ""
    place = root / f"var/lib/dkms/a/1.10/{K}/{A}"
    assert a.highest.builds == (dkms_tree.Build(K, A, place, ("a.ko",), installed=False, stuck=False),)
    found = a.installed(K)
    assert found is not None
    assert (found[0].version, found[1].installed) == ("1.9", True)
    assert a.installed(K2) is None
    assert a.highest.build(K2) is None
    assert registered.packages["b"] == dkms_tree.package(root, "b")


@pytest.mark.parametrize(
    ("link", "installed"),
    [
        (f"1.0/{K}/{A}", True),
        (f"/var/lib/dkms/a/1.0/{K}/{A}", True),
        (f"2.0/{K}/{A}", False),
        (f"1.0/{K2}/{A}", False),
        ("", False),
        ("..", False),
    ],
)
def test_the_installed_mark(tree: Tree, link: str, installed: bool) -> None:
    root = tree(source("a", "1.0") | built("a", "1.0", K))
    if link:
        tree({f"var/lib/dkms/a/kernel-{K}-{A}": f"-> {link}"})
    package = dkms_tree.package(root, "a")
    assert package is not None
    build = package.highest.build(K)
    assert build is not None
    assert build.installed is installed


@pytest.mark.parametrize(
    ("installed", "after", "wanted"),
    [("1.9", True, "1.9"), ("1.9", False, "1.10"), ("1.10", True, "1.10"), ("1.10", False, "1.10"), ("", True, "1.10")],
)
def test_the_version_that_a_kernel_is_to_have(tree: Tree, installed: str, after: bool, wanted: str) -> None:
    root = tree(source("a", "1.9") | source("a", "1.10") | built("a", "1.9", K) | built("a", "1.10", K))
    os.utime(root / "var/lib/dkms/a/1.9/source", ns=(1000, 1000), follow_symlinks=False)
    os.utime(root / "var/lib/dkms/a/1.10/source", ns=(3000, 3000), follow_symlinks=False)
    if installed:
        tree({f"var/lib/dkms/a/kernel-{K}-{A}": f"-> {installed}/{K}/{A}"})
        when = 3001 if after else 3000
        os.utime(root / f"var/lib/dkms/a/kernel-{K}-{A}", ns=(when, when), follow_symlinks=False)
    package = dkms_tree.package(root, "a")
    assert package is not None
    assert package.wanted(K).version == wanted
    assert package.wanted(K2).version == "1.10", "another kernel's choice is none for this one"


def test_a_source_that_is_gone_or_empty(tree: Tree) -> None:
    root = tree({
        "var/lib/dkms/gone/1/source": "-> /usr/src/gone-1",
        "var/lib/dkms/empty/1/source": "-> ../../../../../usr/src/empty-1",
        "usr/src/empty-1/": "",
        "var/lib/dkms/loop/1/source": "-> source",
        "var/lib/dkms/binaries/1/source/dkms.conf": "",
    })  # fmt: skip
    found = {name: package.highest.broken for name, package in dkms_tree.registered(root).packages.items()}
    assert found == {
        "gone": "the source directory /usr/src/gone-1 does not exist",
        "empty": "/usr/src/empty-1 has no dkms.conf",
        "loop": "the source directory /var/lib/dkms/loop/1/source does not exist",
        "binaries": "",
    }


def test_a_source_that_our_services_do_not_see(tree: Tree) -> None:
    root = tree({"var/lib/dkms/a/1/source": "-> /home/dev/a-1", "home/dev/a-1/dkms.conf": ""})
    broken = dkms_tree.registered(root).packages["a"].highest.broken
    assert broken.startswith("its source is /home/dev/a-1, where knetstatd's services may not look")


@pytest.mark.parametrize(
    ("closed", "mode", "said"),
    [
        ("usr/src/a-1.0", 0o700, "/usr/src/a-1.0 is not readable by all, and is compiled without privileges: run chmod -R"),
        ("usr/src/a-1.0", 0o744, "/usr/src/a-1.0 is not readable by all"),
        ("usr/src/a-1.0/dkms.conf", 0o640, "/usr/src/a-1.0 is not readable by all"),
        ("usr/src", 0o750, "/usr/src, where /usr/src/a-1.0 lies, is not open to all, and it is compiled without"),
        ("usr/src", 0o711, ""),
    ],
)
@pytest.mark.usefixtures("open_to_all")
def test_a_source_that_is_not_open_to_all(tree: Tree, closed: str, mode: int, said: str) -> None:
    """root, and the daemon, which may read less, say the same of it."""
    root = tree(source("a", "1.0"))
    (root / closed).chmod(mode)
    answer = dkms_tree.registered(root).packages["a"].highest.broken
    assert answer.startswith(said)
    assert bool(answer) == bool(said)
    os.seteuid(65534 if os.getuid() == 0 else os.getuid())
    try:
        assert dkms_tree.registered(root).packages["a"].highest.broken == answer
    finally:
        os.seteuid(os.getuid())


def test_a_stuck_build_and_leftovers(tree: Tree) -> None:
    root = tree(source("a", "1.0") | built("a", "1.0", K2))
    tree({f"var/lib/dkms/a/1.0/{K}/{A}/log/": "", f"var/lib/dkms/a/1.0/{K}/.tmp_{A}_4fXk2Q/": ""})
    package = dkms_tree.package(root, "a")
    assert package is not None
    build = package.highest.build(K)
    assert build is not None
    assert (build.stuck, build.files, build.directory) == (True, (), root / f"var/lib/dkms/a/1.0/{K}/{A}")
    assert package.highest.leftovers == (root / f"var/lib/dkms/a/1.0/{K}/.tmp_{A}_4fXk2Q",)


def test_of_two_architectures_the_installed_one_counts(tree: Tree) -> None:
    root = tree(source("a", "1.0") | built("a", "1.0", K, installed=True))
    tree({f"var/lib/dkms/a/1.0/{K}/aarch64/log/": "", f"var/lib/dkms/a/1.0/{K}/i686/module/a.ko": ""})
    package = dkms_tree.package(root, "a")
    assert package is not None
    build = package.highest.build(K)
    assert build is not None
    assert build.arch == A


def test_what_several_packages_have_installed(tree: Tree) -> None:
    root = tree(source("a", "1.0") | source("b", "2") | source("c", "3"))
    tree(built("a", "1.0", K, installed=True) | built("b", "2", K, installed=True) | built("c", "3", K))
    for name, version in (("b", "2"), ("c", "3")):
        (root / f"var/lib/dkms/{name}/{version}/{K}/{A}/module/a.ko").touch()
    found = dkms_tree.installed(dkms_tree.registered(root).packages.values())
    assert set(found) == {(K, "a"), (K, "b")}
    made = found[K, "a"]
    assert [(package.name, version.version) for package, version, _ in made] == [("a", "1.0"), ("b", "2")]
    assert all(path.is_file() and path.name == "a.ko" for *_, path in made)


def test_compressed_modules_and_other_files(tree: Tree) -> None:
    base = f"var/lib/dkms/a/1.0/{K}/{A}/module"
    names = ("a.ko", "b.ko.xz", "c.ko.zst", "d.ko.gz", "Module.symvers", ".ko", "e.ko.bz2", "f.ko.debug")
    root = tree(source("a", "1.0") | {f"{base}/{name}": "" for name in names})
    package = dkms_tree.package(root, "a")
    assert package is not None
    assert package.highest.builds[0].files == ("a.ko", "b.ko.xz", "c.ko.zst", "d.ko.gz")


def test_what_is_no_version_is_left_out(tree: Tree) -> None:
    root = tree(source("a", "1.0"))
    tree({
        f"var/lib/dkms/a/original_module/{K}/{A}/": "",
        "var/lib/dkms/a/0.9/build/": "",
        "var/lib/dkms/nothing/": "",
        "var/lib/dkms/mok.key": "",
        "var/lib/dkms/linked": "-> a",
        "var/lib/dkms/a/2.0": "-> 1.0",
    })  # fmt: skip
    registered = dkms_tree.registered(root)
    assert list(registered.packages) == ["a"]
    assert [v.version for v in registered.packages["a"].versions] == ["1.0"]


def test_names_that_must_not_be_used_are_reported(tree: Tree) -> None:
    root = tree(source("a", "1.0"))
    tree({
        "var/lib/dkms/$(reboot)/1/source/": "",
        "var/lib/dkms/a/1;x/source/": "",
        "var/lib/dkms/a/1.0/6.1$(touch x)/x86_64/module/": "",
        f"var/lib/dkms/a/1.0/{K}/x86 64/module/": "",
        "var/lib/dkms/a/1.0/tarball/": "",
    })  # fmt: skip
    registered = dkms_tree.registered(root)
    assert registered.refused == (
        "'/var/lib/dkms/$(reboot)'",
        "'/var/lib/dkms/a/1.0/6.1$(touch x)'",
        f"'/var/lib/dkms/a/1.0/{K}/x86 64'",
        "'/var/lib/dkms/a/1;x'",
    )
    assert registered.packages["a"].highest.builds == ()
    with pytest.raises(NameRefused):
        dkms_tree.package(root, "../a")


def test_the_conf_of_a_version(tree: Tree) -> None:
    root = tree(source("a", "1.0") | {f"etc/dkms/a-1.0-{K}.conf": "AUTOINSTALL="})
    package = dkms_tree.package(root, "a")
    assert package is not None
    assert dkms_tree.conf(root, "a", package.highest).autoinstall == "yes"
    assert dkms_tree.conf(root, "a", package.highest, K, A).autoinstall == ""
    for name, kernel, arch in (("../a", K, A), ("a", "../x", A), ("a", K, "../x")):
        with pytest.raises(NameRefused):
            dkms_tree.conf(root, name, package.highest, kernel, arch)


class TestTheKernelPackagesHook:
    @staticmethod
    def make(tree: Tree, name: str, content: str = "#!/bin/sh\n", mode: int = 0o755) -> Path:
        root = tree({name: content})
        if not content.startswith("-> "):
            (root / name).chmod(mode)
        return root

    def test_none(self, tmp_path: Path) -> None:
        assert not dkms_tree.hook_present(tmp_path)

    @pytest.mark.parametrize(
        "name", ["etc/kernel/postinst.d/dkms", "usr/share/kernel/postinst.d/dkms", "usr/lib/kernel/install.d/40-dkms.install"]
    )
    def test_present(self, tree: Tree, name: str) -> None:
        root = self.make(tree, name)
        assert dkms_tree.hook_present(root)
        tree({"etc/dkms/no-autoinstall": ""})
        assert not dkms_tree.hook_present(root)

    def test_a_hook_that_is_not_executable_does_not_run(self, tree: Tree) -> None:
        assert not dkms_tree.hook_present(self.make(tree, "etc/kernel/postinst.d/dkms", mode=0o644))

    def test_a_link_is_followed_inside_the_root(self, tree: Tree) -> None:
        root = self.make(tree, "usr/lib/dkms/hook")
        self.make(tree, "etc/kernel/postinst.d/dkms", "-> /usr/lib/dkms/hook")
        assert dkms_tree.hook_present(root)

    def test_the_administrator_s_mask(self, tree: Tree) -> None:
        root = self.make(tree, "usr/lib/kernel/install.d/40-dkms.install")
        self.make(tree, "etc/kernel/install.d/40-dkms.install", "-> /dev/null")
        assert not dkms_tree.hook_present(root)


@given(st.lists(st.binary(min_size=1, max_size=8).filter(lambda b: b"/" not in b and b"\0" not in b), min_size=3, max_size=5))
def test_no_names_raise(tmp_path: Path, parts: list[bytes]) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as name:
        place = os.path.join(os.fsencode(name), b"var/lib/dkms", *(part for part in parts if part not in (b".", b"..")))
        os.makedirs(place, exist_ok=True)
        os.makedirs(os.path.join(os.path.dirname(place), b"source"), exist_ok=True)
        assert all(line.isprintable() for line in dkms_tree.registered(Path(name)).refused)


def status(root: Path) -> dict[tuple[str, str, str], str]:
    """What `dkms status` says: (module, version, kernel) and the state's first word; the kernel is "" for added."""
    trees = [f"--dkmstree={root}/var/lib/dkms", f"--sourcetree={root}/usr/src", f"--installtree={root}/lib/modules"]
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "TMPDIR": os.fspath(root)}
    run = subprocess.run([PROGRAM, "status", *trees], capture_output=True, text=True, check=True, env=env)
    found = {}
    for line in run.stdout.splitlines():
        what, _, state = line.partition(": ")
        name, _, rest = what.partition("/")
        version, *kernel = rest.split(", ")
        found[name, version, kernel[0] if kernel else ""] = state.split(" ")[0]
    return found


@pytest.mark.spawns
@pytest.mark.skipif(not PROGRAM.exists(), reason="dkms is not installed")
def test_dkms_says_the_same(tree: Tree, tmp_path: Path) -> None:
    for module, number in (("a", "1.0"), ("a", "1.10"), ("b", "2~rc1"), ("c", "0"), ("d", "1")):
        tree(source(module, number, os.fspath(tmp_path)))
    tree(built("a", "1.0", K, installed=True) | built("a", "1.10", K) | built("a", "1.10", K2, installed=True))
    tree(built("b", "2~rc1", K2, installed=True) | {f"var/lib/dkms/d/1/{K}/{A}/log/": "", "var/lib/dkms/e/1/build/": ""})
    root = tree({f"var/lib/dkms/a/original_module/{K}/{A}/a.ko": "", "var/lib/dkms/mok.pub": ""})
    registered = dkms_tree.registered(root)
    ours = {}
    for name, package in registered.packages.items():
        for version in package.versions:
            builds = [build for build in version.builds if build.files]
            for build in builds:
                ours[name, version.version, build.kernel] = "installed" if build.installed else "built"
            if not builds:
                ours[name, version.version, ""] = "added"
    assert ours == status(root)
    assert len(ours) == 6


@pytest.mark.spawns
@pytest.mark.skipif(not PROGRAM.exists(), reason="dkms is not installed")
def test_the_highest_version_is_the_one_that_dkms_takes(tmp_path: Path) -> None:
    """The order of versions is ours (dpkg's); for what packages are really called dkms's function agrees."""
    pairs = [("1.9", "1.10"), ("1.0", "1.0.1"), ("2.0-1", "2.0-2"), ("535.54.03", "535.129.03"), ("5.6.4.2-27", "5.11.4-26")]
    text = PROGRAM.read_text(errors="replace")
    function = text[text.index("VER()\n") :]
    script = function[: function.index("\n}\n") + 3] + '\n[[ $(VER "$2") > $(VER "$1") ]]\n'
    for low, high in pairs:
        subprocess.run(["bash", "-c", script, "bash", low, high], check=True, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"})
        root = tmp_path / high
        for version in (low, high):
            (root / f"var/lib/dkms/x/{version}/source").mkdir(parents=True)
        package = dkms_tree.package(root, "x")
        assert package is not None
        assert package.highest.version == high
