# SPDX-License-Identifier: GPL-2.0-or-later
"""The texts that ship beside the program say what the program does: the message catalog, the manuals, the completions."""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import pty
import re
import select
import subprocess
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sources import FILES, nodes
from test_linters import tool

from knetstatd.cli import arguments as commandline
from knetstatd.core import config
from knetstatd.core.events import Event
from knetstatd.core.model import Attempt, Kind
from knetstatd.formats import knetstat_proc
from knetstatd.verdict import judge, states

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
CATALOG = ROOT / "units/knetstatd.catalog"


def man(name: str) -> str:
    return (ROOT / "man" / f"{name}.scd").read_text()


# What the table of states gives to the daemon, and to the builder after a failure.
VERDICTS = {row.event.name for row in states.TABLE.values() if row.event} | {Event.HALF_CONFIGURED.name}
FAILURES = {event.name for kind in Kind for times in (1, 3) for event, _ in [judge.failure(Attempt(kind, times))]}


# -- the catalog ------------------------------------------------------------------------------------------------------------


def test_what_an_event_always_carries_is_sent_by_everyone_who_sends_it() -> None:
    """Empty is sent for what a caller leaves out, but no caller may leave anything out."""
    seen = set()
    for path in FILES:
        for call in (n for n in nodes(path) if isinstance(n, ast.Call) and n.args):
            if not (isinstance(call.func, ast.Attribute) and call.func.attr in ("log", "_say")):
                continue
            name = ast.unparse(call.func)
            if not name.endswith(("ournal.log", "._say")):
                continue
            given = {k.arg for k in call.keywords} | ({"package", "version", "kernel"} if name.endswith("._say") else set())
            # The builder and the daemon ask the table which event it is.
            asked = {"failure": FAILURES, "verdict.event": VERDICTS}.get(ast.unparse(call.args[0]), set())
            by_name = re.findall(r"\bEvent\.([A-Z_]+)", ast.unparse(call.args[0]))
            for event in [*by_name, *(asked if not by_name else ())]:
                assert set(Event[event].fields) <= given, f"{path.name}:{call.lineno} sends {event} without its fields"
                seen.add(event)
    assert seen == {event.name for event in Event}, "every event is sent by somebody"


# -- the manuals ------------------------------------------------------------------------------------------------------------


def verbs() -> dict[str, argparse.ArgumentParser]:
    """The verbs that are for people."""
    [action] = [a for a in commandline.parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(action.choices)


def options(verb: argparse.ArgumentParser) -> list[list[str]]:
    """Each option's spellings."""
    return [list(a.option_strings) for a in verb._actions if a.option_strings and a.help != argparse.SUPPRESS]


@pytest.mark.parametrize("verb", verbs())
def test_the_manual_has_every_verb_and_option(verb: str) -> None:
    sections = re.split(r"^## ", man("knetstatctl.1").split("# VERBS")[1].split("\n# ")[0], flags=re.M)
    [section] = [s for s in sections if s.startswith(verb)]
    written = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", section.replace("\\", "")))
    common = {"-h", "--help", "--json", "--root"}
    known = {word for words in options(verbs()[verb]) for word in words}
    assert written - common == known - common
    for positional in (a for a in verbs()[verb]._actions if not a.option_strings):
        assert str(positional.metavar) in section


def test_the_manual_explains_every_kind_of_failure() -> None:
    section = man("knetstatd.8").split("# FAILURES")[1].split("\n# ")[0]
    assert re.findall(r"^\*([a-z-]+)\*$", section, flags=re.M) == [str(kind) for kind in Kind]


def setting(row: config.Setting) -> str:
    """How knetstatd.toml.5.scd describes a setting."""
    escape = str.maketrans({c: f"\\{c}" for c in "*`_["})
    text = f"{row.doc} Takes {row.allowed}. The default is {config._toml(row.default)}.".translate(escape)
    return f"*{row.name}*\n" + textwrap.fill(
        text, 110, initial_indent="\t", subsequent_indent="\t", break_long_words=False, break_on_hyphens=False
    )


def test_the_manual_says_of_each_setting_what_the_program_does() -> None:
    text = man("knetstatd.toml.5").split("# SETTINGS")[1].split("\n# ")[0]
    wanted = "\n\n".join(map(setting, config.SETTINGS))
    assert wanted in text, f"these are the settings:\n{wanted}"
    assert len(re.findall(r"^\*", text, flags=re.M)) == len(config.SETTINGS)


def test_help_fits_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for name, parser in {"": commandline.parser(), **verbs()}.items():
        lines = parser.format_help().splitlines()
        assert len(lines) <= 23, f"{name}: {len(lines)} lines, and one is the prompt's"
        assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_every_make_target_that_is_named_exists(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    named = set(re.findall(r"(?:`|^ {4}|&& )make ([a-z-]+)", (ROOT / name).read_text(), flags=re.M))
    assert named
    assert named <= targets


# -- the completions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["knetstatctl.bash", "_knetstatctl", "knetstatctl.fish"])
def test_the_completions_know_every_verb_and_option(path: str) -> None:
    text = (ROOT / "completion" / path).read_text()
    for name, verb in verbs().items():
        assert re.search(rf"\b{name}\b", text), name
        for words in options(verb):
            for word in words:
                bare = word.lstrip("-")
                spelled = rf"-l {bare}\b" if word.startswith("--") else rf"-s {bare}\b"
                wanted = spelled if path.endswith(".fish") else rf"(?<![\w-]){re.escape(word)}(?![\w-])"
                assert re.search(wanted, text), f"{name} {word}"
    assert all(re.search(rf"\b{state}\b", text) for state in knetstat_proc.STATES)


@pytest.fixture
def directories(tmp_path: Path) -> Path:
    """Where the completions find two kernels and a module, and a file to verify."""
    for name in ("lib/modules/6.1.0-9-amd64", "lib/modules/6.12.1+deb13-amd64", "var/lib/dkms/kt-good", "there"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "there/a.ko.xz").touch()
    (tmp_path / "there/b.c").touch()
    return tmp_path


KERNELS = {"6.1.0-9-amd64", "6.12.1+deb13-amd64"}
TOP = {"--root", "--version", "--help", "-h"}  # what may stand before a verb
LINES = [
    ("", {"status", "check", "verify", "build", "rehearse", "explain", "repair", "resign", "history", "sockets", "config"}),
    ("ch", {"check"}),
    ("check ", {"next", "running", "all", *KERNELS}),
    ("resign ", {"next", "running", "all", *KERNELS}),
    ("check --json 6.12", {"6.12.1+deb13-amd64"}),
    ("build --module ", {"kt-good"}),
    ("build --step ", {"build", "load", "headers"}),
    ("verify -k 6", KERNELS),
    ("verify --kernel=6.1.", {"6.1.0-9-amd64"}),
    ("verify there/", {"there/a.ko.xz"}),
    ("history --kernel ", KERNELS),
    ("sockets ud", {"udp", "udp6"}),
    ("config --j", {"--json"}),
    ("--root / ch", {"check"}),
]


def local(path: str, root: Path) -> Path:
    """A completion that looks below `root`."""
    copy = root / path
    text = (ROOT / "completion" / path).read_text()
    copy.write_text(text.replace("/lib/modules", f"{root}/lib/modules").replace("/var/lib/dkms", f"{root}/var/lib/dkms"))
    return copy


@pytest.mark.spawns
@pytest.mark.parametrize(("line", "wanted"), [*LINES, ("--root th", {"there"})])
def test_bash_completes(directories: Path, line: str, wanted: set[str]) -> None:
    words = re.findall(r"=|[^\s=]+", f"knetstatctl {line}") + ([""] if line.endswith((" ", "=")) or not line else [])
    script = f"""
        set -u
        . {local("knetstatctl.bash", directories)}
        COMP_WORDS=({" ".join(f"'{word}'" for word in words)}); COMP_CWORD={len(words) - 1}
        _knetstatctl
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    assert wanted <= set(_run([tool("bash"), "-c", script], directories).split()) <= wanted | TOP


@pytest.mark.spawns
@pytest.mark.parametrize(("line", "wanted"), LINES, ids=[line for line, _ in LINES])
def test_fish_completes(directories: Path, line: str, wanted: set[str]) -> None:
    script = f"source {local('knetstatctl.fish', directories)}; complete -C 'knetstatctl {line}'"
    lines = _run([tool("fish"), "-c", script], directories).splitlines()
    offered = {word.partition("\t")[0].removeprefix("--kernel=") for word in lines}
    assert offered - {"there/b.c"} == wanted, "fish offers every file where one is wanted"


@pytest.mark.spawns
def test_zsh_completes(directories: Path) -> None:
    """Its completion needs its line editor, and that a terminal. One shell answers all: its start takes longest."""
    local("_knetstatctl", directories)
    # Each prompt has a number: when it is there, all that belongs to the line before was shown, and the next may be typed.
    setup = (
        f"fpath=({directories} $fpath); autoload -U compinit; compinit -u -D; bindkey '^I' list-choices;"
        """ precmd() { PS1="<$((++n))> " }\r"""
    )
    kill_line = "\x15"
    with _typing([tool("zsh"), "-f", "-i"], directories) as shown:
        assert "<1>" in shown(setup, {"<1>"})
        for number, (line, wanted) in enumerate(LINES, start=2):
            names, prompt = {os.path.basename(word) for word in wanted}, f"<{number}>"
            offered = {*shown(f"knetstatctl {line}\t", names), *shown(f"{kill_line}\r", {prompt})}
            assert names | {prompt} <= offered, line
            assert not offered & {"-default-", "b.c"}, line


@contextlib.contextmanager
def _typing(argv: list[str], cwd: Path) -> Iterator[Callable[[str, set[str]], list[str]]]:
    """An interactive shell: what it shows for some keys, read until the wanted words are there or ten seconds are over."""
    master, slave = pty.openpty()
    env = {"PATH": "/usr/bin:/bin", "HOME": os.fspath(cwd), "LC_ALL": "C.UTF-8", "TERM": "xterm", "COLUMNS": "200"}
    shell = subprocess.Popen(argv, cwd=cwd, env=env, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)

    def shown(keys: str, wanted: set[str]) -> list[str]:
        os.write(master, keys.encode())
        data, words, deadline = b"", [""], time.monotonic() + 10
        while time.monotonic() < deadline and not wanted <= set(words):
            if select.select([master], [], [], 0.1)[0]:
                data += os.read(master, 65536)
                words = re.sub(r"\x1b[\[(][0-9;?]*[A-Za-z]|[\r\x07]", " ", data.decode(errors="replace")).split()
        return words

    try:
        yield shown
    finally:
        shell.kill()
        shell.wait()
        os.close(master)
        os.close(slave)


@pytest.mark.spawns
@pytest.mark.parametrize("path", sorted((ROOT / "man").glob("*.scd")), ids=lambda path: path.stem)
def test_a_manual_is_built_without_a_warning(path: Path, tmp_path: Path) -> None:
    page = tmp_path / path.stem
    page.write_text(_run([tool("scdoc")], ROOT, path.read_text()))
    assert _run([tool("groff"), "-man", "-Tutf8", "-ww", "-z", str(page)], ROOT) == ""
    assert re.search(r"\.SH (EXAMPLES|SEE ALSO)", page.read_text())


def _run(argv: list[str], cwd: Path, stdin: str = "") -> str:
    """What a program prints, which must succeed and complain of nothing."""
    env = {"PATH": "/usr/bin:/bin", "HOME": os.fspath(cwd), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(argv, cwd=cwd, env=env, input=stdin, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout
