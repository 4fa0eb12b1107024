# SPDX-License-Identifier: GPL-2.0-or-later
"""Which key signs for a kernel, where it lies, and that an unsigned module never passes for a signed one."""

from __future__ import annotations

import os
from pathlib import Path

import machinetree
import pytest
from machinetree import GOOD, KERNEL

from knetstatd.build import sign
from knetstatd.core.errors import BuildError
from knetstatd.core.model import Kind
from knetstatd.state import paths


@pytest.fixture
def root(tmp_path: Path) -> Path:
    machinetree.make(tmp_path, signed=True)
    return tmp_path


def key_for(root: Path) -> sign.Key | None:
    return sign.key_for(root, paths.places(root), KERNEL, root / f"usr/src/linux-headers-{KERNEL}")


def reason(root: Path) -> str:
    """Why the key cannot sign."""
    with pytest.raises(BuildError) as e:
        sign.prepare(the_key(root), root)
    assert e.value.kind == Kind.SIGNING
    assert e.value.fix
    return e.value.what.replace(str(root), "")


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
    lines = "sign_file=/opt/sign\nmok_signing_key=/etc/keys/k\nmok_certificate=/X/c\n"
    with_kernel = "sign_file=/opt/$kernelver\nmok_signing_key=/etc/${kernelver}.k\nmok_certificate=/etc/$kernelver.c\n"
    machinetree.write(root / "etc/dkms/framework.conf", with_kernel)
    assert the_key(root)[1:] == (root / f"opt/{KERNEL}", "sha512", f"{root}/etc/{KERNEL}.k", f"{root}/etc/{KERNEL}.c", None)
    conf = machinetree.write(root / "etc/dkms/framework.conf", lines)
    assert the_key(root)[1:] == (root / "opt/sign", "sha512", f"{root}/etc/keys/k", f"{root}/X/c", None)
    conf.write_text("mok_signing_key=pkcs11:token=x\nmok_certificate=/etc/keys/c\n")
    machinetree.write(root / "etc/keys/c", "")
    token = the_key(root)
    assert (token.private, sign.exists(token), token.files) == ("pkcs11:token=x", True, (root / "etc/keys/c",))


def test_kernels_without_a_key(root: Path) -> None:
    headers = root / f"usr/src/linux-headers-{KERNEL}"
    (root / "usr/bin/openssl").unlink()
    assert key_for(root) is None, "none can be made, and dkms goes without, too"
    machinetree.write(root / "var/lib/dkms/mok.key", "")
    machinetree.write(root / "var/lib/dkms/mok.pub", "")
    assert sign.exists(the_key(root))
    (root / "var/lib/dkms/mok.pub").unlink()
    (root / "var/lib/dkms/mok.key").unlink()
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
    machinetree.tell(root, "openssl req", 'echo "$TMPDIR ${PATH%%:*}" >"$root/ran/environment"')
    assert (sign.exists(the_key(root)), sign.changed(the_key(root))) == (False, 0)
    sign.prepare(the_key(root), work)
    assert sign.exists(the_key(root))
    assert machinetree.ran(root, "environment") == [f"{work} {root}/usr/local/sbin"]
    private = root / "var/lib/dkms/mok.key"
    assert private.stat().st_mode & 0o777 == 0o600
    assert (root / "var/lib/dkms/mok.pub").read_bytes() == (root / "certificate").read_bytes()
    assert (root / "var/lib/dkms/mok.pub").stat().st_mode & 0o777 == 0o644
    made = private.read_bytes()
    sign.prepare(the_key(root), work)
    assert private.read_bytes() == made
    assert machinetree.ran(root, "openssl") == [
        "req -new -x509 -nodes -days 36500 -subj /CN=DKMS module signing key -newkey rsa:2048"
        f" -keyout {work}/key.pem -outform DER -out {work}/key.der"
    ]


@pytest.mark.spawns
def test_a_pair_whose_place_is_not_there(root: Path) -> None:
    machinetree.write(root / "etc/dkms/framework.conf", "mok_signing_key=/gone/k\nmok_certificate=/gone/c\n")
    with pytest.raises(BuildError, match="no signing key can be made: No such file or directory") as e:
        sign.prepare(the_key(root), root)
    assert (e.value.kind, e.value.where) == (Kind.SIGNING, f"{root}/gone/k"), "no name of ours"


@pytest.mark.spawns
def test_a_pair_that_cannot_be_made(root: Path) -> None:
    machinetree.tell(root, "openssl req", "echo no entropy; exit 1")
    with pytest.raises(BuildError, match="no signing key can be made: no entropy") as e:
        sign.prepare(the_key(root), root)
    assert (e.value.kind, e.value.where, e.value.fix) == (Kind.SIGNING, the_key(root).private, "Install openssl")
    assert not sign.exists(the_key(root))


@pytest.mark.spawns
def test_a_module_is_signed(root: Path) -> None:
    machinetree.tell(root, "sign-file sha512", 'echo "$TMPDIR ${PATH%%:*}" >"$root/ran/environment"')
    module = machinetree.write(root / "demo.ko", GOOD)
    sign.sign(module, the_key(root), root)
    assert module.read_bytes() == GOOD + (root / "signature").read_bytes()
    assert machinetree.ran(root, "environment") == [f"{root} {root}/usr/local/sbin"]
    assert machinetree.ran(root, "sign-file") == [f"sha512 {root}/var/lib/dkms/mok.key {root}/var/lib/dkms/mok.pub {module}"]


@pytest.mark.spawns
@pytest.mark.parametrize("does", ["exit 0", 'cat "$root/signature" >>"$4"; echo no; exit 1'])
@pytest.mark.parametrize("data", [GOOD, b"x"])
def test_a_module_that_is_not_signed(root: Path, does: str, data: bytes) -> None:
    machinetree.tell(root, "sign-file sha512", does)
    with pytest.raises(BuildError, match="sign-file failed") as e:
        sign.sign(machinetree.write(root / "demo.ko", data), the_key(root), root)
    assert (e.value.kind, "mok.key" in e.value.fix) == (Kind.SIGNING, True)


KEYS = "mok_signing_key=/root/mok.key\nmok_certificate=/root/mok.der\n"


@pytest.mark.spawns
@pytest.mark.parametrize("there", ["key", "der"])
def test_half_a_pair_is_somebodys(root: Path, there: str) -> None:
    """dkms makes both anew: the owner's key would be gone."""
    machinetree.write(root / "etc/dkms/framework.conf", KEYS)
    half = machinetree.write(root / f"root/mok.{there}", "the owner's")
    other, names = ("der", ("key", "certificate")) if there == "key" else ("key", ("certificate", "key"))
    assert reason(root) == f"the signing {names[0]} /root/mok.{there} is there, and its {names[1]} /root/mok.{other} is not"
    assert half.read_text() == "the owner's"
    assert os.listdir(root / "root") == [f"mok.{there}"]
    assert machinetree.ran(root, "openssl") == []


@pytest.mark.spawns
@pytest.mark.parametrize("name", ["mok.key", "mok.pub"])
def test_a_pair_that_appears_meanwhile_is_not_written_over(root: Path, name: str) -> None:
    machinetree.tell(root, "openssl req", f'echo theirs >"$root/var/lib/dkms/{name}"')
    assert reason(root) == "no signing key can be made: File exists"
    assert (root / f"var/lib/dkms/{name}").read_text() == "theirs\n"
    assert not [left for left in os.listdir(root / "var/lib/dkms") if left.endswith(".new")]


def test_what_cannot_sign_is_named(root: Path) -> None:
    conf = machinetree.write(root / "etc/dkms/framework.conf", "sign_file=/opt/sign\n")
    assert reason(root) == "sign_file /opt/sign is not there, or no program"
    machinetree.write(root / "opt/sign", "")
    assert reason(root) == "sign_file /opt/sign is not there, or no program"
    conf.write_text("mok_signing_key=pkcs11:x\nmok_certificate=/c.der\n")
    assert reason(root) == "the key is in a token, and its certificate /c.der is not there"
    machinetree.write(root / "c.der", "")
    assert sign.prepare(the_key(root), root).pair == ("pkcs11:x", f"{root}/c.der")


def test_what_may_not_be_seen(root: Path) -> None:
    """As in a unit without home directories: the name leads where nobody may look."""
    machinetree.write(root / "etc/dkms/framework.conf", "mok_signing_key=/loop/k\nmok_certificate=/loop/c\n")
    (root / "loop").symlink_to(root / "loop")
    assert reason(root) == "/loop/k may not be read by the unit that publishes"


def test_keys_are_lent_for_as_long_as_it_takes(root: Path) -> None:
    places = paths.places(root)
    sign.lend(root, places, KERNEL)
    assert not places.keys(KERNEL).exists(), "dkms's own pair lies where everybody's units see it"
    machinetree.write(root / "etc/dkms/framework.conf", "mok_signing_key=/root/$kernelver\nmok_certificate=/root/c\n")
    private = machinetree.write(root / f"root/{KERNEL}", "private")
    certificate = machinetree.write(root / "root/c", "certificate")
    sign.lend(root, places, KERNEL)
    for path in (private, certificate):
        path.unlink()
    key = the_key(root)
    assert sign.exists(key)
    assert [Path(path).read_text() for path in key.pair] == ["private", "certificate"]
    assert key.private == f"{root}/root/{KERNEL}", "what is told of it"
    assert [path.stat().st_mode & 0o777 for path in (places.keys(KERNEL), *key.files)] == [0o700, 0o600, 0o600]
    sign.lend(root, places, KERNEL)
    assert os.listdir(places.keys(KERNEL)) == [], "what is not there any more is not lent any more"
    machinetree.write(private, "private")
    sign.lend(root, places, KERNEL)
    assert "is there, and its certificate" in reason(root)
    sign.takeback(places, KERNEL)
    assert not places.keys(KERNEL).exists()


@pytest.mark.spawns
def test_a_key_with_a_passphrase(root: Path) -> None:
    machinetree.write(root / "var/lib/dkms/mok.key", "-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    machinetree.write(root / "var/lib/dkms/mok.pub", "")
    machinetree.tell(root, "sign-file sha512", "printf 'bad decrypt %0300d' 0; exit 1")
    module = machinetree.write(root / "demo.ko", GOOD)
    with pytest.raises(BuildError) as e:
        sign.sign(module, the_key(root), root)
    why = f"the key {root}/var/lib/dkms/mok.key has a passphrase, which nobody can type"
    assert (e.value.what, e.value.where) == (f"{why}: bad decrypt {'0' * 285}...", "demo.ko")
    machinetree.write(root / "etc/dkms/framework.conf", "mok_signing_key=pkcs11:x\nmok_certificate=/c.der\n")
    machinetree.write(root / "c.der", "ENCRYPTED")
    with pytest.raises(BuildError, match="sign-file failed: bad decrypt"):  # a key in a token has no file
        sign.sign(module, the_key(root), root)
