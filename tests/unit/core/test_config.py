# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration: precedence, every setting's limits, every error with its place, and the shipped example."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knetstatd.core import config
from knetstatd.core.config import Config
from knetstatd.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    Tree = Callable[[dict[str, str]], Path]

MAIN = "etc/knetstatd/knetstatd.toml"
EXAMPLE = Path(__file__).parents[3] / "etc/knetstatd.toml"


def faults(root: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.load(root)
    assert caught.value.exit_code == 78
    return caught.value.what.split("\n")


def test_it_works_without_any_file(tmp_path: Path) -> None:
    assert config.load(tmp_path) == Config()
    modules = ("knetstat",)
    assert Config() == (
        modules, modules, "reload", "next+running", 3.0, 1800.0, 300.0, "report", "report", "delay", 300.0,
        "auto", 120.0, 30.0, 3600.0, 900.0,
    )  # fmt: skip


def test_every_field_is_a_setting_and_every_default_is_allowed() -> None:
    assert tuple(setting.name for setting in config.SETTINGS) == Config._fields
    for setting in config.SETTINGS:
        default = list(setting.default) if isinstance(setting.default, tuple) else setting.default
        assert setting.parse(default) == setting.default


def example() -> str:
    """The commented configuration file: every setting with its default, all commented out."""
    parts = [
        "# SPDX-License-Identifier: GPL-2.0-or-later\n"
        "# The configuration of knetstatd; see knetstatd.toml(5). Each setting is shown with its default.\n"
        "# Change it in /etc/knetstatd/knetstatd.toml, or in /etc/knetstatd/knetstatd.toml.d/NN-name.toml.\n"
        "# Then: systemctl reload knetstatd. `knetstatctl config` shows what is in force, and which file says so.\n"
    ]
    for setting, row in zip(config.SETTINGS, config.describe(Config(), {}), strict=True):
        text = f"{setting.doc} Takes {setting.allowed}."
        lines = [""]
        for word in text.split():
            if len(lines[-1]) + len(word) > 110:
                lines.append("")
            lines[-1] += f" {word}"
        parts.append("".join(f"#{line}\n" for line in lines) + f"#{setting.name} = {row.default}\n")
    return "\n".join(parts)


def test_the_shipped_example_is_made_from_the_table() -> None:
    text = EXAMPLE.read_text()
    assert text == example()
    assert tomllib.loads(text) == {}
    # Uncommented it is the default configuration.
    settings_only = re.sub(r"^#(?=[a-z_]+ = )", "", text, flags=re.MULTILINE)
    table = tomllib.loads(settings_only)
    assert set(table) == set(Config._fields)


def test_the_uncommented_example_loads_as_the_defaults(tree: Tree) -> None:
    root = tree({MAIN: re.sub(r"^#(?=[a-z_]+ = )", "", EXAMPLE.read_text(), flags=re.MULTILINE)})
    assert config.load(root) == Config()


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("modules = []", "modules", ()),
        ('modules = ["a", "b-1.0", "a"]', "modules", ("a", "b-1.0")),
        ('modules = ["*"]', "modules", ("*",)),
        ('kernels = "all"', "kernels", "all"),
        ("kernels = 3", "kernels", 3),
        ("settle_seconds = 0.1", "settle_seconds", 0.1),
        ("settle_seconds = 600", "settle_seconds", 600.0),
        ('headers = "install"', "headers", "install"),
        ("resync_seconds = 1e3", "resync_seconds", 1000.0),
    ],
)
def test_values(tree: Tree, text: str, field: str, value: object) -> None:
    assert getattr(config.load(tree({MAIN: text})), field) == value


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('modules = "knetstat"', "'knetstat'"),
        ('modules = ["../x"]', "['../x']"),
        ('modules = ["$(x)"]', "['$(x)']"),
        ("modules = [1]", "[1]"),
        ("kernels = 0", "0"),
        ("kernels = true", "true"),
        ("kernels = 2.0", "2.0"),
        ('kernels = "some"', "'some'"),
        ("settle_seconds = 0", "0"),
        ("settle_seconds = 601", "601"),
        ("settle_seconds = nan", "nan"),
        ("settle_seconds = true", "true"),
        ('settle_seconds = "3"', "'3'"),
        ('headers = "Install"', "'Install'"),
        ("headers = []", "[]"),
        ("[headers]\nx = 1", "{'x': 1}"),
        ("resync_seconds = 9.9", "9.9"),
        ("resync_seconds = 2020-01-01", "datetime.date(2020, 1, 1)"),
        ("resync_seconds = -inf", "-inf"),
        (f"kernels = 0x{'f' * 5000}", "a number with thousands of digits"),
        (f'headers = "{"x" * 500}"', f"'{'x' * 76}..."),
    ],
)
def test_values_that_are_not_allowed(tree: Tree, text: str, found: str) -> None:
    name = re.split(r"[^a-z_]+", text.lstrip("["))[0]
    allowed = next(s.allowed for s in config.SETTINGS if s.name == name)
    assert faults(tree({MAIN: f"\n{text}\n"})) == [f"/{MAIN}:2: {name} is {found}; allowed is {allowed}"]


def test_all_faults_of_all_files_come_at_once(tree: Tree) -> None:
    root = tree({
        MAIN: '# comment\nsetle_seconds = 3\nkernels = 0\n\n[build]\ntimeout = 1\n',
        "etc/knetstatd/knetstatd.toml.d/50.toml": 'headers = "no"\n',
        "etc/knetstatd/knetstatd.toml.d/60.toml": "kernels = \n",
        "etc/knetstatd/knetstatd.toml.d/70.toml/": "",
        "etc/knetstatd/knetstatd.toml.d/75.toml": "-> nowhere",
        "etc/knetstatd/knetstatd.toml.d/80.toml": 'kernels = 3\n"zz\\n" = 1\n',
    })  # fmt: skip
    every = ", ".join(Config._fields)
    # What tomllib says differs between its versions.
    assert [line.split(" (at line 1")[0] for line in faults(root)] == [
        f"/{MAIN}:2: 'setle_seconds' is not a setting; did you mean settle_seconds?",
        f'/{MAIN}:3: kernels is 0; allowed is "next+running", "all", or a number from 1 to 1000',
        f"/{MAIN}:5: 'build' is not a setting; there are {every}",
        '/etc/knetstatd/knetstatd.toml.d/50.toml:1: headers is \'no\'; allowed is "report" or "install"',
        "/etc/knetstatd/knetstatd.toml.d/60.toml: not TOML: Invalid value",
        "/etc/knetstatd/knetstatd.toml.d/70.toml: cannot be read: Is a directory",
        "/etc/knetstatd/knetstatd.toml.d/75.toml: cannot be read: No such file or directory",
        f"/etc/knetstatd/knetstatd.toml.d/80.toml: 'zz\\n' is not a setting; there are {every}",
    ]


def test_settings_that_contradict_each_other(tree: Tree) -> None:
    root = tree({MAIN: "retry_first_seconds = 7200\n"})
    assert faults(root) == [f"/{MAIN}: retry_longest_seconds (3600) is less than retry_first_seconds (7200)"]
    tree({"etc/knetstatd/knetstatd.toml.d/9.toml": "retry_longest_seconds = 10\n"})
    assert faults(root)[0].startswith("/etc/knetstatd/knetstatd.toml.d/9.toml: retry_longest_seconds (10) is less")
    # Nothing is concluded from a value that is itself refused.
    tree({"etc/knetstatd/knetstatd.toml.d/9.toml": "retry_longest_seconds = 0\n"})
    assert len(faults(root)) == 1


def test_the_first_main_file_alone_counts(tree: Tree) -> None:
    root = tree({"usr/lib/knetstatd/knetstatd.toml": "kernels = 1\nresync_seconds = 11"})
    assert config.load(root) == Config(kernels=1, resync_seconds=11)
    for n, directory in enumerate(("usr/local/lib", "run", "etc"), 2):
        tree({f"{directory}/knetstatd/knetstatd.toml": f"kernels = {n}"})
        assert config.load(root) == Config(kernels=n)


def test_drop_ins_by_file_name_whatever_their_directory(tree: Tree) -> None:
    root = tree({
        MAIN: "kernels = 1\nsettle_seconds = 1",
        "usr/lib/knetstatd/knetstatd.toml.d/90-vendor.toml": "kernels = 90",
        "etc/knetstatd/knetstatd.toml.d/20-admin.toml": 'kernels = 20\nmodules = ["a", "b"]',
        "run/knetstatd/knetstatd.toml.d/30-runtime.toml": 'modules = ["c"]',
        "etc/knetstatd/knetstatd.toml.d/.hidden.toml": "kernels = 7",
        "etc/knetstatd/knetstatd.toml.d/99-notes.txt": "not TOML",
    })  # fmt: skip
    assert config.load(root) == Config(kernels=90, settle_seconds=1, modules=("c",))


@pytest.mark.parametrize("order", [("etc", "run"), ("run", "usr/local/lib"), ("usr/local/lib", "usr/lib")])
def test_of_drop_ins_with_one_name_the_first_directory_wins(tree: Tree, order: tuple[str, str]) -> None:
    first, second = order
    root = tree({
        f"{first}/knetstatd/knetstatd.toml.d/50.toml": "kernels = 1",
        f"{second}/knetstatd/knetstatd.toml.d/50.toml": "kernels = 2\nresync_seconds = 50",
    })  # fmt: skip
    assert config.load(root) == Config(kernels=1)


@pytest.mark.parametrize("mask", ["-> /dev/null", ""])
def test_masks(tree: Tree, mask: str) -> None:
    root = tree({
        "etc/knetstatd/knetstatd.toml.d/50.toml": mask,
        "usr/lib/knetstatd/knetstatd.toml.d/50.toml": "kernels = 2",
        MAIN: mask,
        "usr/lib/knetstatd/knetstatd.toml": "kernels = 3",
    })  # fmt: skip
    assert config.load(root) == Config()


def test_describe_says_where_each_value_is_from(tree: Tree) -> None:
    root = tree({MAIN: 'modules = ["a", "*"]\nkernels = 3', "run/knetstatd/knetstatd.toml.d/5.toml": "settle_seconds = 0.5"})
    rows = config.describe(*config.with_origins(root))
    assert [(row.name, row.value, row.origin, row.default) for row in rows[:5]] == [
        ("modules", '["a", "*"]', f"/{MAIN}", '["knetstat"]'),
        ("load", '["knetstat"]', "default", '["knetstat"]'),
        ("unloaded", '"reload"', "default", '"reload"'),
        ("kernels", "3", f"/{MAIN}", '"next+running"'),
        ("settle_seconds", "0.5", "/run/knetstatd/knetstatd.toml.d/5.toml", "3"),
    ]
    assert len(rows) == len(Config._fields)


def test_what_is_shown_can_be_written_into_a_file(tree: Tree) -> None:
    settings_ = Config(
        ("a", "b"),
        ("a",),
        "report",
        7,
        0.25,
        20.0,
        10.0,
        "install",
        "update",
        "block",
        60.0,
        "require",
        30.0,
        5.0,
        6.5,
        86400.0,
    )
    rows = config.describe(settings_, {})
    assert config.load(tree({MAIN: "".join(f"{row.name} = {row.value}\n" for row in rows)})) == settings_


def test_a_file_that_is_too_large_or_too_deep(tree: Tree) -> None:
    assert faults(tree({MAIN: "#" * ((1 << 20) + 1)})) == [f"/{MAIN}: not TOML: larger than 1048576 bytes"]
    assert faults(tree({MAIN: "a = " + "[" * 100000})) == [f"/{MAIN}: nested too deeply"]


@pytest.mark.parametrize("mode", [0o000, 0o600, 0o640, 0o660])
def test_a_file_that_not_everybody_may_read_is_refused_also_to_root(tree: Tree, mode: int) -> None:
    root = tree({MAIN: "settle_seconds = 1\n"})
    (root / MAIN).chmod(mode)
    assert faults(root) == [f"/{MAIN}: cannot be read by everybody, which the daemon and `check` need: run chmod a+r /{MAIN}"]
    (root / MAIN).chmod(mode | 0o444)
    assert config.load(root).settle_seconds == 1


@pytest.mark.parametrize("place", ["etc/knetstatd", "etc/knetstatd/knetstatd.toml.d"])
def test_a_directory_that_not_everybody_may_list_is_refused_also_to_root(tree: Tree, place: str) -> None:
    root = tree({MAIN: "", "etc/knetstatd/knetstatd.toml.d/1.toml": "settle_seconds = 1\n"})
    (root / place).chmod(0o750)
    [fault] = faults(root)
    assert fault.startswith(f"/{place}: cannot be listed by everybody")
    assert fault.endswith(f"run chmod a+rx /{place}")


def test_undecodable_bytes(tmp_path: Path) -> None:
    (tmp_path / "etc/knetstatd/knetstatd.toml.d").mkdir(parents=True)
    (tmp_path / MAIN).write_bytes(b"kernels = \xff")
    with open(os.fsencode(tmp_path / "etc/knetstatd/knetstatd.toml.d") + b"/\xff\n.toml", "wb") as f:
        f.write(b"x")
    found = faults(tmp_path)
    assert found[0].startswith(f"/{MAIN}: not TOML: 'utf-8' codec can't decode byte 0xff in position 10")
    assert found[1].startswith("/etc/knetstatd/knetstatd.toml.d/??.toml: not TOML: ")


def outcome(root: Path) -> Config | list[str]:
    try:
        return config.load(root)
    except ConfigError as e:
        return e.what.split("\n")


VALUES = st.recursive(
    st.booleans() | st.integers(-10, 10**20) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2),
)
NAMES = st.sampled_from(Config._fields) | st.from_regex(r"[a-z]{1,6}", fullmatch=True)


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08x}" for c in value if not 0xD800 <= ord(c) < 0xE000) + '"'
    return "[" + ",".join(map(toml, value)) + "]" if isinstance(value, list) else str(value)


@given(st.dictionaries(NAMES, VALUES, max_size=4).map(lambda d: "".join(f"{k} = {toml(v)}\n" for k, v in d.items())))
def test_any_toml_gives_a_configuration_or_one_line_per_fault(tree: Tree, text: str) -> None:
    found = outcome(tree({MAIN: text}))
    if isinstance(found, Config):
        assert 0.1 <= found.settle_seconds <= 600
    else:
        assert all(line.startswith(f"/{MAIN}") and line.isprintable() for line in found)


@given(st.binary())
def test_no_bytes_raise_anything_else(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "etc/knetstatd").mkdir(parents=True, exist_ok=True)
    (tmp_path / MAIN).write_bytes(data)
    found = outcome(tmp_path)
    assert isinstance(found, Config) or all(line.isprintable() for line in found)
