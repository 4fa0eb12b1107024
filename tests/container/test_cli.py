# SPDX-License-Identifier: GPL-2.0-or-later
"""knetstatctl as its user meets it: answers, documents, exit codes, errors."""

from __future__ import annotations

import gzip
import json
import lzma
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from . import product

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .rig import Container

pytestmark = pytest.mark.container


@pytest.fixture(scope="module")
def c() -> Iterator[Container]:
    """A machine with one good module built by hand, no daemon."""
    from . import rig

    with rig.container("bookworm") as made:
        made.add_fixture("good", autoinstall=False)
        product.install(made, ["kt-good"])
        done = made.run(["knetstatctl", "build", "running"])
        assert done.returncode == 0, done.stderr
        assert "Compiling kt-good 1.0 for" in done.stderr, "phases are shown, as plain lines where there is no terminal"
        assert f"Safe to reboot if {made.kernels()[0].release} starts: no boot loader was found" in done.stdout
        yield made


def document(c: Container, *argv: str, code: int = 0) -> dict[str, Any]:
    done = c.run(["knetstatctl", *argv, "--json"])
    assert done.returncode == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["schema"] == 1
    return found


def test_status_and_its_document(c: Container) -> None:
    release = c.kernels()[0].release
    text = c.output("knetstatctl", "status")
    assert "\x1b" not in text
    assert f"{release}  next, running  kt-good 1.0  ready" in text
    assert "The daemon does not run" in text
    found = document(c, "status")
    assert found["next"] == found["running"] == release
    assert found["ready"] is True
    [verdict] = found["verdicts"]
    assert {"package", "kernel", "state", "ready", "proof", "reason", "fix", "checks"} <= set(verdict)
    assert {"name", "result", "expected", "found", "reason"} <= set(verdict["checks"][0])
    assert {check["result"] for check in verdict["checks"]} <= {"pass", "not-applicable"}


def test_status_of_all_kernels(c: Container) -> None:
    other = c.kernels()[1]
    c.install_kernel(other)
    c.write("/etc/knetstatd/knetstatd.toml.d/60-all.toml", 'kernels = "all"\n')
    assert len(document(c, "status")["verdicts"]) == 2
    c.path("/etc/knetstatd/knetstatd.toml.d/60-all.toml").unlink()
    c.run(["apt-get", "-q", "-y", "purge", other.image, other.headers], check=True, timeout=300)


def test_verify_of_all_modules(c: Container) -> None:
    """Two are installed, and one that is not is told nothing of."""
    release = c.kernels()[0].release
    c.add_fixture("noisy", autoinstall=False)
    c.run(["dkms", "install", "kt-noisy/1.0", "-k", release], check=True)
    c.write("/etc/knetstatd/knetstatd.toml.d/60-all.toml", 'modules = ["kt-good", "kt-none", "kt-noisy"]\n')
    try:
        found = document(c, "verify", "--kernel", release)
        assert found["loads"] is True
        assert {check["file"].rpartition("/")[2].partition(".ko")[0] for check in found["checks"]} == {"kt_good", "kt_noisy"}
    finally:
        c.path("/etc/knetstatd/knetstatd.toml.d/60-all.toml").unlink()
        c.run(["dkms", "remove", "kt-noisy/1.0", "--all"], check=True)


def test_check(c: Container) -> None:
    assert c.run(["knetstatctl", "check"]).stdout.startswith("OK: kt-good 1.0 for")
    assert c.run(["knetstatctl", "check", "-q", "all"]).stdout == ""
    assert document(c, "check")["exit"] == 0


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["check", "6.1.0-nothere"], 2, "there is no kernel 6.1.0-nothere in /lib/modules. There are: "),
        (["check", "../../etc"], 2, "'../../etc' is not a kernel release"),
        (["check", "--frob"], 2, "unrecognized arguments"),
        (["frob"], 2, "'sockets', 'config')"),  # and no unit's program
        (["verify", "/no/such.ko", "--kernel", "running"], 1, "does not exist"),
        (["verify", "/no/such.ko", "--kernel", "all"], 2, "verify is about one kernel: a release, next or running"),
        (["verify", "/etc/passwd", "--kernel", "running"], 1, "not an ELF file"),
        (["build", "running", "--module", "$(reboot)"], 2, "is not a DKMS module name"),
        (["history", "--lines", "0"], 2, "--lines must be at least 1"),
        (["sockets", "tcp5"], 2, "there is no file 'tcp5'. There are: tcp, tcp6, udp, udp6"),
        (["sockets", "--state", "open"], 2, "there is no state 'OPEN'"),
        (["sockets", "--option", "SO_FROB"], 2, "there is no option 'SO_FROB'"),
        (["sockets"], 1, "Run: modprobe knetstat"),
    ],
)
def test_what_is_wrong_is_said(c: Container, argv: list[str], code: int, words: str) -> None:
    done = c.run(["knetstatctl", *argv])
    assert done.returncode == code, done
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_an_unguarded_module_is_named(c: Container) -> None:
    done = c.run(["knetstatctl", "build", "running", "--module", "not-there"])
    assert done.returncode == 1
    assert "not-there is not registered with DKMS" in done.stdout


def test_verify_takes_every_form_of_a_module(c: Container) -> None:
    release = c.kernels()[0].release
    source = c.module_file(c.kernels()[0], "kt_good")
    assert source
    there = c.path("/root/forms")
    there.mkdir(exist_ok=True)
    plain = source.read_bytes()
    (there / "a.ko").write_bytes(plain)
    (there / "b.ko.xz").write_bytes(lzma.compress(plain))
    (there / "c.ko.gz").write_bytes(gzip.compress(plain))
    subprocess.run(["zstd", "-q", "-o", there / "d.ko.zst", there / "a.ko"], check=True)
    features = c.output("modprobe", "--version")
    for path in sorted(there.iterdir()):
        # What the kernel does not unpack is kmod's to unpack, and Debian's knows no gzip.
        loads = path.suffix != ".gz" or "+ZLIB" in features
        found = document(c, "verify", f"/root/forms/{path.name}", "--kernel", release, code=0 if loads else 1)
        assert found["loads"] is loads, path
        assert loads or [check["name"] for check in found["checks"] if check["result"] == "fail"] == ["compression"]
    (there / "e.ko").write_bytes(plain[: len(plain) // 2])
    assert document(c, "verify", "/root/forms/e.ko", "--kernel", release, code=1)["loads"] is False
    shutil.rmtree(there)


def test_verify_of_the_installed_ones(c: Container) -> None:
    assert "loads on" in c.output("knetstatctl", "verify", "--kernel", "running")


def test_history_is_the_journal(c: Container) -> None:
    entries = document(c, "history")["entries"]
    assert [e["event"] for e in entries] == ["stage-started", "staged", "publish-started", "published"]
    assert all(e["package"] == "kt-good" for e in entries)
    assert "published and verified from the disk" in c.output("knetstatctl", "history")


def test_config_says_where_a_value_comes_from(c: Container) -> None:
    settings = document(c, "config")["settings"]
    assert settings["modules"] == {"value": ["kt-good"], "from": "/etc/knetstatd/knetstatd.toml"}
    assert settings["headers"] == {"value": "report", "from": "default"}


def test_explain(c: Container) -> None:
    text = c.output("knetstatctl", "explain", "running")
    assert "pass            crcs: all equal" in text
    [verdict] = document(c, "explain", "running")["verdicts"]
    assert verdict["last_failure"] is None


def test_a_faulty_configuration_names_file_key_and_what_is_allowed(c: Container) -> None:
    c.write("/etc/knetstatd/knetstatd.toml.d/50-typo.toml", 'setle_seconds = 3\nheaders = "maybe"\n')
    try:
        for argv in (["knetstatctl", "status"], ["knetstatd"]):
            done = c.run(argv)
            assert done.returncode == 78, done
        shown = c.run(["knetstatctl", "status"]).stderr
        assert "/etc/knetstatd/knetstatd.toml.d/50-typo.toml" in shown
        assert "setle_seconds" in shown
        assert "settle_seconds" in shown, "the nearest key is offered"
        assert "maybe" in shown
        assert "install" in shown
    finally:
        c.path("/etc/knetstatd/knetstatd.toml.d/50-typo.toml").unlink()


def test_a_second_daemon_does_not_start(c: Container) -> None:
    c.start_product()
    done = c.run(["knetstatd"])
    assert done.returncode == 1
    assert "another run of knetstatd holds this lock" in done.stderr
    c.run(["systemctl", "stop", "knetstatd"], check=True)


def test_a_faulty_reload_keeps_the_old_configuration(c: Container) -> None:
    c.start_product()
    before = c.path("/etc/knetstatd/knetstatd.toml").read_text()
    c.write("/etc/knetstatd/knetstatd.toml", "modules = 5\n")
    try:
        assert c.run(["systemctl", "reload", "knetstatd"]).returncode == 1
        product.wait("it is rejected", lambda: "config-rejected" in product.kinds(c))
        assert c.output("systemctl", "is-active", "knetstatd") == "active"
        assert json.loads(c.output("cat", "/run/knetstatd/status.json"))["packages"] == ["kt-good"]
    finally:
        c.write("/etc/knetstatd/knetstatd.toml", before)
        c.run(["systemctl", "stop", "knetstatd"], check=True)
