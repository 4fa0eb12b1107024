# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration: one row per setting, from which parsing, `knetstatctl config` and the commented example come.

Rule 1: it works with no file at all.
Rule 2: precedence is systemd's (UAPI.6). The main file is the first knetstatd/knetstatd.toml found in /etc, /run,
        /usr/local/lib, /usr/lib. Then all of knetstatd.toml.d/*.toml, sorted by file name whatever the directory; of
        one name, only the one in the first of those directories: a link to /dev/null or an empty file there masks it.
Rule 3: a later file's value replaces an earlier one's, arrays too. Drop-ins win over the main file.
Rule 4: every fault of every file is reported at once, also that of a value which another file replaces. Nothing is
        ever replaced by its default.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from knetstatd.core import names
from knetstatd.core.errors import ConfigError
from knetstatd.core.roots import inside, regular

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_DIRECTORIES = ("etc/knetstatd", "run/knetstatd", "usr/local/lib/knetstatd", "usr/lib/knetstatd")
_FILE_LIMIT = 1 << 20


class Config(NamedTuple):
    """What the administrator decided; the fields are the settings of `SETTINGS`, durations in seconds."""

    modules: tuple[str, ...] = ("knetstat",)
    load: tuple[str, ...] = ("knetstat",)
    unloaded: str = "reload"
    kernels: str | int = "next+running"
    settle_seconds: float = 3.0
    compile_timeout_seconds: float = 1800.0
    publish_timeout_seconds: float = 300.0
    headers: str = "report"
    initrd: str = "report"
    inhibit: str = "delay"
    inhibit_longest_seconds: float = 300.0
    rehearse: str = "auto"
    rehearse_timeout_seconds: float = 120.0
    retry_first_seconds: float = 30.0
    retry_longest_seconds: float = 3600.0
    resync_seconds: float = 900.0


class Setting(NamedTuple):
    """One setting. parse: the value, or ValueError; allowed: what it takes, in words; doc: what it does."""

    name: str
    parse: Callable[[Any], Any]
    allowed: str
    doc: str

    @property
    def default(self) -> Any:  # the type is that of the Config field
        """The value when no file sets it."""
        return Config._field_defaults[self.name]


class Row(NamedTuple):
    """One setting for display: its value as TOML, where that comes from ("default" or a file), and its `doc`."""

    name: str
    value: str
    origin: str
    default: str
    doc: str


def _seconds(name: str, low: float, high: float, doc: str) -> Setting:
    def parse(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError
        return float(value)

    return Setting(name, parse, f"a number of seconds from {low:g} to {high:g}", doc)


def _modules(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(m, str) and (m == "*" or names.is_package(m)) for m in value):
        raise ValueError
    return tuple(dict.fromkeys(value))


def _kernels(value: Any) -> str | int:
    if value in ("next+running", "all") or (type(value) is int and 1 <= value <= 1000):
        return value  # type: ignore[no-any-return]
    raise ValueError


def _word(name: str, allowed: tuple[str, ...], doc: str) -> Setting:
    def parse(value: Any) -> str:
        if value not in allowed:
            raise ValueError
        return value  # type: ignore[no-any-return]

    *first, last = (f'"{word}"' for word in allowed)
    return Setting(name, parse, f"{', '.join(first)} or {last}", doc)


SETTINGS = (
    Setting(
        "modules",
        _modules,
        'an array of DKMS package names, or ["*"]',
        'The DKMS packages to guard, as `dkms status` names them. "*" stands for every one that is registered, or '
        "whose source is in /usr/src.",
    ),
    Setting(
        "load",
        _modules,
        'an array of DKMS package names, or ["*"]',
        "Those of the guarded packages whose modules are to be in the running kernel: they are loaded when they are not. "
        "A module that modprobe.d denies is left alone.",
    ),
    _word(
        "unloaded",
        ("reload", "report"),
        "What to do when somebody unloads such a module: load it again, at most 5 times within an hour; or report it, and "
        "leave it out until it is loaded by hand or the machine boots. A module in use is never taken out.",
    ),
    Setting(
        "kernels",
        _kernels,
        '"next+running", "all", or a number from 1 to 1000',
        "The kernels to keep them working for: the one that the boot loader starts next and the running one; all; or "
        "the newest N besides those two.",
    ),
    _seconds("settle_seconds", 0.1, 600, "How long a kernel's files must be quiet before anything is done about it."),
    _seconds("compile_timeout_seconds", 10, 86400, "How long one module's compilation for one kernel may take."),
    _seconds("publish_timeout_seconds", 10, 3600, "How long signing, installing and depmod may take."),
    _word(
        "headers",
        ("report", "install"),
        "What to do for a kernel whose headers are missing: report the package that has them, or install it.",
    ),
    _word(
        "initrd",
        ("report", "update"),
        "What to do if the kernel's initrd is damaged, has another copy of the module, or lacks one that it is to hold: "
        "report the command that makes it anew, or run it.",
    ),
    _word(
        "inhibit",
        ("delay", "block", "off"),
        "What to ask of logind while modules are built for the next kernel: to delay a shutdown for its InhibitDelayMaxSec, or "
        "to block it. On systemd 257 and later a block refuses every reboot, root's too; before, root's is never refused. "
        "Whatever stands here, a build that has begun is completed before the machine goes down.",
    ),
    _seconds("inhibit_longest_seconds", 1, 3600, "After how long such a request is withdrawn, the build finished or not."),
    _word(
        "rehearse",
        ("auto", "never", "require"),
        "Whether the kernel that the next boot starts is started in a throwaway machine first, to see whether it takes the "
        "modules: if QEMU and a static busybox are installed; never; or always, and without it no module is ready.",
    ),
    _seconds("rehearse_timeout_seconds", 10, 3600, "How long one such machine may run."),
    _seconds("retry_first_seconds", 1, 86400, "The pause after a first failure that can heal; it doubles each time."),
    _seconds("retry_longest_seconds", 1, 604800, "The longest such pause; not less than retry_first_seconds."),
    _seconds("resync_seconds", 10, 86400, "How often everything is looked at again, should an event be lost."),
)
_BY_NAME = {setting.name: setting for setting in SETTINGS}


def load(root: Path) -> Config:
    """The configuration of the machine under `root`. Raises ConfigError, with one line per fault."""
    return with_origins(root)[0]


def with_origins(root: Path) -> tuple[Config, dict[str, str]]:
    """The configuration, and for each setting that a file sets, that file's path. Raises ConfigError."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    faults = _closed(root)
    for path in _files(root):
        where = names.clean(path)
        for name, value in _table(root, path, where, faults).items():
            values[name] = value
            origins[name] = where
    config = Config(**values)
    # A setting whose value was refused has its default here; comparing that with the other says nothing.
    if not any(": retry_" in fault for fault in faults) and config.retry_longest_seconds < config.retry_first_seconds:
        where = origins.get("retry_longest_seconds") or origins["retry_first_seconds"]
        faults.append(
            f"{where}: retry_longest_seconds ({config.retry_longest_seconds:g}) is less than retry_first_seconds "
            f"({config.retry_first_seconds:g})"
        )
    if faults:
        raise ConfigError("\n".join(faults), fix="knetstatd.toml(5) has every setting")
    return config, origins


def describe(config: Config, origins: Mapping[str, str]) -> list[Row]:
    """Every setting with its value and where that comes from, for display. `origins` is from `with_origins`."""
    return [
        Row(s.name, _toml(getattr(config, s.name)), origins.get(s.name, "default"), _toml(s.default), s.doc) for s in SETTINGS
    ]


def _toml(value: object) -> str:
    if isinstance(value, str):
        return f'"{value}"'  # only names and words that need no escapes
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _closed(root: Path) -> list[str]:
    """A fault for each directory that not everybody may look into: the daemon would not see its files, and root would."""
    places = [f"/{directory}{below}" for directory in _DIRECTORIES for below in ("", "/knetstatd.toml.d")]
    there = {place: inside(root, place) for place in places}
    closed = (place for place, path in there.items() if os.path.isdir(path) and os.stat(path).st_mode & 0o5 != 0o5)
    text = "cannot be listed by everybody, which the daemon and `check` need: run chmod a+rx"
    return [f"{place}: {text} {place}" for place in closed]


def _files(root: Path) -> list[str]:
    """The files that count, in the order in which they apply; as the system under `root` names them."""
    main = [d for d in _DIRECTORIES if os.path.lexists(inside(root, f"/{d}") / "knetstatd.toml")][:1]
    drop_ins: dict[str, str] = {}
    for directory in _DIRECTORIES:
        try:
            listed = os.listdir(inside(root, f"/{directory}/knetstatd.toml.d"))
        except OSError:
            continue
        for name in listed:
            if name.endswith(".toml") and not name.startswith("."):
                drop_ins.setdefault(name, f"/{directory}/knetstatd.toml.d/{name}")
    return [f"/{d}/knetstatd.toml" for d in main] + [drop_ins[name] for name in sorted(drop_ins)]


def _table(root: Path, path: str, where: str, faults: list[str]) -> dict[str, Any]:
    """The file's settings, parsed; what is wrong with it is added to `faults`."""
    import tomllib  # only here: most machines have no file to read, and the daemon's memory has a budget

    directory, _, name = path.rpartition("/")
    link = inside(root, directory) / name
    try:
        if os.path.islink(link) and os.readlink(link) == os.devnull:
            return {}
        if not os.stat(inside(root, path)).st_mode & 0o004:  # root's commands could, and would not say what the daemon says
            faults.append(f"{where}: cannot be read by everybody, which the daemon and `check` need: run chmod a+r {where}")
            return {}
        with regular(inside(root, path)) as f:
            data = f.read(_FILE_LIMIT + 1)
        if len(data) > _FILE_LIMIT:
            raise ValueError(f"larger than {_FILE_LIMIT} bytes")
        text = data.decode()
        table = tomllib.loads(text)
    except OSError as e:
        faults.append(f"{where}: cannot be read: {e.strerror}")
        return {}
    except RecursionError:
        faults.append(f"{where}: nested too deeply")
        return {}
    except ValueError as e:  # TOMLDecodeError, UnicodeDecodeError, and int() of thousands of digits
        faults.append(f"{where}: not TOML: {names.clean(str(e))}")
        return {}
    values: dict[str, Any] = {}
    for name, value in table.items():
        place = f"{where}:{line}" if (line := _line(text, name)) else where
        if (setting := _BY_NAME.get(name)) is None:
            faults.append(f"{place}: {names.show(name, 80)} is not a setting{_nearest(name)}")
            continue
        try:
            values[name] = setting.parse(value)
        except ValueError:
            faults.append(f"{place}: {name} is {_shown(value)}; allowed is {setting.allowed}")
    return values


def _shown(value: object) -> str:
    if isinstance(value, str):
        return names.show(value, 80)
    try:
        return names.clean(repr(value).lower() if isinstance(value, bool) else repr(value), 80)
    except ValueError:  # TOML's hexadecimal integers have no limit, Python's decimal ones have
        return "a number with thousands of digits"


def _line(text: str, name: str) -> int:
    """The line where a top-level key or table stands (tomllib keeps no positions); 0 if it is not found."""
    match = re.search(rf"^[ \t]*(?:\[+[ \t]*)?[\"']?{re.escape(name)}[\"']?[ \t]*[\].=]", text, re.MULTILINE)
    return text.count("\n", 0, match.start()) + 1 if match else 0


def _nearest(name: str) -> str:
    import difflib  # only to explain an error

    near = difflib.get_close_matches(name, _BY_NAME, 1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(_BY_NAME)}"
