# SPDX-License-Identifier: GPL-2.0-or-later
"""Which key signs for a kernel, where it lies, and that an unsigned module never passes for a signed one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import machinetree
import pytest
from machinetree import GOOD, KERNEL

from knetstatd.build import sign
from knetstatd.core.errors import BuildError
from knetstatd.core.model import Kind

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    machinetree.make(tmp_path, signed=True)
    return tmp_path


def key_for(root: Path) -> sign.Key | None:
    return sign.key_for(root, root / f"usr/src/linux-headers-{KERNEL}")


def the_key(root: Path) -> sign.Key:
    key = key_for(root)
    assert key is not None
    return key


def test_the_key_is_the_machines(root: Path) -> None:
    dkms = root / "var/lib/dkms"
    assert the_key(root) == sign.Key(
        root, root / f"usr/src/linux-headers-{KERNEL}/scripts/sign-file", "sha512", f"{dkms}/mok.key", f"{dkms}/mok.pub"
    )


def test_what_dkms_is_configured_to_sign_with(root: Path) -> None:
    machinetree.write(root / "opt/sign", "")
    lines = "sign_file=/opt/sign\nmok_signing_key=/etc/keys/k\nmok_certificate=/etc/keys/c\n"
    conf = machinetree.write(root / "etc/dkms/framework.conf", lines)
    assert the_key(root)[1:] == (root / "opt/sign", "sha512", f"{root}/etc/keys/k", f"{root}/etc/keys/c")
    conf.write_text("mok_signing_key=pkcs11:token=x\nmok_certificate=/etc/keys/c\n")
    token = the_key(root)
    assert (token.private, sign.exists(token), token.files) == ("pkcs11:token=x", True, (root / "etc/keys/c",))


def test_kernels_without_a_key(root: Path) -> None:
    headers = root / f"usr/src/linux-headers-{KERNEL}"
    (root / "usr/bin/openssl").unlink()
    assert key_for(root) is None, "none can be made, and dkms goes without, too"
    machinetree.write(root / "var/lib/dkms/mok.key", "")
    assert key_for(root) is None, "half a pair is none"
    machinetree.write(root / "var/lib/dkms/mok.pub", "")
    assert sign.exists(the_key(root))
    (root / "var/lib/dkms/mok.pub").unlink()
    with open(headers / ".config", "a") as config:
        config.write("CONFIG_MODULE_SIG_FORCE=y\n")
    assert not sign.exists(the_key(root)), "such a kernel takes no others"
    (headers / "scripts/sign-file").unlink()
    assert key_for(root) is None
    machinetree.program(headers / "scripts/sign-file", root, "")
    (headers / ".config").write_text("# CONFIG_MODULE_SIG is not set\n")
    assert key_for(root) is None


@pytest.mark.spawns
def test_a_pair_is_made_as_dkms_makes_it(root: Path) -> None:
    work = root / "work"
    work.mkdir()
    assert not sign.exists(the_key(root))
    sign.make(the_key(root), work)
    assert sign.exists(the_key(root))
    private = root / "var/lib/dkms/mok.key"
    assert private.stat().st_mode & 0o777 == 0o600
    assert (root / "var/lib/dkms/mok.pub").read_bytes() == (root / "certificate").read_bytes()
    assert (root / "var/lib/dkms/mok.pub").stat().st_mode & 0o777 == 0o644
    assert machinetree.ran(root, "openssl") == [
        "req -new -x509 -nodes -days 36500 -subj /CN=DKMS module signing key -newkey rsa:2048"
        f" -keyout {work}/key.pem -outform DER -out {work}/key.der"
    ]


@pytest.mark.spawns
def test_a_pair_that_cannot_be_made(root: Path) -> None:
    machinetree.tell(root, "openssl req", "echo no entropy; exit 1")
    with pytest.raises(BuildError, match="no signing key can be made: no entropy") as e:
        sign.make(the_key(root), root)
    assert (e.value.kind, e.value.where, e.value.fix) == (Kind.SIGNING, the_key(root).private, "Install openssl")
    assert not sign.exists(the_key(root))


@pytest.mark.spawns
def test_a_module_is_signed(root: Path) -> None:
    machinetree.tell(root, "sign-file sha512", 'echo "$TMPDIR" >"$root/ran/tmpdir"')
    module = machinetree.write(root / "demo.ko", GOOD)
    sign.sign(module, the_key(root), root)
    assert module.read_bytes() == GOOD + (root / "signature").read_bytes()
    assert machinetree.ran(root, "tmpdir") == [f"{root}"]
    assert machinetree.ran(root, "sign-file") == [f"sha512 {root}/var/lib/dkms/mok.key {root}/var/lib/dkms/mok.pub {module}"]


@pytest.mark.spawns
@pytest.mark.parametrize("does", ["exit 0", 'cat "$root/signature" >>"$4"; echo no; exit 1'])
@pytest.mark.parametrize("data", [GOOD, b"x"])
def test_a_module_that_is_not_signed(root: Path, does: str, data: bytes) -> None:
    machinetree.tell(root, "sign-file sha512", does)
    with pytest.raises(BuildError, match="sign-file failed") as e:
        sign.sign(machinetree.write(root / "demo.ko", data), the_key(root), root)
    assert (e.value.kind, "mok.key" in e.value.fix) == (Kind.SIGNING, True)
