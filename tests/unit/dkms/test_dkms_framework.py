# SPDX-License-Identifier: GPL-2.0-or-later
"""DKMS's own configuration, held against what dkms's own functions make of it; and that its tree is followed everywhere."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knetstatd.core.config import Config
from knetstatd.dkms import dkms_tree
from knetstatd.dkms.dkms_framework import Framework, framework
from knetstatd.machine import busy, paths
from knetstatd.repair import apply, find, repairs
from knetstatd.system import files
from knetstatd.verdict.observe import Machine

if TYPE_CHECKING:
    from collections.abc import Callable

    Tree = Callable[[dict[str, str]], Path]

K, A, GONE = "6.1.0-55-amd64", "x86_64", "6.1.0-8-amd64"
FILE, MORE = "etc/dkms/framework.conf", "etc/dkms/framework.conf.d"
PROGRAM = Path("/usr/sbin/dkms")
# What both agree on; each is one file's text.
TEXTS = [
    "", "# dkms_tree=/x/y\n", "dkms_tree=/srv/dkms\n", 'dkms_tree="/srv/dkms"', "dkms_tree='/srv/my dkms' # why\n",
    "export dkms_tree=/srv/dkms", "dkms_tree=/srv/one\ndkms_tree=/srv/two\n", "  dkms_tree=/srv/dkms; source_tree=/srv/src\n",
    "base=/srv\ndkms_tree=$base/dkms\n", 'base=/srv\ndkms_tree="${base}/dkms"\n', "dkms_tree=$source_tree/tree\n",
    "mok_signing_key=/k # x\nmok_certificate='/c'\n", "mok_certificate=/a\\ b\n", "dkms_tree=/srv/d\\\nkms\n",
    "sign_file=/usr/bin/kmodsign\nverbose=1\n", "mok_signing_key='pkcs11:object=my%20key;type=private'\n", "dkms_tree=\n",
]  # fmt: skip


def test_without_a_file_it_is_dkms_s_default(tmp_path: Path) -> None:
    assert framework(tmp_path) == Framework("/var/lib/dkms", "/usr/src", "/lib/modules")


def test_a_later_file_wins(tree: Tree) -> None:
    root = tree({
        FILE: "dkms_tree=/srv/main\nmok_signing_key=/k\n", f"{MORE}/20-x.conf": "dkms_tree=/srv/x\n",
        f"{MORE}/10-y.conf": "dkms_tree=/srv/y\nmok_certificate=$dkms_tree/c\n", f"{MORE}/30-z.conf~": "dkms_tree=/srv/z\n",
        f"{MORE}/.hidden.conf": "dkms_tree=/srv/hidden\n",
    })  # fmt: skip
    assert framework(root) == Framework("/srv/x", mok_signing_key="/k", mok_certificate="/srv/y/c")


@pytest.mark.parametrize("value", [
    "", "relative/tree", "/", "/srv", "/srv/../etc", "$(cat /x)/tree", "`x`/tree", "/srv/$kernelver/tree", "'/srv/$x'",
    "/a/$((1))",
])  # fmt: skip
def test_a_tree_that_is_none_or_needs_a_shell_is_not_followed(tree: Tree, value: str) -> None:
    assert framework(tree({FILE: f"dkms_tree={value}\n"})).dkms_tree == "/var/lib/dkms"


def test_a_value_after_a_command_that_may_set_anything_is_not_followed(tree: Tree) -> None:
    assert framework(tree({FILE: "dkms_tree=/srv/dkms\n. /etc/default/site\n"})).dkms_tree == "/var/lib/dkms"


@pytest.mark.parametrize("kind", ["directory", "FIFO", "link to nothing"])
def test_what_is_no_file_is_not_there(tree: Tree, kind: str) -> None:
    root = tree({f"{MORE}/a.conf": "sign_file=/s\n"})
    match kind:
        case "directory":
            (root / FILE).mkdir()
        case "FIFO":
            os.mkfifo(root / FILE)
        case _:
            (root / FILE).symlink_to("nowhere")
    assert framework(root) == Framework(sign_file="/s")


def test_a_nul_is_no_traceback(tree: Tree) -> None:
    """bash skips it, and so does this."""
    root = tree({FILE: "mok_signing_key=/k\0ey\nmok_certificate=/c\0ert\ndkms_tree=/srv/dk\0ms\n"})
    assert framework(root) == Framework("/srv/dkms", mok_signing_key="/key", mok_certificate="/cert")
    machine = Machine(root, Config())
    machine.refresh()


@given(st.binary(max_size=60) | st.sampled_from(TEXTS).map(str.encode), st.sampled_from(["dkms_tree", "mok_certificate", "x"]))
def test_no_text_raises(tmp_path: Path, data: bytes, name: str) -> None:
    (tmp_path / "etc/dkms").mkdir(parents=True, exist_ok=True)
    (tmp_path / FILE).write_bytes(name.encode() + b"=" + data)
    settings_ = framework(tmp_path)
    assert settings_.dkms_tree.startswith("/")
    assert "\0" not in "".join(settings_)
    assert dkms_tree.registered(tmp_path).packages == {}


@pytest.mark.spawns
@pytest.mark.skipif(not PROGRAM.exists(), reason="dkms is not installed")
def test_dkms_reads_the_same(tmp_path: Path) -> None:
    """Its own functions, run on each text: mktemp_or_die, safe_source and what read_framework_conf does."""
    program = PROGRAM.read_text(errors="replace")
    script = "deprecated() { :; }\n"
    for function in ("mktemp_or_die", "safe_source"):
        begin = program.index(f"\n{function}() {{") + 1
        script += program[begin : program.index("\n}\n", begin) + 3]
    names = " ".join(Framework._fields)
    defaults = Framework()
    for name, value in defaults._asdict().items():
        script += f"{name}='{value}'\n"
    script += f'safe_source "$1" {names}\nfor n in {names}; do printf "%s\\0" "${{!n}}"; done\n'
    env = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TMPDIR": os.fspath(tmp_path), "tmp_location": os.fspath(tmp_path)}
    (tmp_path / "etc/dkms").mkdir(parents=True)
    for text in TEXTS:
        (tmp_path / FILE).write_text(text)
        argv = ["bash", "-c", script, "bash", os.fspath(tmp_path / FILE)]
        run = subprocess.run(argv, capture_output=True, text=True, check=True, env=env)
        theirs = Framework(*run.stdout.split("\0")[:-1])
        if theirs.dkms_tree:  # with none dkms does nothing at all
            assert framework(tmp_path) == theirs, text


MOVED = {
    FILE: "dkms_tree=/srv/dkms\n",
    "lib": "-> usr/lib",
    f"usr/lib/modules/{K}/modules.builtin": "",
    f"usr/lib/modules/{K}/modules.dep": "",
    f"boot/vmlinuz-{K}": "",
    "usr/src/m-1/dkms.conf": "PACKAGE_NAME=m\nPACKAGE_VERSION=1\nBUILT_MODULE_NAME[0]=m\nDEST_MODULE_LOCATION[0]=/updates\n",
    "srv/dkms/m/1/source": "-> /usr/src/m-1",
    f"srv/dkms/m/1/{K}/{A}/module/m.ko": "",
    f"srv/dkms/m/kernel-{K}-{A}": f"-> 1/{K}/{A}",
    "var/lib/dkms/other/1/source": "-> /usr/src/other-1",
    "proc/self/mountinfo": "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n",
}


class TestAMovedTree:
    def test_is_read(self, tree: Tree) -> None:
        root = tree(MOVED)
        assert dkms_tree.tree(root) == root / "srv/dkms"
        assert list(dkms_tree.registered(root).packages) == ["m"]
        package = dkms_tree.package(root, "m")
        assert package is not None
        assert package.installed(K) is not None
        assert package.highest.builds[0].directory == root / f"srv/dkms/m/1/{K}/{A}"
        assert package.highest.source == root / "usr/src/m-1"

    def test_a_mark_may_be_absolute(self, tree: Tree) -> None:
        root = tree({**MOVED, f"srv/dkms/m/kernel-{K}-{A}": f"-> /srv/dkms/m/1/{K}/{A}"})
        package = dkms_tree.package(root, "m")
        assert package is not None
        assert package.installed(K)

    def test_names_that_are_refused_are_shown_where_they_are(self, tree: Tree) -> None:
        root = tree({**MOVED, "srv/dkms/$(reboot)/": ""})
        assert dkms_tree.registered(root).refused == ("'/srv/dkms/$(reboot)'",)

    def test_is_watched(self, tree: Tree) -> None:
        root = tree({**MOVED, f"{MORE}/": ""})
        watched = set(paths.watched(root, [K], ["m"], []))
        assert {("dkms", root / "srv/dkms"), ("dkms", root / "srv/dkms/m"), ("boot", root / MORE)} <= watched
        assert not [path for _, path in watched if root / "var/lib/dkms" in (path, *path.parents)]

    def test_is_repaired(self, tree: Tree) -> None:
        root = tree({
            **MOVED, f"srv/dkms/m/1/{GONE}/{A}/module/m.ko": "", f"srv/dkms/m/kernel-{GONE}-{A}": f"-> 1/{GONE}/{A}",
            f"var/lib/dkms/m/1/{GONE}/x": "",
        })  # fmt: skip
        machine = Machine(root, Config(modules=()))
        machine.refresh()
        [dead] = [repair for repair in find.plan(machine, None) if repair.kind == "dead-kernel"]
        assert dead.acts[0] == repairs.Delete(f"/srv/dkms/m/1/{GONE}", "what was built")
        apply.carry_out(machine, dead, ())
        assert not os.path.lexists(root / f"srv/dkms/m/kernel-{GONE}-{A}")
        assert (root / f"srv/dkms/m/1/{K}/{A}/module/m.ko").exists()
        outside = repairs.Repair("x", "x", "x", "x", (repairs.Delete(f"/var/lib/dkms/m/1/{GONE}"),))
        with pytest.raises(AssertionError):
            apply.carry_out(machine, outside, ())

    def test_is_what_dkms_must_not_change_meanwhile(self, tree: Tree) -> None:
        root = tree({**MOVED, "proc/12/comm": "dkms\n", "proc/12/stat": "12 (dkms) S 1 0",
                     "proc/12/mountinfo": MOVED["proc/self/mountinfo"]})  # fmt: skip

        def is_foreign(command: str) -> bool:
            (root / "proc/12/cmdline").write_bytes(b"\0".join(word.encode() for word in command.split()) + b"\0")
            return busy.foreign_dkms(root, None) is not None

        assert is_foreign("/bin/bash /usr/sbin/dkms build m/1")
        assert is_foreign("/bin/bash /usr/sbin/dkms build m/1 --dkmstree /srv/dkms/")
        assert not is_foreign("/bin/bash /usr/sbin/dkms build m/1 --dkmstree /var/lib/dkms")

    def test_is_known_to_dkms_conf(self, tree: Tree) -> None:
        root = tree({**MOVED, "usr/src/m-1/dkms.conf": 'PACKAGE_NAME=m\nPACKAGE_VERSION=1\nMAKE="make D=$dkms_tree"\n'})
        package = dkms_tree.package(root, "m")
        assert package is not None
        assert dkms_tree.conf(root, "m", package.highest).make[0].command == "make D=/srv/dkms"

    def test_may_be_a_link(self, tree: Tree) -> None:
        root = tree({"var/lib/dkms": "-> /srv/dkms", "srv/dkms/m/1/source/dkms.conf": ""})
        assert dkms_tree.tree(root) == root / "srv/dkms"
        assert list(dkms_tree.registered(root).packages) == ["m"]
        assert files.below(root, dkms_tree.tree(root)) == "/srv/dkms"
