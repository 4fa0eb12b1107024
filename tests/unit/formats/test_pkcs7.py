# SPDX-License-Identifier: GPL-2.0-or-later
"""Keys and signatures: read as openssl writes them, told apart, checked; and whatever the bytes are, nothing but Damaged."""

from __future__ import annotations

import hashlib
import subprocess
import time
from typing import TYPE_CHECKING

import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keys import ML_DSA, Key, signature_list, tlv

from knetstatd.core.errors import Damaged
from knetstatd.formats import pkcs7

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

US, OTHER = Key(), Key("them", 8)


def by(contents: bytes) -> Callable[[str], bytes]:
    return lambda name: hashlib.new(name, contents).digest()


def test_a_key_is_known_by_issuer_and_serial_or_by_its_identifier() -> None:
    certificate = pkcs7.certificate(US.certificate)
    for by_skid in (False, True):
        key = pkcs7.signature(US.signature(b"x", by_skid=by_skid)).key
        assert key.is_same(certificate.key)
        assert not key.is_same(pkcs7.certificate(OTHER.certificate).key)
        # The name alone, or the number alone, is not the key.
        assert not key.is_same(pkcs7.certificate(Key("us", 9).certificate).key)
        assert not key.is_same(pkcs7.certificate(Key("them", 7).certificate).key)
    assert pkcs7.certificate(Key(old=True).certificate).key == certificate.key._replace(skid=b"")
    assert not pkcs7.Key(b"", b"", b"").is_same(pkcs7.Key(b"", b"", b""))
    assert str(certificate.key).startswith("us (")
    assert str(pkcs7.Key(b"", b"\7", b"")) == "07"
    assert str(pkcs7.Key(tlv(0x30, tlv(0x31, tlv(0x30, tlv(6, b"\x55\x04\x0a"), tlv(12, b"x")))), b"\7", b"")) == "07"
    assert str(pkcs7.Key(b"\x30\x05", b"\7", b"")) == "07"


def test_the_contents_are_what_was_signed() -> None:
    certificate, signed = pkcs7.certificate(US.certificate), pkcs7.signature(US.signature(b"contents"))
    assert pkcs7.is_genuine(signed, certificate, by(b"contents")) is True
    assert pkcs7.is_genuine(signed, certificate, by(b"Contents")) is False
    assert pkcs7.is_genuine(signed._replace(value=b"\1"), certificate, by(b"contents")) is False
    for odd in (certificate._replace(modulus=0), certificate._replace(exponent=1 << 40)):
        assert pkcs7.is_genuine(signed, odd, by(b"contents")) is None
    unlike = pkcs7.signature(US.signature(b"x", attributes=True, kind=ML_DSA))
    assert pkcs7.is_genuine(unlike, certificate, by(b"x")) is None


def assert_as_asn1crypto(signature: bytes, certificate: bytes) -> None:
    """Both readers see the same signer, and the same key."""
    ours, theirs = pkcs7.signature(signature), oracles.signer(signature)
    assert (ours.key.issuer, int.from_bytes(ours.key.serial, "big"), ours.key.skid) == theirs[:3]
    assert (ours.digest, ours.value) == (theirs.digest, theirs.value)
    key, known = pkcs7.certificate(certificate), oracles.certificate(certificate)
    assert (key.key.issuer, int.from_bytes(key.key.serial, "big"), key.key.skid) == known[:3]
    assert (key.modulus, key.exponent) == known[3:]


@pytest.mark.parametrize("serial", [1, 127, 128, 255, 1 << 64, (1 << 159) + 1])
@pytest.mark.parametrize("by_skid", [False, True])
def test_as_asn1crypto_reads_them(serial: int, by_skid: bool) -> None:
    for key in (Key("us", serial), Key("\u00fc" * 90, serial, old=True)):
        assert_as_asn1crypto(key.signature(b"x", by_skid=by_skid), key.certificate)


def openssl(directory: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=directory)


@pytest.fixture(scope="module", params=["rsa:2048", "ec"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A kind of key, and a directory with such a key, its certificate, and a file to sign."""
    kind, directory = request.param, tmp_path_factory.mktemp("openssl")
    curve = ["-pkeyopt", "ec_paramgen_curve:P-384"] if kind == "ec" else []
    (directory / "in").write_bytes(b"contents")
    subject = ["-subj", "/O=o/CN=Test key"]
    openssl(directory, "req", "-new", "-x509", "-nodes", *subject, "-newkey", kind, *curve, "-keyout", "k", "-out", "c.pem")
    openssl(directory, "x509", "-in", "c.pem", "-outform", "DER", "-out", "c.der")
    openssl(directory, "x509", "-in", "c.pem", "-text", "-out", "text.pem")
    return kind, directory


@pytest.mark.spawns
def test_certificates_as_openssl_writes_them(made: tuple[str, Path]) -> None:
    certificate = pkcs7.certificate((made[1] / "c.der").read_bytes())
    assert str(certificate.key).startswith("Test key (")
    for name in ("c.pem", "text.pem"):
        pem = (made[1] / name).read_bytes()
        assert pkcs7.certificate(pem) == certificate
        with pytest.raises(Damaged):
            pkcs7.certificate(pem.replace(b"-----\nMII", b"-----\nMI"))


@pytest.mark.spawns
@pytest.mark.parametrize("more", [["-noattr"], ["-noattr", "-keyid"], ["-nosmimecap"]])
def test_signatures_as_openssl_writes_them(made: tuple[str, Path], tmp_path: Path, more: list[str]) -> None:
    kind, directory = made
    openssl(directory, "cms", "-sign", "-binary", "-nocerts", *more, "-md", "sha512", "-signer", "c.pem", "-inkey", "k",
            "-in", "in", "-outform", "DER", "-out", f"{tmp_path}/p7")  # fmt: skip
    signature = (tmp_path / "p7").read_bytes()
    if "-noattr" not in more:
        with pytest.raises(Damaged, match="has attributes"):
            pkcs7.signature(signature)
        return
    der = (directory / "c.der").read_bytes()
    signed, certificate = pkcs7.signature(signature), pkcs7.certificate(der)
    assert signed.key.is_same(certificate.key)
    assert_as_asn1crypto(signature, der)
    checkable = kind != "ec"
    assert pkcs7.is_genuine(signed, certificate, by(b"contents")) is (True if checkable else None)
    assert pkcs7.is_genuine(signed, certificate, by(b"others")) is (False if checkable else None)


SHA256 = tlv(0x30, tlv(6, bytes.fromhex("608648016503040201")), tlv(5))
NULL = tlv(5)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (bytes.fromhex("06092a864886f70d010702"), bytes.fromhex("06092a864886f70d010703")),  # signed data
        (bytes.fromhex("06092a864886f70d010701"), bytes.fromhex("06092a864886f70d010702")),  # over data
        (b"\2\1\1\x31", b"\2\1\2\x31"),  # version
        (b"\2\1\1\x30", b"\2\1\3\x30"),  # the signer's, which is to be the same
        (b"\2\1\1\x31", b"\2\1\3\x31"),
        (SHA256, SHA256[:-2] + b"\5\1"),  # lengths
        (SHA256, SHA256.replace(b"\x06\x09", b"\x05\x09")),  # an algorithm without an identifier
        (b"\x06\x03\x55\x04\x03", b"\x05\x03\x55\x04\x03"),  # in the issuer's name
        (b"\x31\x0b\x30", b"\x30\x0b\x30"),
        (b"\x30\x0d\x31\x0b", b"\x31\x0d\x31\x0b"),
    ],
)
def test_what_the_kernel_does_not_parse(old: bytes, new: bytes) -> None:
    whole = US.signature(b"x")
    assert pkcs7.signature(whole)
    assert old in whole
    with pytest.raises(Damaged):
        pkcs7.signature(whole.replace(old, new))


def test_nothing_follows_a_signature() -> None:
    whole = US.signature(b"x")
    for odd in (US.signature(b"x", more=NULL), US.signature(b"x", signers=0)):
        with pytest.raises(Damaged):
            pkcs7.signature(odd)
    assert pkcs7.signature(US.signature(b"x", more=tlv(0xA1), signers=2)).key == pkcs7.signature(whole).key
    for bad in (whole + b"\0", whole + NULL, whole[:-1], whole[:-70]):
        with pytest.raises(Damaged):
            pkcs7.signature(bad)
    with pytest.raises(Damaged, match="has attributes"):
        pkcs7.signature(US.signature(b"x", attributes=True))


def test_lists_of_the_firmware() -> None:
    both = signature_list(US.certificate, b"no certificate", OTHER.certificate)
    hashes = bytes(16) + (28 + 48).to_bytes(4, "little") + bytes(4) + (48).to_bytes(4, "little") + bytes(48)
    assert [str(c.key)[:4] for c in pkcs7.certificates(hashes + both)] == ["us (", "them"]
    assert pkcs7.certificates(b"") == ()
    for cut in (1, len(both) - 1, 20):
        with pytest.raises(Damaged):
            pkcs7.certificates(both[:cut])


@given(st.binary(max_size=80), st.integers(0, 400), st.integers(0, 255))
def test_hostile_bytes_are_damaged(data: bytes, at: int, value: int) -> None:
    good = [US.signature(b"x"), US.certificate, signature_list(US.certificate)]
    for read, whole in zip((pkcs7.signature, pkcs7.certificate, pkcs7.certificates), good, strict=True):
        for bad in (data, whole[:at], whole[: at % len(whole)] + bytes([value]) + whole[at % len(whole) + 1 :]):
            try:
                read(bad)
            except Damaged:
                continue


@pytest.mark.parametrize("data", [b"0", b"\x3f\0", b"0\x80", b"0\x85\1\1\1\1\1", b"0\x82\xff", b"0\5a", b"\2\0"])
def test_lengths_that_lie(data: bytes) -> None:
    with pytest.raises(Damaged):
        pkcs7.certificate(data)


def test_hostile_bytes_end_quickly() -> None:
    def long(tag: int, *parts: bytes) -> bytes:
        return bytes([tag]) + b"\x84" + sum(map(len, parts)).to_bytes(4, "big") + b"".join(parts)

    many = b"\xa0\0" * 500_000
    signed = long(0x30, tlv(2, b"\1"), tlv(0x31), tlv(0x30, tlv(6, pkcs7._DATA)), many)
    outer = long(0x30, tlv(6, pkcs7._SIGNED_DATA), long(0xA0, signed))
    begin = b"-----BEGIN CERTIFICATE-----\n"
    start = time.process_time()
    for data in (outer, long(0x30, long(0x30, many)), begin * 40_000, begin * 2_300):
        for parse in (pkcs7.signature, pkcs7.certificate):
            with pytest.raises(Damaged):
                parse(data)
    assert time.process_time() - start < 1


def test_a_signers_name_is_one_line() -> None:
    assert str(pkcs7.signature(Key("a\x1b[2J\nb").signature(b"x")).key).startswith("a?[2J?b (")
