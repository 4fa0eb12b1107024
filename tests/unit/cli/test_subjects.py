# SPDX-License-Identifier: GPL-2.0-or-later
"""Another root: its own files decide, its links stay inside, and this machine is not asked."""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import systems
from kerneltree import KERNEL
from systems import LINKABLE, MOVABLE, NEWER

from knetstatd.cli.main import main
from knetstatd.rehearsal.vm import CpioFile, cpio
from knetstatd.state.paths import places as paths_of
from knetstatd.system import files, locks

if TYPE_CHECKING:
    from collections.abc import Iterator

# What shows the machine that runs these tests, and nothing of Python's own.
HERE = ("/proc", "/sys", "/boot", "/etc", "/var", "/run", "/lib/modules", "/usr/lib/modules", "/usr/src", "/srv")
# An audit hook stays for the whole process: it notes paths only while this is a list.
opened: list[list[str]] = []


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if opened and event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str | bytes | os.PathLike):
        opened[-1].append(os.fspath(os.fsdecode(arguments[0])))


sys.addaudithook(_note)


@pytest.fixture
def paths() -> Iterator[list[str]]:
    """The paths that were opened in the test."""
    opened.append([])
    yield opened[-1]
    opened.clear()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return systems.make(tmp_path)


def asked(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> dict[str, Any]:
    """The document of a verb, without what differs from run to run."""
    capsys.readouterr()
    assert main([*argv, "--json"]) == code
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The essence of a root without links."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["explain", "--root", os.fspath(systems.make(tmp_path_factory.mktemp("plain"))), "--json"]) == 0
    return essence(json.loads(out.getvalue()))


def essence(document: dict[str, Any]) -> list[Any]:
    """What is decided, without the names of files."""
    rows = [(v["package"], v["version"], v["kernel"], v["role"], v["state"], v["ready"], v["why"], v["proof"],
             [(check["name"], check["result"]) for check in v["checks"]]) for v in document["verdicts"]]  # fmt: skip
    return [document["next"], document["next_why"], document["running"], document["packages"], document["kernels"], rows]


@pytest.mark.parametrize("kernel", [KERNEL, NEWER])
def test_next_is_what_its_boot_loader_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str], kernel: str) -> None:
    root = os.fspath(systems.make(tmp_path, kernel))
    code = 0 if kernel == KERNEL else 1  # the module was built for one of them
    document = asked(capsys, "--root", root, "check", code=code)
    assert (document["next"], document["running"]) == (kernel, "")
    assert [(v["kernel"], v["role"], v["ready"]) for v in document["verdicts"]] == [(kernel, "next", code == 0)]


def test_every_verb_that_reads_takes_it_before_and_after(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = os.fspath(root)
    for verb in ("status", "check", "verify", "explain", "config"):
        first = asked(capsys, "--root", place, verb)
        assert asked(capsys, verb, "--root", place) == first
        assert place not in json.dumps(first.get("next")), verb
    assert asked(capsys, "--root", place, "config")["settings"]["modules"] == {
        "value": ["demo"], "from": "/etc/knetstatd/knetstatd.toml",
    }  # fmt: skip
    assert main(["--root", place, "status"]) == 0
    text = capsys.readouterr().out
    assert f"{KERNEL}  next  demo 1.0  ready" in text
    assert f"This is about {place}, which does not run" in text
    assert "systemctl" not in text


@pytest.mark.parametrize("verb", ["build", "rehearse", "repair", "history"])
def test_a_verb_that_acts_says_that_it_does_not_take_it_yet(root: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    before = systems.snapshot(root)
    assert main([verb, "--root", os.fspath(root), *(["next"] if verb == "build" else [])]) == 2
    said = capsys.readouterr().err
    assert f"{verb} --root cannot be done yet: it " in said
    assert f"chroot {root}) and run there: knetstatctl {verb}" in said
    assert systems.snapshot(root) == before


@pytest.mark.parametrize("place", MOVABLE)
def test_a_directory_that_is_an_absolute_link(
    root: Path, capsys: pytest.CaptureFixture[str], plain: list[Any], place: str
) -> None:
    systems.relink(root, place)
    assert essence(asked(capsys, "explain", "--root", os.fspath(root))) == plain


@pytest.mark.parametrize("place", LINKABLE)
def test_a_file_that_is_an_absolute_link(root: Path, capsys: pytest.CaptureFixture[str], plain: list[Any], place: str) -> None:
    systems.relink(root, place)
    assert essence(asked(capsys, "explain", "--root", os.fspath(root))) == plain


def test_the_configuration_is_the_one_of_the_root_behind_links(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drop_in = systems.write(root / "etc/knetstatd/knetstatd.toml.d/50-more.toml", "settle_seconds = 7\n")
    systems.write(root / "usr/lib/knetstatd/knetstatd.toml.d/60-masked.toml", "settle_seconds = 9\n")
    (drop_in.parent / "60-masked.toml").symlink_to(os.devnull)
    systems.relink(root, "etc/knetstatd/knetstatd.toml.d/50-more.toml")
    systems.relink(root, "etc/knetstatd")
    settings = asked(capsys, "config", "--root", os.fspath(root))["settings"]
    assert settings["settle_seconds"] == {"value": 7.0, "from": "/etc/knetstatd/knetstatd.toml.d/50-more.toml"}


def test_nothing_of_this_machine_is_opened_and_nothing_is_written(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, paths: list[str]
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/somewhere/else")  # systemd's words are about this machine
    disk = cpio([CpioFile(f"usr/lib/modules/{KERNEL}/kernel/x.ko", stat.S_IFREG | 0o644, b"x")])
    systems.write(root / f"boot/initrd.img-{KERNEL}", disk)  # the digests of an initrd are kept, on a machine that runs
    (root / "var/lib/knetstatd").mkdir()
    for verb in ("status", "check", "verify", "explain", "config"):  # what is imported for the first time is read here
        main(["--root", os.fspath(root), verb])
    before = systems.snapshot(root)
    assert not list((root / "var/lib/knetstatd").iterdir())
    paths.clear()
    for verb in ("status", "check", "verify", "explain", "config"):
        main(["--root", os.fspath(root), verb])
    assert any(path.startswith(os.fspath(root)) for path in paths)
    outside = [path for path in paths if not path.startswith(os.fspath(root))]
    assert not [path for path in outside if path.startswith(HERE)]
    assert systems.snapshot(root) == before


def test_locks_and_transactions_are_not_asked_for(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody works on a system that does not run; what an interrupted transaction left is in dpkg's files."""
    places = paths_of(root)
    with locks.locked(places.build_lock, 0.0), locks.locked(places.daemon_lock, 0.0):
        [verdict] = asked(capsys, "--root", os.fspath(root), "check")["verdicts"]
        [other] = asked(capsys, "--root", os.fspath(root), "check", NEWER, code=1)["verdicts"]
    assert (verdict["state"], verdict["in_progress"]) == ("ready", False)
    assert other["state"] == "not-built", "nobody builds it"
    stanza = f"Package: linux-image-{KERNEL}\nStatus: install ok half-configured\n\n"
    systems.write(root / "var/lib/dpkg/status", stanza)
    systems.relink(root, "var/lib/dpkg")
    [verdict] = asked(capsys, "--root", os.fspath(root), "check", code=1)["verdicts"]
    assert verdict["state"] == "kernel-half-configured"


def test_what_is_mounted_in_another_root_is_this_machine() -> None:
    """/proc/self/root is another way to /, with everything that is mounted there."""
    root = Path("/proc/self/root")
    assert files.of_kernel(files.HERE, "/proc/cmdline").exists()
    assert (root / "proc/cmdline").exists()
    for path in ("/proc/cmdline", "proc/net/tcpstat", "/sys/module", "/sys/firmware/efi"):
        assert not files.of_kernel(root, path).exists()
    assert files.of_kernel(root, "/etc/passwd") == root / "etc/passwd"


def test_no_kernel_runs_there(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", os.fspath(root), "check", "running"]) == 2
    assert capsys.readouterr().err == (
        f"knetstatctl: no kernel runs in another root. Name next, or one of: {KERNEL}, {NEWER}\n"
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone", "it does not exist. Unpack or mount"),
        ("image.qcow2", "it is not a directory. Unpack or mount the image"),
        ("link/gone", "it does not exist"),
        ("..", "it is not an absolute path. Give the whole path: --root /"),
        ("", "it is not an absolute path"),
        ("new\nline", "it is not an absolute path"),
    ],
)
def test_a_root_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: str) -> None:
    (tmp_path / "image.qcow2").touch()
    (tmp_path / "link").symlink_to("/gone")
    place = name if name in ("..", "", "new\nline") else os.fspath(tmp_path / name)
    for argv in (["--root", place, "check"], ["config", "--root", place], ["sockets", f"--root={place}"]):
        assert main(argv) == 2
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
    document = asked(capsys, "--root", place, "status", code=2)
    assert words.split(".")[0] in document["error"]["what"]


def test_this_machines_root_is_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    ordinary = asked(capsys, "status")
    assert asked(capsys, "--root", "/", "status") == ordinary
    assert asked(capsys, "--root", "//usr/../", "status") == ordinary
    assert ordinary["running"] == os.uname().release
