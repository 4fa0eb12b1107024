# SPDX-License-Identifier: GPL-2.0-or-later
"""A real system, asked from inside and from outside by --root: the same verdicts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from . import product, rig

if TYPE_CHECKING:
    from .rig import Container


def outside(c: Container, *argv: str) -> subprocess.CompletedProcess[str]:
    """knetstatctl of this machine, with the container's files as another root."""
    code = "import sys; from knetstatd.cli.main import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, "--root", os.fspath(c.root), *argv],
        cwd=product.CHECKOUT, capture_output=True, text=True, check=False,
    )  # fmt: skip


def verdicts(text: str, prefix: str = "") -> list[dict[str, Any]]:
    """Each verdict without what an answer from outside cannot have: which kernel runs, and where its files are mounted."""
    rows: list[dict[str, Any]] = json.loads(text.replace(prefix, "") if prefix else text)["verdicts"]
    return [{**row, "role": row["role"].replace("running", "").strip(", ")} for row in rows]


def test_a_system_says_the_same_from_inside_and_from_outside() -> None:
    with rig.container("bookworm") as c:
        old, new, *_ = c.kernels()
        c.add_fixture("good", autoinstall=False)
        product.install(c, ["kt-good", "kt-none"], kernels="all")
        c.install_kernel(new)
        c.run(["knetstatctl", "build", "--module", "kt-good", old.release], check=True)
        # An absolute link, as an administrator makes one: seen from outside it leads into this machine's /srv.
        c.run(["mv", "/var/lib/dkms", "/srv/dkms"], check=True)
        c.run(["ln", "-s", "/srv/dkms", "/var/lib/dkms"], check=True)
        place = os.fspath(c.root)
        for kernel in (old.release, new.release, "next", "all"):
            inside, seen = c.run(["knetstatctl", "check", "--json", kernel]), outside(c, "check", "--json", kernel)
            assert seen.returncode == inside.returncode, (inside.stdout, seen.stdout, seen.stderr)
            assert verdicts(seen.stdout, place) == verdicts(inside.stdout), kernel
        assert {v["state"] for v in verdicts(seen.stdout)} >= {"ready", "not-built", "source-missing"}
        assert json.loads(seen.stdout)["next"] == new.release
        assert json.loads(seen.stdout)["running"] == ""
        shown = c.run(["knetstatctl", "verify", "--kernel", old.release]).stdout
        assert outside(c, "verify", "--kernel", old.release).stdout.replace(place, "") == shown
        # What the boot loader starts is that system's, whatever runs here.
        c.run(["apt-get", "-q", "-y", "purge", new.image], check=True, timeout=300)
        assert json.loads(outside(c, "check", "--json").stdout)["next"] == old.release
