# SPDX-License-Identifier: GPL-2.0-or-later
"""Who signed it: the signer in a module's PKCS#7 signature, and the keys in certificates and EFI signature lists.

Rule 1: the bytes are hostile. Every length is checked against what holds it; every fault is a Damaged.
Rule 2: keys are told apart as the kernel does (asymmetric_key_generate_id(), pkcs7_note_signed_info()): by issuer and serial
        number, or by the subject key identifier. Names are for people.

Our own reader of DER, because `cryptography` finds no signer in a module's signature (measured); asn1crypto is the oracle of
the tests. libkmod brings libcrypto's 3 MB into an idle daemon, `modinfo` gives the serial number without its issuer and reads
no certificate, `openssl` takes 10 ms for each question.

Sources: X.690 (DER), RFC 5652 (CMS), RFC 5280 (X.509), RFC 8017 (RSASSA-PKCS1-v1_5), UEFI 2.10 32.4.1.
"""

from __future__ import annotations

import binascii
import re
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import names
from knetstatd.core.errors import Damaged

if TYPE_CHECKING:
    from collections.abc import Callable

_INTEGER, _BITS, _OCTETS, _OID, _SEQUENCE, _SET = 0x02, 0x03, 0x04, 0x06, 0x30, 0x31
_RSA = bytes.fromhex("2a864886f70d010101")
_SIGNED_DATA, _DATA = bytes.fromhex("2a864886f70d010702"), bytes.fromhex("2a864886f70d010701")
_ML_DSA = bytes.fromhex("6086480165030403")  # 2.16.840.1.101.3.4.3, then the number of the set of parameters
_DAMAGED = "its signature or certificate is damaged"
_COMMON_NAME, _SKID = b"\x55\x04\x03", b"\x55\x1d\x0e"
_SHA = bytes.fromhex("608648016503040200")[:-1]  # 2.16.840.1.101.3.4.2, then the number of the digest
_DIGESTS = {_SHA + bytes([n]): name for n, name in ((1, "sha256"), (2, "sha384"), (3, "sha512"), (4, "sha224"))} | {
    _SHA + bytes([n]): name for n, name in ((8, "sha3_256"), (9, "sha3_384"), (10, "sha3_512"))
}
_PEM = re.compile(rb"^-----BEGIN (?:X509 )?CERTIFICATE-----\s", re.MULTILINE)
_LARGEST = 1 << 16  # bytes; a signature has some 500, one by ML-DSA with its certificate 12,000
_EFI_X509 = bytes.fromhex("a159c0a5e494a74a87b5ab155c2bf072")  # EFI_CERT_X509_GUID, as it lies in memory


class Key(NamedTuple):
    """How a key is named: by issuer (a Name in DER) and serial number, or by subject key identifier; b"" for not said."""

    issuer: bytes
    serial: bytes
    skid: bytes

    def is_same(self, other: Key) -> bool:
        """Whether the kernel takes the two for one key."""
        by_serial = bool(self.issuer) and (self.issuer, self.serial) == (other.issuer, other.serial)
        return by_serial or (bool(self.skid) and self.skid == other.skid)

    def __str__(self) -> str:
        name = _common_name(self.issuer)
        number = (self.skid or self.serial).hex(":")
        return f"{name} ({number})" if name else number


class Certificate(NamedTuple):
    """A key and, if it is RSA, its modulus and exponent; 0 if it is not."""

    key: Key
    modulus: int
    exponent: int


class Signature(NamedTuple):
    """A signature: whose, and what it takes to check it. digest: hashlib's name, "" if it is not over the contents alone."""

    key: Key
    digest: str
    oid: bytes
    value: bytes


class _Item(NamedTuple):
    tag: int
    data: bytes
    whole: bytes


def _items(data: bytes) -> list[_Item]:
    """The elements that follow each other in `data`."""
    items, at = [], 0
    if len(data) > _LARGEST:
        raise Damaged(_DAMAGED)
    while at < len(data):
        start = at + 2
        if start > len(data) or data[at] & 0x1F == 0x1F:
            raise Damaged(_DAMAGED)
        length = data[at + 1]
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(data[at + 2 : start], "big") if at + 2 < start <= min(at + 6, len(data)) else len(data)
        if start + length > len(data):
            raise Damaged(_DAMAGED)
        items.append(_Item(data[at], data[start : start + length], data[at : start + length]))
        at = start + length
    return items


def _take(items: list[_Item], *tags: int) -> _Item:
    """Takes the next element, which must be of one of the tags."""
    if not items or items[0].tag not in tags:
        raise Damaged(_DAMAGED)
    return items.pop(0)


def _only(items: list[_Item], *tags: int) -> _Item:
    """The same of the last one."""
    item = _take(items, *tags)
    if items:
        raise Damaged(_DAMAGED)
    return item


def _skip(items: list[_Item], *tags: int) -> None:
    while items and items[0].tag in tags:
        items.pop(0)


def signature(data: bytes) -> Signature:
    """The first signer in PKCS#7 data; modules have one. Raises Damaged for what the kernel refuses whatever the key.

    That is asn1_ber_decoder() with pkcs7.asn1, and pkcs7_verify(), which takes no attributes but an ML-DSA key's (from 7.2 on).
    """
    outer = _items(_only(_items(data), _SEQUENCE).data)
    if _take(outer, _OID).data != _SIGNED_DATA:
        raise Damaged(_DAMAGED)
    signed = _items(_only(_items(_only(outer, 0xA0).data), _SEQUENCE).data)
    version = _take(signed, _INTEGER).data
    _algorithms(_take(signed, _SET).data)
    if version not in (b"\1", b"\3") or _only(_items(_take(signed, _SEQUENCE).data), _OID).data != _DATA:
        raise Damaged(_DAMAGED)
    _skip(signed, 0xA0, 0xA1)  # certificates, revocation lists
    signers = [_signer(item, version) for item in _items(_only(signed, _SET).data)]
    if not signers:
        raise Damaged(_DAMAGED)
    return signers[0]


def _signer(item: _Item, version: bytes) -> Signature:
    info = _items(_only([item], _SEQUENCE).data)
    if _take(info, _INTEGER).data != version:
        raise Damaged(_DAMAGED)
    who = _take(info, _SEQUENCE if version == b"\1" else 0x80)
    if who.tag == _SEQUENCE:
        parts = _items(who.data)
        key = Key(_take(parts, _SEQUENCE).whole, _only(parts, _INTEGER).data, b"")
        for name in _items(_items(key.issuer)[0].data):
            for pair in _items(_only([name], _SET).data):
                named = _items(_only([pair], _SEQUENCE).data)
                if len(named) != 2 or named[0].tag != _OID:
                    raise Damaged(_DAMAGED)
    else:
        key = Key(b"", b"", who.data)
    oid = _algorithm(_take(info, _SEQUENCE))
    bare = bool(info) and info[0].tag != 0xA0  # with signed attributes it is they that are signed
    _skip(info, 0xA0)
    if not _algorithm(_take(info, _SEQUENCE)).startswith(_ML_DSA) and not bare:
        raise Damaged("its signature has attributes, which a module's must not have")
    value = _take(info, _OCTETS).data
    _skip(info, 0xA1)
    if info:
        raise Damaged(_DAMAGED)
    return Signature(key, _DIGESTS.get(oid, "") if bare else "", oid, value)


def _algorithms(data: bytes) -> None:
    for item in _items(data):
        _algorithm(item)


def _algorithm(item: _Item) -> bytes:
    """The OID of an AlgorithmIdentifier."""
    oid, *parameters = _items(_only([item], _SEQUENCE).data) or [item]
    if oid.tag != _OID or len(parameters) > 1:
        raise Damaged(_DAMAGED)
    return oid.data


def certificate(data: bytes) -> Certificate:
    """An X.509 certificate, as DER or, as sign-file(1) takes it too, as PEM (RFC 7468). Raises Damaged."""
    if armour := _armour(data):
        try:
            data = binascii.a2b_base64(data[armour.end() : max(data.find(b"\n-----END ", armour.end() - 1), 0)])
        except binascii.Error as e:
            raise Damaged(_DAMAGED) from e
    body = _items(_take(_items(_take(_items(data), _SEQUENCE).data), _SEQUENCE).data)
    _skip(body, 0xA0)  # version
    serial = _take(body, _INTEGER).data
    _take(body, _SEQUENCE)  # algorithm
    issuer = _take(body, _SEQUENCE).whole
    for _ in ("validity", "subject"):
        _take(body, _SEQUENCE)
    public = _items(_take(body, _SEQUENCE).data)
    modulus = exponent = 0
    if _take(_items(_take(public, _SEQUENCE).data), _OID).data == _RSA:
        numbers = _items(_take(_items(_take(public, _BITS).data[1:]), _SEQUENCE).data)
        modulus, exponent = (int.from_bytes(_take(numbers, _INTEGER).data, "big") for _ in range(2))
    _skip(body, 0x81, 0x82, 0xA1, 0xA2)  # unique identifiers
    skid = b""
    if body:
        for extension in _items(_take(_items(_take(body, 0xA3).data), _SEQUENCE).data):
            parts = _items(extension.data)
            if parts and parts[0].data == _SKID:
                skid = _take(_items(_take(parts[-1:], _OCTETS).data), _OCTETS).data
    return Certificate(Key(issuer, serial, skid), modulus, exponent)


def _armour(data: bytes) -> re.Match[bytes] | None:
    return _PEM.search(data) if data[:1] != bytes([_SEQUENCE]) else None


def is_pem(data: bytes) -> bool:
    """Whether a certificate is PEM, which mokutil(1) does not import."""
    return _armour(data) is not None


def certificates(lists: bytes) -> tuple[Certificate, ...]:
    """The X.509 certificates in EFI_SIGNATURE_LISTs; those that cannot be read are left out. Raises Damaged."""
    readable, at = [], 0
    while at < len(lists):
        total, header, size = (int.from_bytes(lists[at + n : at + n + 4], "little") for n in (16, 20, 24))
        if total < 28 or at + total > len(lists) or size <= 16:
            raise Damaged("a list of keys in the firmware is damaged")
        if lists[at : at + 16] == _EFI_X509:
            for start in range(at + 28 + header, at + total - size + 1, size):
                try:
                    readable.append(certificate(lists[start + 16 : start + size]))  # 16: the owner's GUID
                except Damaged:
                    continue
        at += total
    return tuple(readable)


def is_genuine(signed: Signature, key: Certificate, digest_by: Callable[[str], bytes | None]) -> bool | None:
    """Whether `signed` is this key's signature of the contents; None if that cannot be told (ECDSA, ML-DSA, attributes).

    digest_by: gives the digest of the contents by an algorithm (hashlib's name), None if it is not known.
    """
    if not signed.digest or not key.modulus or (digest := digest_by(signed.digest)) is None:
        return None
    inner = bytes([_OID, len(signed.oid)]) + signed.oid + b"\x05\0"
    info = bytes([_SEQUENCE, len(inner)]) + inner + bytes([_OCTETS, len(digest)]) + digest
    length = (key.modulus.bit_length() + 7) // 8
    padded = b"\0\1" + b"\xff" * (length - len(info) - 5) + b"\0" + bytes([_SEQUENCE, len(info)]) + info
    if not 0 < key.exponent < 1 << 32 or length > 2048:
        return None
    return pow(int.from_bytes(signed.value, "big"), key.exponent, key.modulus) == int.from_bytes(padded, "big")


def _common_name(name: bytes) -> str:
    """The common name in a Name, for people; "" if there is none."""
    try:
        for part in _items(_take(_items(name), _SEQUENCE).data):
            for pair in _items(part.data):
                kind, *value = _items(pair.data)
                if kind.data == _COMMON_NAME and value:
                    return names.clean(value[0].data.decode("utf-8", "replace"), 80)
    except (Damaged, ValueError):
        pass
    return ""
