# SPDX-License-Identifier: GPL-2.0-or-later
"""Our paths: where they are, that none is written twice, and what is found again of what was kept."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

from sources import FILES, PACKAGE, name_of, nodes

from knetstatd.state import paths
from knetstatd.state.paths import Places

if TYPE_CHECKING:
    import pytest

K, K2 = "6.1.0-9-amd64", "6.12.1+deb13-amd64"


def test_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    places = paths.places(tmp_path)
    assert places.attempt(K, "m") == tmp_path / f"var/lib/knetstatd/kernels/{K}/m.json"
    assert places.build_lock == tmp_path / "run/knetstatd-build/builder.lock"
    assert places.compile_cache == tmp_path / "var/cache/private/knetstatd-compile"
    assert places.plain("m") == tmp_path / "var/lib/knetstatd/plain/m.json"
    assert places.keys(K) == tmp_path / f"run/knetstatd-build/keys/{K}"
    monkeypatch.setenv("STATE_DIRECTORY", "/srv/state")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/srv/run")
    places = paths.places(tmp_path)
    assert (places.state, places.runtime) == (tmp_path / "srv/state", tmp_path / "srv/run")


def test_no_two_things_have_one_place() -> None:
    places = Places(Path("/s"), Path("/r"), Path("/c"))
    every = [
        places.attempt(K, "m"), places.log(K, "m"), places.stage(K, "m"), places.rehearsal(K, "m"), places.initrds,
        places.build_lock, places.daemon_lock, places.status, places.motd, places.loads("m"), places.refused("m"), places.order,
        places.compilation, places.rehearsed_file, places.compile_cache, places.rehearse_cache,
    ]  # fmt: skip
    for number, path in enumerate(every):
        assert not [other for other in every[number + 1 :] if path == other or path in other.parents or other in path.parents]


def test_a_purge_removes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    purge = (PACKAGE.parent / "debian/knetstatd.postrm").read_text().partition("purge")[2]
    removed = {word for line in purge.splitlines() if line.strip().startswith("rm -rf") for word in line.split()[2:]}
    places = paths.places(Path("/"))
    ours = {places.state, places.runtime, places.compile_cache, places.rehearse_cache}
    links = {Path(str(path).replace("/private", "")) for path in ours}  # systemd.exec(5), DynamicUser=
    assert {str(path) for path in ours | links} <= removed


# A path of ours, or a piece that is joined to one: `/ "stage"`. Sentences, which have spaces, are no paths.
_WHOLE = re.compile(
    r"(?:/?var/(?:lib|cache/private)/|/?run/|^)knetstatd(?:-compile|-rehearse)?(?:/[^ ]*)?|(?:STATE|RUNTIME)_DIRECTORY"
)
_PIECES = {
    "kernels", "stage", "rehearsals", "initrd", "loads", "refused", "builder.lock", "guard.lock", "status.json", "motd",
    "rehearsal.json", "rehearsal.ko", "result", "outcome.json", "answer.json", ".publish.",
}  # fmt: skip


def test_what_is_watched(tmp_path: Path) -> None:
    places = paths.places(tmp_path)
    parents = [places.state / name for name in ("kernels", "rehearsals", "digests")]
    assert list(places.watched()) == parents, "also those that are not there yet"
    for path in (places.attempt(K, "m"), places.rehearsal(K2, "m")):
        path.parent.mkdir(parents=True)
    assert list(places.watched()) == [parents[0], parents[0] / K, parents[1], parents[1] / K2, parents[2]]
    assert places.guarded.parent not in places.watched(), "the daemon writes there itself"


def test_what_is_kept_for_packages(tmp_path: Path) -> None:
    places = paths.places(tmp_path)
    kept = {
        places.attempt(K, "a"): "a", places.log(K, "b"): "b", places.plain("c"): "c", places.room("d"): "d",
        places.loads("e"): "e", places.refused("f"): "f",
    }  # fmt: skip
    for path in (*kept, places.state / "plain/no package.json", places.initrds / f"{K}.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert {path: package for package, path in places.of_packages()} == kept


def written(path: Path) -> list[str]:
    """The literals of a file that say where something of ours lies."""
    joined = {
        id(part) for node in nodes(path) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)
        for side in (node.left, node.right) for part in ast.walk(side)
    }  # fmt: skip
    literals = [(id(node), node.value) for node in nodes(path) if isinstance(node, ast.Constant)]
    texts = [(number, value) for number, value in literals if isinstance(value, str)]
    return [value for number, value in texts
            if _WHOLE.fullmatch(value) or (number in joined and value.strip("/") in _PIECES)]  # fmt: skip


# The configuration's directories, and the program's own name; what a builder gets of its starter's environment.
_OTHERS = {
    "core/config": {"run/knetstatd"},
    "daemon/worker": {"STATE_DIRECTORY", "RUNTIME_DIRECTORY"},
}


def test_no_other_file_writes_a_path_of_ours() -> None:
    for path in FILES:
        name = name_of(path)
        if name != "state/paths":
            assert set(written(path)) - _OTHERS.get(name, set()) - {"knetstatd"} == set(), name


def test_the_search_finds_them(tmp_path: Path) -> None:
    assert {"/var/lib/knetstatd", "kernels", "builder.lock", "STATE_DIRECTORY"} <= set(written(PACKAGE / "state/paths.py"))
    (tmp_path / "x.py").write_text('a = state / "stage" / f"{k}/x"\nb = Path("/run/knetstatd/motd")\nc = "refused"\n')
    assert sorted(written(tmp_path / "x.py")) == ["/run/knetstatd/motd", "stage"]
