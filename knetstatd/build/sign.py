# SPDX-License-Identifier: GPL-2.0-or-later
"""Signing a module with the key that DKMS uses on this machine (dkms(8), "Module signing").

Compiling is done without a key in reach; what was proven is signed when it is packed for publishing. A kernel without module
signatures gets unsigned modules; a kernel with them gets signed ones, also where it does not insist: it may, after the next
boot.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from knetstatd.system import files, process
from knetstatd.machine import dkms_framework, signature_policy
from knetstatd.core.errors import BuildError
from knetstatd.core.model import Kind


class Key(NamedTuple):
    """What signs: the kernel's sign-file program, its digest, the private key (a file or a pkcs11: URI), the certificate."""

    program: Path
    digest: str
    private: str
    certificate: str


def key_for(headers: Path) -> Key | None:
    """The key for the kernel of these headers, see `make` for one that is not there yet; None where modules are not signed:
    this kernel has no signatures, or no key can be made and it loads unsigned modules unless Secure Boot says otherwise."""
    config = files.text(headers / ".config") or ""
    if not re.search(r"^CONFIG_MODULE_SIG=y", config, re.MULTILINE):
        return None
    root = Path("/")
    digest = re.search(r'^CONFIG_MODULE_SIG_HASH="(\w+)"', config, re.MULTILINE)
    program = Path(dkms_framework.framework(root).sign_file or headers / "scripts" / "sign-file")
    if not os.path.isfile(program):
        return None
    key = Key(program, digest[1] if digest else "sha256", *signature_policy.signing_pair(root))
    if exists(key) or shutil.which("openssl", path=process.PATH) is not None or "CONFIG_MODULE_SIG_FORCE=y" in config:
        return key
    return None  # as dkms does


def exists(key: Key) -> bool:
    """Whether the pair is there already."""
    return key.private.startswith("pkcs11:") or (os.path.exists(key.private) and os.path.exists(key.certificate))


def changed(key: Key) -> int:
    """When the pair became what it is, in nanoseconds since the epoch."""
    found = map(files.identity, (Path(key.private), Path(key.certificate)))
    return max((one.ctime_ns for one in found if one), default=0)


def sign(module: Path, key: Key, work: Path) -> None:
    """Signs one uncompressed module in place. Raises BuildError; dkms itself would go on with an unsigned one."""
    done = process.run(
        [os.fspath(key.program), key.digest, key.private, key.certificate, os.fspath(module)],
        timeout=60, env=process.environment(work),
    )  # fmt: skip
    with open(module, "rb") as f:
        f.seek(-min(28, module.stat().st_size), os.SEEK_END)
        signed = f.read() == b"~Module signature appended~\n"
    if done.code or not signed:
        raise BuildError(
            Kind.SIGNING, f"sign-file failed: {done.text.strip()[:300]}", module.name, f"Look at the key {key.private}"
        )


def make(key: Key, work: Path) -> None:
    """Makes the pair that dkms would have made at its first build, in the same form and place.

    Raises BuildError: where signatures are wanted an unsigned module must not pass for a signed one.
    """
    temporary = work / "key.pem"
    done = process.run(
        ["openssl", "req", "-new", "-x509", "-nodes", "-days", "36500", "-subj", "/CN=DKMS module signing key",
         "-newkey", "rsa:2048", "-keyout", os.fspath(temporary), "-outform", "DER", "-out", os.fspath(work / "key.der")],
        timeout=120, env=process.environment(work),
    )  # fmt: skip
    if done.code:
        raise BuildError(Kind.SIGNING, f"no signing key can be made: {done.text.strip()[:300]}", key.private, "Install openssl")
    files.write(Path(key.private), temporary.read_bytes(), 0o600)
    files.write(Path(key.certificate), (work / "key.der").read_bytes(), 0o644)
