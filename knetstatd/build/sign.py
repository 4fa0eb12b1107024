# SPDX-License-Identifier: GPL-2.0-or-later
"""Signing a module with the key that DKMS uses on this machine (dkms(8), "Module signing").

Compiling is done without a key in reach; a proven module is signed when it is packed for publishing. A kernel without module
signatures gets unsigned modules. One with them gets signed modules even if it does not insist: it may, after the next boot.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from knetstatd.core.errors import BuildError
from knetstatd.core.model import Kind
from knetstatd.dkms import dkms_framework
from knetstatd.machine import signature_policy
from knetstatd.system import files, process

_TOKEN = "pkcs11:"
_SIGNED = b"~Module signature appended~\n"


class Key(NamedTuple):
    """What signs on the machine under `root`: the kernel's sign-file program and its digest.

    private: the private key, a file's path or a pkcs11: URI.  certificate: its file's path.
    """

    root: Path
    program: Path
    digest: str
    private: str
    certificate: str

    @property
    def files(self) -> tuple[Path, ...]:
        """The pair's files; a private key in a token is none."""
        return tuple(Path(path) for path in (self.private, self.certificate) if not path.startswith(_TOKEN))


def key_for(root: Path, headers: Path) -> Key | None:
    """The key for the kernel of these headers (`make` makes one that is not there yet), None if modules are not signed: this
    kernel has no signatures, or no key can be made and it loads unsigned modules unless Secure Boot says otherwise."""
    config = files.text(headers / ".config") or ""
    if not re.search(r"^CONFIG_MODULE_SIG=y", config, re.MULTILINE):
        return None
    digest = re.search(r'^CONFIG_MODULE_SIG_HASH="(\w+)"', config, re.MULTILINE)
    configured = dkms_framework.framework(root).sign_file
    program = Path(_below(root, configured)) if configured else headers / "scripts" / "sign-file"
    if not os.path.isfile(program):
        return None
    private, certificate = (_below(root, path) for path in signature_policy.signing_pair(root))
    key = Key(root, program, digest[1] if digest else "sha256", private, certificate)
    if exists(key) or process.which(root, "openssl") is not None or "CONFIG_MODULE_SIG_FORCE=y" in config:
        return key
    return None  # as dkms does


def _below(root: Path, path: str) -> str:
    return path if path.startswith(_TOKEN) else os.fspath(root / path.lstrip("/"))


def exists(key: Key) -> bool:
    """Whether the pair is there already. A private key in a token is; dkms makes none for it."""
    return key.private.startswith(_TOKEN) or all(map(os.path.exists, key.files))


def changed(key: Key) -> int:
    """When the pair became what it is, in nanoseconds since the epoch."""
    identities = map(files.identity, key.files)
    return max((identity.ctime_ns for identity in identities if identity), default=0)


def sign(module: Path, key: Key, work: Path) -> None:
    """Signs one uncompressed module in place. Raises BuildError; dkms itself would go on with an unsigned one."""
    done = process.run(
        [os.fspath(key.program), key.digest, key.private, key.certificate, os.fspath(module)],
        timeout=60, env=process.environment(work, root=key.root),
    )  # fmt: skip
    with open(module, "rb") as f:
        f.seek(-min(len(_SIGNED), module.stat().st_size), os.SEEK_END)
        signed = f.read() == _SIGNED
    if done.code or not signed:
        raise BuildError(
            Kind.SIGNING, f"sign-file failed: {done.text.strip()[:300]}", module.name, f"Look at the key {key.private}"
        )


def make(key: Key, work: Path) -> None:
    """Makes the pair that dkms would have made at its first build, in the same form and place.

    Raises BuildError: if signatures are wanted, an unsigned module must not pass for a signed one.
    """
    private, certificate = work / "key.pem", work / "key.der"
    done = process.run(
        ["openssl", "req", "-new", "-x509", "-nodes", "-days", "36500", "-subj", "/CN=DKMS module signing key",
         "-newkey", "rsa:2048", "-keyout", os.fspath(private), "-outform", "DER", "-out", os.fspath(certificate)],
        timeout=120, env=process.environment(work, root=key.root),
    )  # fmt: skip
    if done.code:
        raise BuildError(Kind.SIGNING, f"no signing key can be made: {done.text.strip()[:300]}", key.private, "Install openssl")
    files.write(Path(key.private), private.read_bytes(), 0o600)
    files.write(Path(key.certificate), certificate.read_bytes(), 0o644)
