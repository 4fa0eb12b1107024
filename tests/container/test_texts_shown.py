# SPDX-License-Identifier: GPL-2.0-or-later
"""What people are shown where they look: `journalctl -x`, the login, the examples of the manuals, the README's commands."""

from __future__ import annotations

import itertools
import re
import shutil
from typing import TYPE_CHECKING

import pytest

from . import product

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .rig import Container

ROOT = product.CHECKOUT
MODULES = ["kt-nocompile", "kt-undef", "kt-noisy", "kt-slow", "kt-story", "kt-nowhere"]


def explained(c: Container, event: str, module: str = "") -> str:
    """What `journalctl -x -u knetstatd` says of the last such event, as a line; waits for the event."""
    found = product.wait(
        f"{event} {module}", lambda: [e for e in product.events(c, module or None) if e["KNETSTATD_EVENT"] == event]
    )
    match = [f"MESSAGE_ID={found[-1]['MESSAGE_ID']}", *([f"KNETSTATD_PACKAGE={module}"] if module else [])]
    text = c.output("journalctl", "-q", "--no-pager", "-x", "-n", "1", "-u", "knetstatd", *match)
    assert "Defined-By: knetstatd" in text, text
    assert "KNETSTATD_" not in text, f"a field that the text names was not sent: {text}"
    return " ".join(text.replace("\u2591\u2591", "").replace("\n--", "\n").split())


def login(c: Container) -> str:
    """What a login shows: a real session, with the lines for pam_motd that this Debian has for login(1)."""
    if "pam_motd" not in c.path("/etc/pam.d/runuser-l").read_text():
        lines = [line for line in c.path("/etc/pam.d/login").read_text().splitlines() if re.match(r"session.*pam_motd", line)]
        assert lines
        with c.path("/etc/pam.d/runuser-l").open("a") as f:
            f.write("\n".join(lines) + "\n")
        link = c.path("/usr/lib/motd.d/knetstatd")
        link.parent.mkdir(exist_ok=True)
        link.symlink_to("/run/knetstatd/motd")
    done = c.run(["runuser", "-l", "root"], stdin="echo the end\n", check=True)
    assert done.stdout.endswith("the end\n")
    assert not c.run(["journalctl", "-q", "-p", "warning", "-t", "runuser"]).stdout
    return re.sub(r"^Linux .*\n", "", done.stdout) + done.stderr


def test_the_journal_explains_every_failure_and_a_login_tells_the_worst(machine: Container) -> None:
    """To somebody who has never seen the program: cause, consequence, command."""
    c = machine
    old, new = c.kernels()[:2]
    for name, files in {"nocompile": None, "undef": None, "noisy": {"outcome": "false\n"}, "slow": {"delay": "60\n"}}.items():
        c.add_fixture(name, autoinstall=False, files=files)
    c.add_fixture("story")
    c.install_kernel(new)
    assert "knetstatd" not in login(c), "all is well as long as nobody says otherwise"
    product.start(c, MODULES, compile_timeout_seconds=10)

    text = explained(c, "source-missing", "kt-nowhere")
    assert "kt-nowhere is not registered with DKMS" in text
    assert "dkms add kt-nowhere/VERSION" in text
    text = explained(c, "wrong-module", "kt-story")
    assert f"The installed kt-story is not right for kernel {new.release}" in text
    assert old.release in text, "which kernel it was built for"
    assert f"knetstatctl explain {new.release}" in text
    text = explained(c, "gave-up", "kt-nocompile")
    assert re.search(r"Why: kt_nocompile\.c line \d+: ", text)
    assert "To do: The module's source does not fit this kernel: get a newer version of it" in text
    assert re.search(r"The log of the build, if any: /var/lib/knetstatd/\S+/kt-nocompile\.log", text)
    text = explained(c, "gave-up", "kt-undef")
    assert "the kernel does not export the symbol kt_undef_nowhere" in text
    assert "get a newer version of this one" in text
    text = explained(c, "gave-up", "kt-noisy")
    assert "the kernel does not export the symbol noise" in text, "the noise claims this, and it is quoted as one line"
    assert re.search(r"To do: \w+", text)
    text = explained(c, "failed", "kt-slow")
    assert "the build did not end within 10 s and was killed" in text
    assert "raise compile_timeout_seconds" in text

    # While a build runs, what waits for it is under way too, and no line at login.
    motd = r"^\d{4}-\d\d-\d\d \d\d:\d\d knetstatd: kt-\w+ .* \(next\): NOT ready: .*\n  To do: .*\n  See: knetstatctl status \("
    product.wait("a login tells the worst", lambda: re.search(motd, login(c), re.M), 120)
    mask = c.path("/etc/motd.d/knetstatd")
    mask.parent.mkdir(exist_ok=True)
    mask.symlink_to("/dev/null")

    def masked() -> bool:
        before, shown, after = c.run(["cat", "/run/knetstatd/motd"]), login(c), c.run(["cat", "/run/knetstatd/motd"])
        return before.stdout == after.stdout != "" and "knetstatd" not in shown

    product.wait("as the manual says", masked, 120)
    mask.unlink()

    def table() -> list[str]:
        shown = terminal(c, "knetstatctl status", NO_COLOR="1")
        return shown if any(line.startswith("    kt_nocompile.c line ") for line in shown) else []

    lines = product.wait("a long reason, below its row", table, 120)
    assert all(len(line) <= 80 for line in lines if not line.startswith("Next")), lines
    assert sum(new.release in line for line in lines if not line.startswith("Next")) == 1, "a kernel is named once"
    assert re.fullmatch(rf"Next, for kt-\w+ on {re.escape(new.release)}: .+", lines[-1])

    c.run(["apt-get", "-q", "-y", "remove", new.headers], check=True)
    text = explained(c, "headers-missing", "kt-undef")
    assert f"Kernel {new.release} has no headers: kt-undef cannot be compiled for it" in text
    assert f"To do: Run: apt install {new.headers}" in text

    c.run(["systemctl", "kill", "--signal=KILL", "knetstatd"], check=True)
    product.wait("its files go with it", lambda: "knetstatd" not in login(c), 10)
    assert c.run(["cat", "/run/knetstatd/status.json"]).returncode == 1
    c.start_product()
    product.wait("they come with the next", lambda: "knetstatd" in login(c), 120)
    c.run(["systemctl", "stop", "knetstatd"], check=True)
    assert "knetstatd" not in login(c), "nobody keeps it true any more"
    assert c.run(["cat", "/run/knetstatd/status.json"]).returncode == 1
    c.write("/etc/knetstatd/knetstatd.toml.d/50-typo.toml", 'setle_seconds = 3\nheaders = "maybe"\n')
    assert c.run(["systemctl", "start", "knetstatd"]).returncode == 1
    text = explained(c, "config-rejected")
    assert (
        "/etc/knetstatd/knetstatd.toml.d/50-typo.toml:1: 'setle_seconds' is not a setting; did you mean settle_seconds?" in text
    )
    assert """headers is 'maybe'; allowed is "report" or "install\"""" in text
    assert "systemctl reload-or-restart knetstatd" in text
    assert "knetstatd does not run: its configuration is faulty" in login(c)


@pytest.fixture(scope="module")
def c() -> Iterator[Container]:
    """A machine where all is well: the bundled module, built by the daemon, which runs."""
    from . import rig

    with rig.container("bookworm") as made:
        version = re.search(r'^PACKAGE_VERSION="(.*)"$', (ROOT / "module/dkms.conf").read_text(), re.M)
        assert version
        shutil.copytree(ROOT / "module", made.path(f"/usr/src/knetstat-{version[1]}"))
        made.run(["dkms", "add", f"knetstat/{version[1]}"], check=True)
        product.start(made, ["knetstat"], load=[])
        product.wait_ready(made)
        product.wait("the daemon says so", lambda: "ready" in product.kinds(made))
        made.add_fixture("undef", autoinstall=False)  # not guarded: a failure for the journal, and all is well
        assert made.run(["knetstatctl", "build", "running", "--module", "kt-undef"]).returncode == 1
        yield made


def test_no_line_at_login_where_all_is_well(c: Container) -> None:
    assert "knetstatd" not in login(c)


def terminal(c: Container, command: str, **env: str) -> list[str]:
    """The lines that a command writes on a terminal of 80 columns."""
    done = c.run(["script", "-qec", f"stty cols 80; {command}", "/dev/null"], env={"TERM": "xterm", **env}, check=True)
    return done.stdout.replace("\r", "").splitlines()


def test_the_table_is_in_colour_on_a_terminal_unless_that_is_not_wanted(c: Container) -> None:
    release = c.kernels()[0].release
    lines = terminal(c, "knetstatctl status")
    assert lines[0].startswith("\x1b[1mKERNEL")
    assert "\x1b[33mready\x1b[0m" in lines[1], "no boot loader says that this kernel starts"
    assert f"Safe to reboot if {release} starts: no boot loader was found" in " ".join(lines[-2:])
    c.write("/boot/grub/grub.cfg", f"menuentry Debian {{\n linux /boot/vmlinuz-{release}\n}}\n")
    lines = terminal(c, "knetstatctl status")
    c.path("/boot/grub/grub.cfg").unlink()
    assert "\x1b[32mready\x1b[0m" in lines[1]
    assert lines[-1] == "Safe to reboot."
    for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in "".join(terminal(c, "knetstatctl status", **env))
    assert "\x1b" not in c.output("knetstatctl", "status")


def test_the_service_status_is_one_line_with_the_verdict(c: Container) -> None:
    release = c.kernels()[0].release
    assert f'Status: "knetstat ready for {release} (next, running)"' in c.output("systemctl", "status", "knetstatd")


# What the rest exits with is 0; here nothing can be loaded, and there is no QEMU to rehearse with.
STATUS = {
    r"knetstatctl sockets\b.*": (1, "Run: modprobe knetstat"),
    r"knetstatctl rehearse\b[^|]*": (3, "qemu-system-x86"),
}


def run(c: Container, command: str) -> None:
    done = c.run(["sh", "-c", command])
    wanted, advice = next((found for pattern, found in STATUS.items() if re.fullmatch(pattern, command)), (0, ""))
    assert done.returncode == wanted, done
    assert done.stdout or wanted or "-q" in command or command.startswith("systemctl reload"), "it prints something"
    assert advice in done.stdout + done.stderr, "and says what to do"
    assert "Traceback" not in done.stderr


def examples() -> list[str]:
    """The commands of the manuals' examples: the lines of their literal blocks that begin with root's prompt."""
    found = []
    for page in sorted((ROOT / "man").glob("*.scd")):
        section = re.split(r"^# (?=[A-Z])", page.read_text().split("# EXAMPLES")[1], flags=re.M)[0]
        blocks = re.findall(r"^```\n(.*?)^```$", section, re.M | re.S)
        found += [line[2:] for block in blocks for line in block.splitlines() if line.startswith("# ")]
    assert len(found) > 10
    return found


@pytest.mark.parametrize("command", examples())
def test_an_example_of_a_manual(c: Container, command: str) -> None:
    c.run(["ln", "-sfn", "/", "/srv/image"], check=True)  # an image with the same system in it
    run(c, command)


def test_the_examples_of_the_configuration(c: Container) -> None:
    """Each literal block of knetstatd.toml(5) that is one is a configuration."""
    text = (ROOT / "man/knetstatd.toml.5.scd").read_text().split("# EXAMPLES")[1]
    blocks = [b for b in re.findall(r"^```\n(.*?)^```$", text, re.M | re.S) if "=" in b]
    assert len(blocks) == 2
    for block in blocks:
        c.write("/etc/knetstatd/knetstatd.toml.d/50-example.toml", block)
        shown = c.output("knetstatctl", "config")
        for line in block.splitlines():
            assert f"{line}  # /etc/knetstatd/knetstatd.toml.d/50-example.toml" in shown
    c.path("/etc/knetstatd/knetstatd.toml.d/50-example.toml").unlink()


def spelled_out(command: str) -> list[str]:
    """A command with all that `[A|B]` and `A|B` in it stand for."""
    words = re.findall(r"\[[^]]*\](?=\s|$)|\S+", command.replace("\\|", "|"))
    choices = [(["", *w[1:-1].split("|")] if w.startswith("[") else w.split("|")) for w in words]
    return [" ".join(filter(None, chosen)) for chosen in itertools.product(*choices)]


def readme() -> list[str]:
    """The commands of README.md for a machine where the product is installed: in tables, text and blocks."""
    text = (ROOT / "README.md").read_text()
    spans = re.findall(r"`((?:knetstatctl|journalctl|systemctl) [^`]+)`", text) + re.findall(r"^    \$ (.*)$", text, re.M)
    return list(dict.fromkeys(command for span in spans for command in spelled_out(span)))


@pytest.mark.parametrize("command", readme())
def test_a_command_of_the_readme(c: Container, command: str) -> None:
    release = c.kernels()[0].release
    file = c.module_file(c.kernels()[0], "knetstat")
    assert file
    command = re.sub(r"\b(KERNEL|K)\b", release, command).replace("FILE.ko", f"/{file.relative_to(c.root)}")
    run(c, command)
    if command.startswith("knetstatctl") and "sockets" not in command:
        run(c, f"{command} --json | python3 -m json.tool")
