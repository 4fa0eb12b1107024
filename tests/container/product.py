# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests ask of the product in a container: a start, a wait for a verdict, the story in the journal."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .rig import Command, Container, Kernel

CHECKOUT = Path(__file__).parents[2]
# Shorter than the default, so that the tests are: nothing in them depends on its length.
SETTLE = 1.0


def start(c: Container, modules: Iterable[str], **settings: Any) -> None:
    """Installs the product, guarding `modules`, and starts it; returns when it is READY."""
    install(c, modules, **settings)
    c.start_product()


def install(c: Container, modules: Iterable[str], **settings: Any) -> None:
    """Installs the product with a configuration."""
    values = {"modules": list(modules), "settle_seconds": SETTLE, **settings}
    c.install_product(CHECKOUT, "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))


def check(c: Container, kernel: str = "next") -> int:
    """The exit status of `knetstatctl check`."""
    return c.run(["knetstatctl", "check", "--quiet", kernel]).returncode


def verdicts(c: Container, kernel: str = "next") -> list[dict[str, Any]]:
    """The verdicts of `knetstatctl check --json`."""
    found: list[dict[str, Any]] = json.loads(c.run(["knetstatctl", "check", "--json", kernel]).stdout)["verdicts"]
    return found


def verdict(c: Container, kernel: str = "next") -> dict[str, Any]:
    """The one verdict where one module is guarded."""
    [found] = verdicts(c, kernel)
    return found


def wait(what: str, condition: Callable[[], Any], timeout: float = 90.0) -> Any:
    """Waits until `condition` gives something true, and returns that; fails with `what`."""
    deadline = time.monotonic() + timeout
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.2)
    return answer


def wait_ready(c: Container, kernel: str = "next", timeout: float = 90.0) -> None:
    """Waits for `check` to answer 0."""
    wait(f"check {kernel} is 0", lambda: check(c, kernel) == 0, timeout)


def codes_during(c: Container, command: Command, kernel: str = "next") -> list[int]:
    """The different answers of `check`, in order, while a command runs, and then until it is 0 or 1."""
    seen: list[int] = []
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        running = command.running()
        code = check(c, kernel)
        if not seen or seen[-1] != code:
            seen.append(code)
        if not running and code != 75:
            return seen
    raise AssertionError(f"no verdict after 180 s: {seen}")


def events(c: Container, module: str | None = None, kernel: str | None = None) -> list[dict[str, str]]:
    """Our journal entries, oldest first, as `journalctl -u knetstatd` shows them."""
    return [
        entry
        for entry in c.journal("knetstatd.service")
        if "KNETSTATD_EVENT" in entry
        and module in (None, entry.get("KNETSTATD_PACKAGE"))
        and kernel in (None, entry.get("KNETSTATD_KERNEL"))
    ]


def kinds(c: Container, module: str | None = None, kernel: str | None = None) -> list[str]:
    """The kinds of those events."""
    return [entry["KNETSTATD_EVENT"] for entry in events(c, module, kernel)]


def story(c: Container, kernel: str) -> list[str]:
    """The kinds of events of one kernel, up to its `ready`: a verdict is true a moment before the daemon says it."""
    return wait("the daemon says ready", lambda: "ready" in (found := kinds(c, kernel=kernel)) and found, 30)  # type: ignore[no-any-return]


def right_module(c: Container, kernel: Kernel, module: str) -> None:
    """The file that modprobe would take is the target's, by tools that are not ours: vermagic and every checksum."""
    release, *options = c.vermagic(kernel, module).split()
    assert release == kernel.release
    if "modversions" not in options:
        return
    path = c.output("modinfo", "-k", kernel.release, "-n", module)
    table = c.run(["modprobe", "--dump-modversions", path], check=True).stdout
    exported = {}
    for line in c.path(f"/usr/src/linux-headers-{kernel.release}/Module.symvers").read_text().splitlines():
        crc, symbol, *_ = line.split("\t")
        exported[symbol] = int(crc, 16)
    wanted = {symbol: int(crc, 16) for crc, symbol in (line.split() for line in table.splitlines())}
    assert wanted
    assert {s: exported.get(s) for s in wanted} == wanted
