# SPDX-License-Identifier: GPL-2.0-or-later
"""Every event: its identity, its text in the message catalog, and its row in the manual."""

from __future__ import annotations

import re

import pytest
from test_texts import ROOT, man, verbs

from knetstatd.core.events import Event

CATALOG = ROOT / "units/knetstatd.catalog"


def entries() -> dict[str, tuple[dict[str, str], str]]:
    """The catalog by message id: header and text."""
    found = {}
    for part in re.split(r"^-- ", CATALOG.read_text(), flags=re.M)[1:]:
        message_id, _, rest = part.partition("\n")
        head, _, text = rest.partition("\n\n")
        assert message_id not in found, f"{message_id} is there twice"
        found[message_id] = (dict(line.split(": ", 1) for line in head.splitlines()), text)
    return found


def test_the_catalog_has_a_text_for_every_event_and_no_other() -> None:
    assert list(entries()) == [event.message_id for event in Event], "in the order of events.py"


@pytest.mark.parametrize("event", Event, ids=lambda event: event.name)
def test_a_catalog_text(event: Event) -> None:
    head, text = entries()[event.message_id]
    assert head["Subject"]
    assert head["Defined-By"] == "knetstatd"
    assert head["Documentation"] == "man:knetstatd(8)"
    used = set(re.findall(r"@(\w+)@", head["Subject"] + text)) - {"MESSAGE"}
    assert used <= {f"KNETSTATD_{name.upper()}" for name in event.fields}, "journalctl prints the name of a missing field"
    assert all(len(re.sub(r"@\w+@", "", line)) <= 79 for line in text.splitlines())
    if event.priority <= 4:
        assert "To do" in text or "There is nothing to do" in text
    for verb in re.findall(r"knetstatctl (\w+)", text):
        assert verb in verbs(), f"knetstatctl {verb}"


def test_the_manual_lists_every_event() -> None:
    text = man("knetstatd.8")
    table = re.findall(r"^\*([a-z-]+)\*, ([0-9a-f]{32})\n\t(.+)$", text, flags=re.M)
    assert table == [(e.name.lower().replace("_", "-"), e.message_id, f"{e.meaning[0].upper()}{e.meaning[1:]}.") for e in Event]


def test_an_event_is_one_of_a_kind() -> None:
    for values in ([event.message_id for event in Event], [event.meaning for event in Event]):
        assert len(set(values)) == len(Event)
    assert all(re.fullmatch(r"[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}", event.message_id) for event in Event), "sd-id128(1)"


def test_what_a_person_must_act_on_is_an_error_and_says_why() -> None:
    assert {event.priority for event in Event} == {3, 4, 5, 6}
    for event in Event:
        if event.priority == 3:
            assert {"reason", "evidence"} & set(event.fields), event
        assert ("fix" not in event.fields) or "reason" in event.fields, event
        assert ("version" in event.fields) <= ({"package", "kernel"} <= set(event.fields)), event
