# SPDX-License-Identifier: GPL-2.0-or-later
"""What a unit without privileges leaves is taken only if it is what was asked for, and nothing in it leads elsewhere."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING

import machinetree
import pytest
from machinetree import GOOD, KERNEL

from knetstatd.build import compile_unit, room
from knetstatd.build.compile import Compiled
from knetstatd.core.errors import BuildError, KnetstatdError, NameRefused
from knetstatd.core.model import Kind
from knetstatd.system import process

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.spawns
UNIT = "knetstatd-compile@6.1.0\\x2d1\\x2damd64.service"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    machinetree.make(tmp_path)
    return tmp_path


def compiled(root: Path) -> Compiled:
    work = root / "work"
    work.mkdir(exist_ok=True)
    return compile_unit.compile_package(machinetree.job(root), work)


def refused(root: Path) -> BuildError:
    with pytest.raises(BuildError) as e:
        compiled(root)
    return e.value


def test_without_systemd_it_is_compiled_here(root: Path) -> None:
    assert compiled(root).staged is not None
    assert machinetree.ran(root, "systemctl") == []


def test_the_result_is_copied(root: Path) -> None:
    machinetree.outcome(root)
    machinetree.tell(root, "systemctl start", "echo; sleep 0.05")  # it has more time than none
    done = compiled(root)
    assert done.staged is not None
    [module] = done.staged.modules
    assert module.read_bytes() == GOOD
    assert root / "work" in module.parents
    assert (done.log, done.staged.log.read_text()) == ("made in the unit\n", "made in the unit\n")
    assert machinetree.ran(root, "dkms") == [], "nothing is compiled with privileges"
    killed, waited, forgot, started, *_ = machinetree.ran(root, "systemctl")
    assert killed == "kill --signal=KILL -- knetstatd-compile@*.service", "what a killed builder left writes there, too"
    assert [waited, forgot] == [f"{word} -- knetstatd-compile@*.service" for word in ("stop", "reset-failed")]
    assert started == f"start -- {UNIT}"


def test_what_else_the_build_left_is_copied(root: Path) -> None:
    place = machinetree.outcome(root, more=["Module.symvers", "log/.config", "generated/a/b.h"])
    for number, text in enumerate(("symvers", "config", "header")):
        machinetree.write(place / f"more.{number}", text)
    done = compiled(root)
    assert done.staged is not None
    assert {name: path.read_text() for name, path in done.staged.more} == {
        "Module.symvers": "symvers", "log/.config": "config", "generated/a/b.h": "header"
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "a/../../x", "a//b", ".", "", "a/.", "module/other.ko", "log/make.log", "a\nb", "a" * 256]
)
def test_what_would_lie_elsewhere_is_refused(root: Path, name: str) -> None:
    place = machinetree.outcome(root, more=[name])
    machinetree.write(place / "more.0", "x")
    assert "its names are not names of files" in refused(root).what


def test_a_link_among_it_is_not_followed(root: Path) -> None:
    place = machinetree.outcome(root, more=["Module.symvers"])
    (place / "more.0").symlink_to("/etc/shadow")
    assert refused(root).kind == Kind.INTERRUPTED
    machinetree.outcome(root, more=[f"f{number}" for number in range(257)])
    assert "its names are not names of files" in refused(root).what


@pytest.mark.parametrize(
    ("result", "kind", "what", "fix"),
    [
        ("oom-kill", Kind.MEMORY, "the compilation was killed for want of memory", "systemctl edit knetstatd-compile@.service"),
        ("signal", Kind.INTERRUPTED, "the unit that compiles failed (signal)", f"Run: journalctl -u '{UNIT}'"),
        ("", Kind.INTERRUPTED, "the unit that compiles failed (no result)", f"Run: journalctl -u '{UNIT}'"),
    ],
)
def test_the_unit_failed(root: Path, result: str, kind: Kind, what: str, fix: str) -> None:
    machinetree.outcome(root)
    machinetree.tell(root, "systemctl show", f"echo ActiveState=failed; echo Result={result}; exit")
    error = refused(root)
    assert (error.kind, error.what, error.where) == (kind, what, UNIT)
    assert error.fix.endswith(fix)


def test_the_unit_was_killed_for_its_time(root: Path) -> None:
    machinetree.outcome(root)
    machinetree.tell(root, "systemctl show", "echo ActiveState=inactive; echo Result=timeout; exit")
    assert compiled(root) == Compiled(None, -9, True, "", "")


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"of": ["6.2", "demo", "1.0"]}, "the result of another run"),
        ({"of": [KERNEL, "demo", "2.0"]}, "the result of another run"),
        ({"modules": ["../../evil.ko"]}, "not names of modules"),
        ({"arch": ".."}, "not names of modules"),
        ({"modules": ["demo.ko"] * 257}, "not names of modules"),
        ({"modules": ["gone.ko"]}, "No such file"),
        ({"modules": 5}, "must be an array"),
        ({"code": "x"}, "must be an integer"),
    ],
)
def test_what_was_not_asked_for(root: Path, fields: dict[str, object], word: str) -> None:
    machinetree.outcome(root, **fields)
    error = refused(root)
    assert (error.kind, word in error.what) == (Kind.INTERRUPTED, True), error.what


def test_nothing_was_left(root: Path) -> None:
    place = machinetree.outcome(root)
    (place / "outcome.json").write_text("{")
    assert refused(root).kind == Kind.INTERRUPTED
    (place / "outcome.json").unlink()
    error = refused(root)
    assert error.what == "the compilation left no usable result: No such file or directory"
    assert error.where == os.fspath(place.parent)


def test_as_much_is_taken_and_no_more(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = machinetree.outcome(root, modules=["demo.ko"] * 256, more=[f"f{number}" for number in range(256)])
    for number in range(256):
        (place / f"more.{number}").touch()
    size = (place / "outcome.json").stat().st_size
    monkeypatch.setattr(compile_unit, "LOG_LIMIT", -(-size // 8))
    done = compiled(root)
    assert done.staged is not None
    assert (len(done.staged.modules), len(done.staged.more)) == (1, 256)
    monkeypatch.setattr(compile_unit, "LOG_LIMIT", size // 8 - 1)
    assert "is larger than" in refused(root).what


def link(place: Path) -> None:
    (place / "demo.ko").rename(place.parent / "demo.ko")
    (place / "demo.ko").symlink_to("../demo.ko")


def pipe(place: Path) -> None:
    (place / "demo.ko").unlink()
    os.mkfifo(place / "demo.ko")


def directory_link(place: Path) -> None:
    place.rename(place.parent / "elsewhere")
    place.symlink_to("elsewhere")


@pytest.mark.parametrize("replace", [link, pipe, directory_link])
def test_what_leads_elsewhere_is_not_read(root: Path, replace: object) -> None:
    place = machinetree.outcome(root)
    assert callable(replace)
    replace(place)
    assert refused(root).kind == Kind.INTERRUPTED


def test_what_the_unit_says_of_the_source(root: Path) -> None:
    machinetree.outcome(root, error={"kind": "dkms-conf", "what": "it has\x1b no source", "fix": "x" * 401})
    error = refused(root)
    assert (error.kind, error.what, error.where, error.fix) == (Kind.CONF, "it has? no source", "", "x" * 397 + "...")


def test_the_order_and_what_the_build_sees_of_the_kernel(root: Path) -> None:
    machinetree.outcome(root)
    running = f"Linux version {os.uname().release} (me@there) (gcc 12) #1 SMP 2026\n"
    machinetree.write(root / "proc/version", running)
    umask = os.umask(0o077)
    try:
        compiled(root)
    finally:
        os.umask(umask)
    place = root / "run/knetstatd-build/compile"
    assert json.loads((place / "order.json").read_text()) == {"kernel": KERNEL, "package": "demo"}
    assert (place / "osrelease").read_text() == f"{KERNEL}\n"
    assert (place / "version").read_text() == f"Linux version {KERNEL} (me@there) (gcc 12) #1 SMP 2026\n"
    assert [stat.S_IMODE(p.stat().st_mode) for p in (place, *sorted(place.iterdir()))] == [0o755, 0o644, 0o644, 0o644]


def order(root: Path, **fields: object) -> None:
    document = {"kernel": KERNEL, "package": "demo", **fields}
    machinetree.write(root / "run/knetstatd-build/compile/order.json", json.dumps(document))


class TestProgram:
    """The program of the unit, and the builder that takes what it leaves."""

    @pytest.fixture
    def cache(self, root: Path) -> Path:
        place = machinetree.outcome(root).parent
        machinetree.write(place / "old/file", "left by another run")
        order(root)
        return place

    def test_what_it_leaves_is_what_the_builder_takes(self, root: Path, cache: Path) -> None:
        machinetree.tell(root, "dkms build", 'stat -c "%a %n" "${9%/tree}" >"$root/where"')
        compile_unit.unit_program(machinetree.machine(root), KERNEL, os.fspath(cache))
        assert (root / "where").read_text().startswith(f"755 {cache}/"), "where it may write, and its user may look"
        assert os.listdir(cache) == ["result"]
        assert sorted(os.listdir(cache / "result")) == ["demo.ko", "outcome.json"]
        assert [stat.S_IMODE(place.stat().st_mode) for place in (cache, cache / "result")] == [0o755, 0o755]
        done = compiled(root)
        assert done.staged is not None
        assert done.staged.modules[0].read_bytes() == GOOD
        assert done.log == f"made for {KERNEL}\n"

    def test_a_failed_compilation(self, root: Path, cache: Path) -> None:
        machinetree.tell(root, "dkms build", "echo broken; exit 10")
        compile_unit.unit_program(machinetree.machine(root), KERNEL, os.fspath(cache))
        done = compiled(root)
        assert (done.staged, done.code, done.output, done.timed_out) == (None, 10, "broken\n", False)
        assert json.loads((cache / "result/outcome.json").read_text())["arch"] == ""

    def test_a_compilation_that_takes_too_much_room(self, root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(room, "_MOST", -(1 << 60))  # so much must stay free
            compile_unit.unit_program(machinetree.machine(root), KERNEL, os.fspath(cache))
        assert os.listdir(cache) == ["result"]
        error = refused(root)
        assert (error.kind, error.where) == (Kind.DISK, "")
        assert error.what.startswith("the compilation was ended: only ")
        assert error.fix.startswith(f"df -h -i {cache}/")
        assert json.loads((cache / "result/outcome.json").read_text())["of"] == [KERNEL, "demo", "1.0"]

    def test_a_link_in_the_place_of_a_module_stays_one(self, root: Path, cache: Path) -> None:
        """What it leads to is not copied; the builder then refuses it."""
        module = 'mkdir -p "$9/demo/1.0/$7/x/module"; ln -s /etc/hostname "$9/demo/1.0/$7/x/module/demo.ko"; exit'
        machinetree.tell(root, "dkms build", module)
        compile_unit.unit_program(machinetree.machine(root), KERNEL, os.fspath(cache))
        assert os.readlink(cache / "result/demo.ko") == "/etc/hostname"
        assert refused(root).kind == Kind.INTERRUPTED

    def test_what_cannot_be_removed_is_in_nobodys_way(self, root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        machinetree.program(root / "weak/rm", root, 'case $3 in */result) exit 1 ;; esac; exec /bin/rm "$@"')
        monkeypatch.setattr(process, "PATH", f"{root}/weak:{process.PATH}")
        compile_unit.unit_program(machinetree.machine(root), KERNEL, os.fspath(cache))
        assert sorted(os.listdir(cache / "result")) == ["demo.ko", "outcome.json"]
        [other] = {*os.listdir(cache)} - {"result"}
        assert (cache / other / "demo.ko").read_bytes() == GOOD
        assert compiled(root).log == f"made for {KERNEL}\n"

    def test_a_package_without_a_source(self, root: Path, cache: Path) -> None:
        (root / "usr/src/demo-1.0/dkms.conf").unlink()
        compile_unit.unit_program(machinetree.machine(root), KERNEL, os.fspath(cache))
        assert json.loads((cache / "result/outcome.json").read_text())["of"][:2] == [KERNEL, "demo"]
        error = refused(root)
        assert (error.kind, "has no dkms.conf" in error.what) == (Kind.CONF, True)

    def test_it_is_not_for_people(self, root: Path) -> None:
        with pytest.raises(KnetstatdError, match="this is the program of .*Run: knetstatctl build 6"):
            compile_unit.unit_program(machinetree.machine(root), KERNEL, "")
        with pytest.raises(NameRefused):
            compile_unit.unit_program(machinetree.machine(root), "$(x)", os.fspath(root))

    def test_it_does_what_is_ordered_and_nothing_else(self, root: Path, cache: Path) -> None:
        for wrong in ({"kernel": "6.9"}, {"kernel": 5}):
            order(root, **wrong)
            with pytest.raises(KnetstatdError):
                compile_unit.unit_program(machinetree.machine(root), KERNEL, os.fspath(cache))
        order(root, package="../x")
        with pytest.raises(NameRefused):
            compile_unit.unit_program(machinetree.machine(root), KERNEL, os.fspath(cache))
        (root / "run/knetstatd-build/compile/order.json").unlink()
        with pytest.raises(KnetstatdError, match="there is no order to compile for"):
            compile_unit.unit_program(machinetree.machine(root), KERNEL, os.fspath(cache))
        assert machinetree.ran(root, "dkms") == []
