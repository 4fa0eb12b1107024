# SPDX-License-Identifier: GPL-2.0-or-later
"""Signing a module with the key that DKMS uses on this machine (dkms(8), "Module signing").

Compiling is done without a key in reach; a proven module is signed when it is packed for publishing. A kernel without module
signatures gets unsigned modules. One with them gets signed modules even if it does not insist: it may, after the next boot.

Rules:

1. dkms decides with what is signed (prepare_signing() in 3.0.10 and 3.2.2). Only: it makes both files anew if one is not
   there. A key or certificate that is there belongs to somebody, and is never written over.
2. Whoever cannot sign says why. Whether the module is installed without a signature then, as dkms does, its caller decides.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import names
from knetstatd.core.errors import BuildError
from knetstatd.core.model import Kind
from knetstatd.dkms import dkms_framework
from knetstatd.machine import signature_policy
from knetstatd.system import files, process

if TYPE_CHECKING:
    from knetstatd.state.paths import Places

_TOKEN = "pkcs11:"
_SIGNED = b"~Module signature appended~\n"
_COPIES = ("key", "certificate")
_LIMIT = 1 << 20  # bytes of a key or certificate


class Key(NamedTuple):
    """What signs for a kernel on the machine under `root`: the kernel's sign-file program, or framework.conf's, and the digest.

    private: the private key, a file's path or a pkcs11: URI.  certificate: its file's path.
    copies: the directory with copies of both if the files themselves may not be read here.
    """

    root: Path
    program: Path
    digest: str
    private: str
    certificate: str
    copies: Path | None = None

    @property
    def pair(self) -> tuple[str, str]:
        """What the program is told: the private key, and the certificate."""
        if self.copies is None:
            return self.private, self.certificate
        private, certificate = (os.fspath(self.copies / name) for name in _COPIES)
        return self.private if self.private.startswith(_TOKEN) else private, certificate

    @property
    def files(self) -> tuple[Path, ...]:
        """The pair's files; a private key in a token is none."""
        return tuple(Path(path) for path in self.pair if not path.startswith(_TOKEN))


def key_for(root: Path, places: Places, kernel: str, headers: Path) -> Key | None:
    """The key for the kernel of these headers (`make` makes one that is not there yet), None if modules are not signed: this
    kernel has no signatures, or no key can be made and it loads unsigned modules unless Secure Boot says otherwise."""
    config = files.text(headers / ".config") or ""
    if not re.search(r"^CONFIG_MODULE_SIG=y", config, re.MULTILINE):
        return None
    digest = re.search(r'^CONFIG_MODULE_SIG_HASH="(\w+)"', config, re.MULTILINE)
    configured = dkms_framework.framework(root, kernel).sign_file
    program = Path(_below(root, configured)) if configured else headers / "scripts" / "sign-file"
    if not configured and not os.path.isfile(program):
        return None
    private, certificate = (_below(root, path) for path in signature_policy.signing_pair(root, kernel))
    copies = places.keys(kernel)
    lent = copies if os.path.isdir(copies) else None
    key = Key(root, program, digest[1] if digest else "sha256", private, certificate, lent)
    if any(map(os.path.lexists, key.files)) or process.which(root, "openssl") is not None:
        return key
    return key if private.startswith(_TOKEN) or "CONFIG_MODULE_SIG_FORCE=y" in config or _fault(key) else None  # as dkms does


def _below(root: Path, path: str) -> str:
    return path if path.startswith(_TOKEN) else os.fspath(root / path.lstrip("/"))


def exists(key: Key) -> bool:
    """Whether the pair is there already. A private key in a token is taken to be."""
    return all(_is_there(path) for path in key.files)


def prepare(key: Key, work: Path) -> Key:
    """The key, its pair made if neither half is there, as dkms makes it at its first build.

    Raises BuildError if the key cannot sign.
    """
    if fault := _fault(key):
        fix = "Correct sign_file, mok_signing_key and mok_certificate in /etc/dkms/framework.conf"
        raise BuildError(Kind.SIGNING, fault, key.private, fix)
    if exists(key):
        return key
    _make(key, work)
    return key._replace(copies=None)


def _fault(key: Key) -> str:
    """What keeps the pair from being used, or made; "" for nothing."""
    program = _is_there(key.program)
    if program is None:
        return f"sign_file {key.program} lies where the unit that publishes may not look"
    if not program or not os.access(key.program, os.X_OK):
        return f"sign_file {key.program} is not there, or no program"
    there = [_is_there(path) for path in key.files]
    for path, is_there in zip(key.files, there, strict=True):
        if is_there is None or (is_there and not os.access(path, os.R_OK)):
            return f"{path} may not be read by the unit that publishes"
    if key.private.startswith(_TOKEN):
        return "" if all(there) else f"the key is in a token, and its certificate {key.certificate} is not there"
    if len(set(there)) == 1:
        return ""
    first, second = ("key", "certificate") if there[0] else ("certificate", "key")
    present, missing = (key.private, key.certificate) if there[0] else (key.certificate, key.private)
    return f"the signing {first} {present} is there, and its {second} {missing} is not"


def _is_there(path: Path) -> bool | None:
    """Whether there is a file, None if that may not be seen."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return None


def changed(key: Key) -> int:
    """When the pair became what it is, in nanoseconds since the epoch."""
    identities = map(files.identity, key.files)
    return max((identity.ctime_ns for identity in identities if identity), default=0)


def sign(module: Path, key: Key, work: Path) -> None:
    """Signs one uncompressed module in place. Raises BuildError."""
    done = process.run(
        [os.fspath(key.program), key.digest, *key.pair, os.fspath(module)],
        timeout=60, env=process.environment(work, root=key.root),
    )  # fmt: skip
    with open(module, "rb") as f:
        f.seek(-min(len(_SIGNED), module.stat().st_size), os.SEEK_END)
        signed = f.read() == _SIGNED
    if done.code or not signed:
        locked = any("ENCRYPTED" in (files.text(path, _LIMIT) or "") for path in key.files[:-1])
        what = f"the key {key.private} has a passphrase, which nobody can type" if locked else f"{key.program.name} failed"
        words = names.clean(" ".join(done.text.split()), 300)
        raise BuildError(Kind.SIGNING, f"{what}: {words}", module.name, f"Look at the key {key.private}")


def _make(key: Key, work: Path) -> None:
    """Makes the pair that dkms would have made at its first build, in the same form and place. Raises BuildError."""
    private, certificate = work / "key.pem", work / "key.der"
    done = process.run(
        ["openssl", "req", "-new", "-x509", "-nodes", "-days", "36500", "-subj", "/CN=DKMS module signing key",
         "-newkey", "rsa:2048", "-keyout", os.fspath(private), "-outform", "DER", "-out", os.fspath(certificate)],
        timeout=120, env=process.environment(work, root=key.root),
    )  # fmt: skip
    if done.code:
        raise BuildError(Kind.SIGNING, f"no signing key can be made: {done.text.strip()[:300]}", key.private, "Install openssl")
    try:
        _write_new(Path(key.private), private.read_bytes(), 0o600)
        _write_new(Path(key.certificate), certificate.read_bytes(), 0o644)
    except OSError as e:
        what = f"no signing key can be made: {e.strerror}"
        fix = f"Make the pair {key.private} and {key.certificate} by hand (openssl req -x509)"
        raise BuildError(Kind.SIGNING, what, key.private, fix) from e


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Writes a file that is not there yet. Raises FileExistsError if it is."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    files.write(temporary, data, mode)
    try:
        os.link(temporary, path)
    finally:
        os.unlink(temporary)
    files.sync_dir(path.parent)


def lend(root: Path, places: Places, kernel: str) -> None:
    """Copies the pair that framework.conf names to where the unit that publishes may read it, and root alone.

    That unit sees no home directory, and is root without root's privileges. dkms's own pair it sees: that is not copied.
    Raises OSError.
    """
    place = places.keys(kernel)
    takeback(places, kernel)
    pair = signature_policy.signing_pair(root, kernel)
    if pair in signature_policy.OWN_PAIRS:
        return
    place.mkdir(mode=0o700, parents=True)
    for name, path in zip(_COPIES, pair, strict=True):
        if not path.startswith(_TOKEN) and _is_there(Path(_below(root, path))):
            files.write(place / name, files.read(Path(_below(root, path)), _LIMIT), 0o600, durable=False)


def takeback(places: Places, kernel: str) -> None:
    """Removes such copies."""
    shutil.rmtree(places.keys(kernel), ignore_errors=True)
