# SPDX-License-Identifier: GPL-2.0-or-later
"""Names that come from outside, and the order of versions."""

from __future__ import annotations

import itertools
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knetstatd.core import names
from knetstatd.core.errors import NameRefused

KERNELS = [
    "6.1.0-55-amd64", "6.12.115+deb12-amd64", "5.14.0-427.13.1.el9_4.x86_64", "6.8.0-31-generic", "6.18.3-arch1-1", "7.0~rc1",
    "6", "1" * 64,
]  # fmt: skip
HOSTILE = [
    "", ".", "..", "/", "../../etc", "6.1/../../x", "6..1", "-k", "--all", "$(reboot)", "6.1.0-$(touch x)", "6.1`x`",
    *(f"6.1{c}x" for c in " \n\0*'\"\\&|;>%@:=,!é\udcff"), "6.1\n", "6.1 ", "٦.1", "²",
]  # fmt: skip


@pytest.mark.parametrize("name", KERNELS)
def test_releases_of_distributions_are_kernels(name: str) -> None:
    assert names.is_kernel(name)
    assert names.kernel(name) == name


@pytest.mark.parametrize("name", [*HOSTILE, "1" * 65, "linux", "a6.1", "~6", "+6", "_6", ".6"])
def test_what_is_no_kernel_is_refused_and_shown_safely(name: str) -> None:
    assert not names.is_kernel(name)
    with pytest.raises(NameRefused) as caught:
        names.kernel(name)
    assert caught.value.exit_code == 2
    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()


@pytest.mark.parametrize("name", ["knetstat", "nvidia-current", "v4l2loopback", "1.0", "2.3~rc1-1", "r8125_x", "a" * 128])
def test_packages_and_versions(name: str) -> None:
    assert names.is_package(name)
    assert names.package(name) == name


@pytest.mark.parametrize("name", [*HOSTILE, "a" * 129, "-x", "_x", "~x"])
def test_what_is_no_package_is_refused_and_shown_safely(name: str) -> None:
    assert not names.is_package(name)
    with pytest.raises(NameRefused) as caught:
        names.package(name)
    assert str(caught.value).isprintable()


def test_the_kernel_s_spelling() -> None:
    assert names.canonical("snd-hda-intel") == "snd_hda_intel"


def test_show_quotes_and_cuts() -> None:
    assert names.show("a'b\n\x1b\udcff") == '"a\'b\\n\\x1b\\udcff"'
    assert names.show("x" * 300, 10) == "'xxxxxx..."
    assert names.show("12345678", 10) == "'12345678'"


def test_clean_makes_one_line() -> None:
    assert names.clean("a\tb\rc\x1b[0m\udcff é \n\n") == "a b?c?[0m? é"
    assert names.clean("x" * 20, 10) == "xxxxxxx..."
    assert names.clean("x" * 10, 10) == "x" * 10


@given(st.text())
def test_no_text_gets_through_into_a_path_or_a_log(text: str) -> None:
    for accepted in (names.is_kernel(text), names.is_package(text)):
        assert not accepted or (text.isascii() and text.isprintable() and not set(text) & set(" /$`'\"\\;&|<>*?!(){}[]%@:=,"))
    assert names.show(text).isprintable()
    assert names.clean(text).isprintable()
    assert len(names.clean(text, 20)) <= 20


ASCENDING = [
    "", "~", "~~a", "0", "1.0~rc1", "1.0", "1.0+b1", "1.0-1", "1.0.1", "1.9", "1.10", "5.10.0-9-amd64", "6.1.0-9-amd64",
    "6.1.0-9-arm64", "6.1.0-55-amd64", "6.1.0-55-cloud-amd64", "6.12.9", "6.12.115+deb12-amd64", "7.0.0", "10.0",
]  # fmt: skip


def test_the_order_of_versions() -> None:
    assert sorted(ASCENDING[3:], key=names.version_key) == ASCENDING[3:]
    assert names.version_key("1.01") == names.version_key("1.1")


def test_the_newest_kernel() -> None:
    installed = ["6.1.0-9-amd64", "6.12.115+deb12-amd64", "6.1.0-55-amd64", "6.9.1"]
    assert max(installed, key=names.version_key) == "6.12.115+deb12-amd64"


@given(st.text(), st.text())
def test_any_two_texts_can_be_compared(one: str, other: str) -> None:
    assert (names.version_key(one) < names.version_key(other)) or (names.version_key(one) >= names.version_key(other))


@pytest.mark.spawns
def test_dpkg_orders_the_same() -> None:
    versions = [v for v in ASCENDING if v[:1].isdigit()] + ["1.0+", "1.0a", "1.0-a", "1.0.", "1.0+~", "01.0"]
    versions += ["1.0~", "1.0~~", "1.0~+1", "2a", "2.a"]
    versions.sort(key=names.version_key)
    for one, other in itertools.pairwise(versions):
        relation = "lt" if names.version_key(one) < names.version_key(other) else "eq"
        # With an epoch and a revision, so that dpkg takes each for one upstream version.
        compared = subprocess.run(["dpkg", "--compare-versions", f"0:{one}-0", relation, f"0:{other}-0"], check=False)
        assert compared.returncode == 0, (one, relation, other)


@pytest.mark.parametrize(
    ("filename", "module"),
    [
        ("a.ko", "a"), ("a-b.ko.xz", "a-b"), ("a.ko.gz", "a"), ("a.ko.zst", "a"), ("a.ko.ko", "a.ko"), ("a.b.ko", "a.b"),
        ("a", ""), (".ko", ""), ("a.ko.bak", ""), ("a.ko.xz.bak", ""), ("a.kof", ""), ("a.KO", ""),
        ("a\n.ko", "a\n"), ("ako", ""),
    ],
)  # fmt: skip
def test_the_module_of_a_file(filename: str, module: str) -> None:
    assert names.module_of(filename) == module
