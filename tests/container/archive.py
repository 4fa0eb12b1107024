# SPDX-License-Identifier: GPL-2.0-or-later
"""Where packages come from, and which kernels there are.

No mirror and no kernel is named here. The mirror is the one that the host's own apt uses, where the host is a
Debian; else mmdebstrap's default. Kernels are picked by series from what the archive has on the day the root is made.
"""

import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

# Codenames and aliases under which a Debian archive carries its main suites.
DEBIAN_SUITES = frozenset({
    "bullseye", "bookworm", "trixie", "forky", "sid", "oldstable", "stable", "testing", "unstable",
})  # fmt: skip


class Pick(NamedTuple):
    """Some kernels of a suite: of a series ("6.1") the N newest releases; of a major number ("7") the newest release of
    each of its N newest series."""

    series: str
    n: int
    backports: bool = False


class Kernel(NamedTuple):
    release: str
    flavour: str
    """What the release ends in: "cloud-amd64"."""

    @property
    def series(self) -> str:
        return ".".join(self.release.split(".")[:2])

    @property
    def image(self) -> str:
        return f"linux-image-{self.release}"

    @property
    def headers(self) -> str:
        return f"linux-headers-{self.release}"


def release_key(release: str) -> list[tuple[int, int, str]]:
    """Sort key: numbers as numbers, the rest as text, a shorter release before the longer one it begins."""
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.findall(r"\d+|[^\d]+", release)]


def pick_releases(available: Iterable[str], pick: Pick) -> list[str]:
    """The releases that `pick` stands for, oldest first. Fewer than asked where the archive has fewer. A name of a
    whole series ("7.9-x", a meta package's) is not a release."""
    prefix = pick.series + "."
    found = sorted((r for r in set(available) if r.startswith(prefix) and re.match(r"\d+\.\d+\.", r)), key=release_key)
    if "." in pick.series:
        return found[-pick.n :]
    newest = {".".join(release.split(".")[:2]): release for release in found}
    return sorted(newest.values(), key=release_key)[-pick.n :]


class Entry(NamedTuple):
    uri: str
    suite: str
    components: tuple[str, ...]


def parse_deb822(text: str) -> Iterator[Entry]:
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line.startswith("#") or not line.strip():
                continue
            if line[0].isspace():
                fields[key] += " " + line.strip()
            else:
                key, _, value = line.partition(":")
                key = key.strip().lower()
                fields[key] = value.strip()
        if fields.get("enabled", "yes").lower() in ("no", "false", "0") or "deb" not in fields.get("types", "").split():
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield Entry(uri, suite, tuple(fields.get("components", "").split()))


def parse_list(text: str) -> Iterator[Entry]:
    for line in text.splitlines():
        if match := re.match(r"deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)\s+([^#]*)", line.strip()):
            yield Entry(match[1], match[2], tuple(match[3].split()))


def host_mirrors(etc_apt: Path = Path("/etc/apt")) -> tuple[str | None, str | None]:
    """(archive, security archive) of the host, None where it has none of Debian's."""
    entries: list[Entry] = []
    for path in sorted([etc_apt / "sources.list", *etc_apt.glob("sources.list.d/*")]):
        if path.is_file() and path.suffix == ".sources":
            entries += parse_deb822(path.read_text())
        elif path.is_file() and path.suffix == ".list":
            entries += parse_list(path.read_text())
    debian = [entry for entry in entries if "main" in entry.components and "://" in entry.uri]
    archive = next((entry.uri for entry in debian if entry.suite in DEBIAN_SUITES), None)
    security = next(
        (entry.uri for entry in debian if re.fullmatch(r"\w+(-security|/updates)", entry.suite) and entry.uri != archive),
        None,
    )
    return archive, security


def sources(suite: str) -> list[str]:
    """One-line sources for `suite`; empty where the host names no Debian mirror."""
    archive, security = host_mirrors()
    if archive is None:
        return []
    lines = [f"deb {archive} {name} main" for name in (suite, f"{suite}-updates", f"{suite}-backports")]
    if security is not None:
        lines.append(f"deb {security} {suite}-security main")
    return lines


def proxy_options() -> list[str]:
    """The host's apt proxies, as apt.conf lines."""
    shown = subprocess.run(
        ["apt-config", "dump", "--no-empty", "--format", '%f "%v";%n', "Acquire::http", "Acquire::https"],
        capture_output=True,
        text=True,
        check=True,
    )
    return [line for line in shown.stdout.splitlines() if "proxy" in line.lower()]
