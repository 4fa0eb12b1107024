# SPDX-License-Identifier: GPL-2.0-or-later
"""A publication counts by what is on the disk afterwards, and only if it is the disk that has it."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import kerneltree
import machinetree
import pytest
from machinetree import ARCH, GOOD, KERNEL

from knetstatd.build import pack, publish
from knetstatd.core.errors import BuildError
from knetstatd.core.model import Kind, Proof
from knetstatd.dkms import dkms_tree
from knetstatd.state import digests, staged
from knetstatd.verdict import judge

if TYPE_CHECKING:
    from pathlib import Path

    from knetstatd.state.digests import Remark

pytestmark = pytest.mark.spawns
BUILD = f"var/lib/dkms/demo/1.0/{KERNEL}/{ARCH}"
INSTALLED = f"lib/modules/{KERNEL}/updates/dkms/demo.ko"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    machinetree.make(tmp_path)
    return tmp_path


def stage(root: Path, data: bytes) -> staged.Staged:
    """What staging has left."""
    place = root / f"var/lib/knetstatd/stage/{KERNEL}/demo/tree"
    machinetree.write(place / f"demo/1.0/{KERNEL}/{ARCH}/module/demo.ko", data)
    artefact = staged.built(place, KERNEL, "demo", "1.0")
    assert artefact is not None
    return artefact


def publish_it(
    root: Path, *, data: bytes = GOOD, proofs: tuple[Proof, ...] | None = None, timeout: float = 20.0, required: str = ""
) -> tuple[Remark, ...]:
    """Publishes a module that was staged. proofs: in place of what `verify` says of what is installed then."""
    artefact = stage(root, data)
    prove = (lambda: machinetree.prove(root)) if proofs is None else (lambda: proofs)
    headers = root / f"usr/src/linux-headers-{KERNEL}"
    remarks = publish.publish(machinetree.job(root, timeout=timeout), artefact, headers, prove, [], required=required)
    assert remarks is not None
    return remarks


def refused(root: Path, *, data: bytes = GOOD, proofs: tuple[Proof, ...] | None = None) -> BuildError:
    with pytest.raises(BuildError) as e:
        publish_it(root, data=data, proofs=proofs)
    assert os.listdir(root / "var/lib/knetstatd/stage") == [KERNEL], "its working directory is gone"
    return e.value


def test_it_is_installed_and_dkms_knows_it(root: Path) -> None:
    publish_it(root)
    assert (root / INSTALLED).read_bytes() == (root / BUILD / "module/demo.ko").read_bytes() == GOOD
    [proof] = machinetree.prove(root)
    assert proof.loads
    assert proof.is_current
    packed, loaded, installed = machinetree.ran(root, "dkms")
    assert packed.startswith(f"mktarball --binaries-only -m demo -v 1.0 -k {KERNEL} --dkmstree ")
    assert loaded.startswith("ldtarball --force --archive=")
    assert installed == f"install -m demo -v 1.0 -k {KERNEL}"
    assert os.listdir(root / "var/lib/knetstatd/stage") == [KERNEL]
    assert (root / "var/lib/dkms/demo/1.0/source").is_symlink()


def test_what_is_edited_after_it_was_compiled_is_not_published(root: Path) -> None:
    artefact, job = stage(root, GOOD), machinetree.job(root)
    machinetree.write(root / "usr/src/demo-1.0/demo.c", "// edited\n")
    headers = root / f"usr/src/linux-headers-{KERNEL}"
    assert publish.publish(job, artefact, headers, lambda: machinetree.prove(root), []) is None
    assert machinetree.ran(root, "dkms") == []
    assert not os.path.lexists(root / INSTALLED)


def test_what_is_edited_while_it_is_published_is_built_again(root: Path) -> None:
    """DKMS's copy is younger than the edited source, and not of it."""
    edit = f'echo "// edited" >"$root/usr/src/demo-1.0/demo.c"; sleep 0.02; touch "$root/{BUILD}/module/demo.ko"'
    machinetree.tell(root, "dkms install", edit)
    publish_it(root)
    assert not machinetree.prove(root)[0].is_current
    (root / "told/dkms-install").unlink()
    publish_it(root)
    assert machinetree.prove(root)[0].is_current


def test_what_is_installed_already_is_replaced_by_force(root: Path) -> None:
    publish_it(root)
    other = kerneltree.module("demo", undefined=["printk"], crcs={n: kerneltree.CRCS[n] for n in ("module_layout", "printk")})
    publish_it(root, data=other)
    assert machinetree.ran(root, "dkms")[-1] == f"install --force -m demo -v 1.0 -k {KERNEL}"
    assert (root / INSTALLED).read_bytes() == other


def test_a_version_that_is_registered_meanwhile_is_still_to_come(root: Path) -> None:
    """Nobody has chosen the one that is published after it."""
    newer = 'mkdir -p "$root/var/lib/dkms/demo/2.0"; ln -sfn /usr/src/demo-2.0 "$root/var/lib/dkms/demo/2.0/source"; sleep 0.02'
    machinetree.tell(root, "dkms install", newer)
    with pytest.raises(BuildError, match="another version"):
        publish_it(root)
    known = dkms_tree.package(root, "demo")
    assert known is not None
    assert [one.version for one in known.versions] == ["1.0", "2.0"]
    assert known.wanted(KERNEL).version == "2.0"
    assert known.installed(KERNEL) is not None


def test_what_pre_install_refuses_is_not_installed(root: Path) -> None:
    """By force, dkms would."""
    machinetree.tell(root, "dkms install", "case $* in *--force*) ;; *) echo no firmware; exit 101 ;; esac")
    error = refused(root)
    assert error.kind == Kind.CONF
    assert error.what == "PRE_INSTALL of dkms.conf failed, and dkms does not install the module then"
    assert error.fix.endswith(f"dkms install --force -m demo -v 1.0 -k {KERNEL}")
    assert error.evidence == ("no firmware",)
    assert not (root / INSTALLED).exists()


def test_what_is_obsolete_is_left_out(root: Path) -> None:
    """dkms 3.0 marks it as installed, without a file; by force it would install it."""
    conf = root / "usr/src/demo-1.0/dkms.conf"
    conf.write_text(conf.read_text() + 'OBSOLETE_BY="5.4"\n')
    marks = f'ln -sfn "1.0/{KERNEL}/{ARCH}" "$root/var/lib/dkms/demo/kernel-{KERNEL}-{ARCH}"; exit'
    machinetree.tell(root, "dkms install", f"case $* in *--force*) ;; *) {marks} ;; esac")
    for _ in range(2):  # also if it is marked already
        error = refused(root)
        assert (error.kind, "OBSOLETE_BY=5.4" in error.what) == (Kind.EXCLUDED, True)
        assert not (root / INSTALLED).exists()
    conf.write_text(conf.read_text().replace("5.4", "99"))
    publish_it(root)


def test_what_dkms_leaves_to_the_kernel_is_installed_by_force(root: Path) -> None:
    """Its own module of the name is newer, says dkms 3.2, and ends; 3.0 pretends that it has installed it."""
    for ends in (
        "exit 6",
        'ln -sfn "1.0/$kernel/ARCH" "$root/var/lib/dkms/demo/kernel-$kernel-ARCH"; exit'.replace("ARCH", ARCH),
    ):
        machinetree.tell(root, "dkms install", f"case $* in *--force*) ;; *) kernel={KERNEL}; {ends} ;; esac")
        publish_it(root)
        assert (root / INSTALLED).read_bytes() == GOOD
        (root / INSTALLED).unlink()
        (root / f"var/lib/dkms/demo/kernel-{KERNEL}-{ARCH}").unlink()


def test_all_of_it_is_on_the_disk(root: Path, synced: list[str]) -> None:
    publish_it(root)
    tree = root / f"usr/lib/modules/{KERNEL}"
    places = [tree, tree / "updates", tree / "updates/dkms", tree / "updates/dkms/demo.ko"]
    places += [tree / name for name in os.listdir(tree) if name.startswith("modules.")]
    places += [root / BUILD / part for part in ("", "module", "module/demo.ko", "log", "log/make.log")]
    places += [root / "var/lib/dkms/demo", root / "var/lib/dkms/demo/1.0", root / f"var/lib/dkms/demo/1.0/{KERNEL}"]
    assert {os.fspath(place) for place in places} <= set(synced)


def test_a_key_is_made_where_there_is_none(tmp_path: Path) -> None:
    machinetree.make(tmp_path, signed=True)
    publish_it(tmp_path)
    assert (tmp_path / "var/lib/dkms/mok.key").exists()
    assert (tmp_path / INSTALLED).read_bytes() == GOOD + (tmp_path / "signature").read_bytes()


def test_a_key_that_does_not_sign(tmp_path: Path) -> None:
    """dkms installs what it could not sign. If this kernel takes no such module, the one that is there stays."""
    machinetree.make(tmp_path, signed=True)
    machinetree.tell(tmp_path, "sign-file sha512", 'echo x >>"$4"; echo no; exit 1')
    pack.pack(machinetree.job(tmp_path), stage(tmp_path, GOOD), tmp_path / f"usr/src/linux-headers-{KERNEL}", [])
    with pytest.raises(BuildError, match="sign-file failed: no; the kernel insists") as e:
        publish_it(tmp_path, required="the kernel insists")
    assert e.value.kind == Kind.SIGNING
    assert not (tmp_path / INSTALLED).exists()
    [remark] = publish_it(tmp_path)
    assert remark.reason == "it is not signed: sign-file failed: no"
    assert "mok.key" in remark.fix
    assert (tmp_path / INSTALLED).read_bytes() == GOOD
    places, directory = machinetree.job(tmp_path).places, tmp_path / BUILD / "module"
    assert digests.remarks(places, KERNEL, "demo", directory) == (remark,)
    seen = machinetree.look(made := machinetree.machine(tmp_path))
    verdict = judge.verdict(made, seen, made.plan(seen, 0.0))
    assert (verdict.ready, verdict.reason, verdict.fix) == (True, remark.reason, remark.fix)
    (tmp_path / "told/sign-file-sha512").unlink()
    assert publish_it(tmp_path) == ()
    assert digests.remarks(places, KERNEL, "demo", directory) == ()


def test_what_was_packed_before_is_not_packed_again(root: Path) -> None:
    pack.pack(machinetree.job(root), stage(root, GOOD), root / f"usr/src/linux-headers-{KERNEL}", [])
    publish_it(root)
    assert [line.partition(" ")[0] for line in machinetree.ran(root, "dkms")] == ["mktarball", "ldtarball", "install"]
    assert machinetree.ran(root, "dkms")[1].endswith(f"/stage/{KERNEL}/demo/{pack.ARCHIVE}")


def test_all_that_a_build_leaves_in_dkmss_tree_is_published(root: Path) -> None:
    """zfs's POST_BUILD leaves Module.symvers there, for lustre; dkms 3.2 notes in .dep_zfs what it was built with."""
    place = root / f"var/lib/knetstatd/stage/{KERNEL}/demo/tree/demo/1.0/{KERNEL}/{ARCH}"
    left = {"Module.symvers": "symvers", "log/.config": "config", ".dep_zfs": "2.3\n", "module/Module.symvers": "symvers"}
    for name, text in left.items():
        machinetree.write(place / name, text)
    (place / "link").symlink_to("/etc/shadow")
    machinetree.tell(root, "dkms ldtarball", 'rm -f "$root"/var/lib/dkms/demo/1.0/*/*/.dep_zfs')
    script = root / "usr/sbin/dkms"
    script.write_text(script.read_text().replace("--exclude=source", "--exclude=source --exclude='.dep_*'"))
    publish_it(root)
    assert {name: (root / BUILD / name).read_text() for name in left} == left
    assert not os.path.lexists(root / BUILD / "link")


def test_a_script_that_was_not_allowed_to_write_is_told_of(root: Path) -> None:
    stage(root, GOOD)
    output = root / f"var/lib/knetstatd/stage/{KERNEL}/demo/output"
    machinetree.write(output, "\nRunning the post_build script:\ncp: cannot create '/srv/x/y': Permission denied\n")
    says = "printf '\\nRunning the post_install script:\\nmkdir: cannot create /opt/acme: Read-only file system\\ndepmod...\\n'"
    machinetree.tell(root, "dkms install", says)
    build, install = publish_it(root)
    assert build.reason == "POST_BUILD of dkms.conf was not allowed to write: cp: cannot create '/srv/x/y': Permission denied"
    assert build.fix == "Allow it: systemctl edit knetstatd-compile@.service, with TemporaryFileSystem=/srv/x:mode=1777"
    assert install.reason.startswith("POST_INSTALL of dkms.conf was not allowed to write: mkdir: cannot create /opt/acme")
    assert install.fix.startswith(f"Run: dkms install --force -m demo -v 1.0 -k {KERNEL}; to allow it later: ")
    assert install.fix.endswith("knetstatd-build@.service, with ReadWritePaths=/opt")
    assert (root / INSTALLED).read_bytes() == GOOD


def test_a_script_that_names_dkmss_tree_is_told(root: Path) -> None:
    """What it writes there goes nowhere: a build has a tree of its own."""
    source = root / "usr/src/demo-1.0"
    machinetree.write(source / "dkms.conf", (source / "dkms.conf").read_text() + 'POST_BUILD="post.sh"\n')
    machinetree.write(source / "post.sh", "#!/bin/sh\ncp Module.symvers /var/lib/dkms/demo/\n")
    [remark] = publish_it(root)
    assert remark.reason.startswith(
        "POST_BUILD of dkms.conf writes to /var/lib/dkms by that name (post.sh, line 2): that is lost"
    )
    assert "${dkms_tree}" in remark.fix


class TestRefused:
    def test_nothing_is_installed(self, root: Path) -> None:
        machinetree.tell(root, "dkms install", "echo installed; exit 0")
        error = refused(root)
        assert (error.kind, "demo.ko" in error.what) == (Kind.PUBLISH, True)
        assert "depmod did not" not in error.what
        assert error.evidence == ("installed",)

    def test_what_is_removed_meanwhile_stays_removed(self, root: Path) -> None:
        """`dkms remove`, while dkms installs: to install by force would undo it."""
        machinetree.tell(root, "dkms install", f'echo "$@" >>"$root/asked"; rm -rf "$root/{BUILD}"; exit 0')
        assert refused(root).kind == Kind.REMOVED
        assert (root / "asked").read_text().count("\n") == 1

    LEFT = f'place="$root/{INSTALLED}"; mkdir -p "${{place%/*}}"; cp "$root/{BUILD}/module/demo.ko" "$place"'
    MARK = f'ln -sfn "1.0/{KERNEL}/{ARCH}" "$root/var/lib/dkms/demo/kernel-{KERNEL}-{ARCH}"'

    def test_what_dkms_leaves_of_it_is_taken_out(self, root: Path) -> None:
        """`dkms remove` sees no mark yet, and so deletes no module; `dkms install` goes on."""
        gone = f'rm -rf "$root/var/lib/dkms/demo"; mkdir "$root/var/lib/dkms/demo"; {self.MARK}; exit 0'
        machinetree.tell(root, "dkms install", f"{self.LEFT}; {gone}")
        error = refused(root)
        assert (error.kind, error.what) == (Kind.REMOVED, "it was removed from DKMS while it was published")
        assert not os.path.lexists(root / INSTALLED)
        assert not os.path.lexists(root / "var/lib/dkms/demo")
        assert machinetree.ran(root, "depmod") == [KERNEL]

    def test_somebody_elses_module_is_no_rest_of_it(self, root: Path) -> None:
        """And what cannot be deleted is told."""
        other = kerneltree.module(
            "demo", undefined=["printk"], crcs={n: kerneltree.CRCS[n] for n in ("module_layout", "printk")}
        )
        machinetree.write(root / "other.ko", other)
        place = root / f"lib/modules/{KERNEL}/extra/demo.ko"
        gone = f'mkdir "{place.parent}"; cp "$root/other.ko" "{place}"; rm -rf "$root/var/lib/dkms/demo"; exit 0'
        machinetree.tell(root, "dkms install", f"{self.LEFT}; {gone}")
        assert refused(root).kind == Kind.REMOVED
        assert place.read_bytes() == other
        assert not os.path.lexists(root / INSTALLED)

    def test_what_lay_there_before_is_no_rest_of_it(self, root: Path) -> None:
        place = machinetree.write(root / f"lib/modules/{KERNEL}/extra/demo.ko", GOOD)
        machinetree.tell(root, "dkms install", f'{self.LEFT}; rm -rf "$root/var/lib/dkms/demo"; exit 0')
        assert refused(root).kind == Kind.REMOVED
        assert place.read_bytes() == GOOD
        assert not os.path.lexists(root / INSTALLED)

    @pytest.mark.parametrize(("says", "kind"), [("No space left on device", Kind.DISK), ("Malformed dkms.conf", Kind.PUBLISH)])
    def test_a_build_that_dkms_does_not_take_was_not_removed(self, root: Path, says: str, kind: Kind) -> None:
        """Else what was installed would be deleted, and the publication begun again at once, for ever."""
        place = machinetree.write(root / INSTALLED, GOOD)
        machinetree.tell(root, "dkms ldtarball", f"echo '{says}' >&2; exit 7")
        error = refused(root)
        assert (error.kind, error.evidence) == (kind, (says,))
        assert f"/{BUILD}" in error.what
        assert place.read_bytes() == GOOD
        assert not any(run.startswith("install") for run in machinetree.ran(root, "dkms"))

    @pytest.mark.parametrize(("name", "value"), [("PACKAGE_VERSION", "2.0"), ("PACKAGE_NAME", "other")])
    def test_dkms_conf_has_another_name_than_dkms(self, root: Path, name: str, value: str) -> None:
        """`dkms add -m demo -v 1.0` takes it; `dkms ldtarball` would register another package."""
        conf = root / "usr/src/demo-1.0/dkms.conf"
        conf.write_text(conf.read_text() + f"{name}={value}\n")
        error = refused(root)
        assert (error.kind, error.where) == (Kind.CONF, str(conf))
        assert f"{name}='{value}'" in error.what
        assert machinetree.ran(root, "dkms") == []
        conf.write_text(conf.read_text() + "PACKAGE_NAME=demo PACKAGE_VERSION=$(echo 1.0)\n")
        publish_it(root)

    def test_a_removal_that_goes_on_is_waited_for(self, root: Path) -> None:
        """dkms deletes the build last, after what is installed was proven."""
        pid = 1 << 23  # more than there can be
        for name, text in {"comm": "dkms", "cmdline": "dkms\0remove\0demo/1.0\0", "stat": f"{pid} (dkms) S 1 0"}.items():
            machinetree.write(root / f"proc/{pid}/{name}", text)
        proven: list[Proof] = []

        def prove() -> list[Proof]:
            proven.extend(machinetree.prove(root))
            return proven

        def tick() -> None:
            if proven and (root / f"proc/{pid}").exists():
                shutil.rmtree(root / "var/lib/dkms/demo")
                shutil.rmtree(root / f"proc/{pid}")

        artefact, headers = stage(root, GOOD), root / f"usr/src/linux-headers-{KERNEL}"
        with pytest.raises(BuildError, match="removed from DKMS while") as e:
            publish.publish(machinetree.job(root), artefact, headers, prove, [], tick)
        assert e.value.kind == Kind.REMOVED
        assert not os.path.lexists(root / INSTALLED)

    def test_nothing_is_to_be_installed(self, root: Path) -> None:
        """dkms.conf, replaced meanwhile, names no module."""
        error = refused(root, proofs=())
        assert (error.kind, "no module is installed" in error.what) == (Kind.PUBLISH, True)

    @pytest.mark.parametrize(
        ("says", "kind"),
        [
            ("cp: error writing 'demo.ko': No space left on device", Kind.DISK),
            ("cp: cannot create regular file: Read-only file system", Kind.READ_ONLY),
            ("cp: cannot stat 'demo.ko'", Kind.PUBLISH),
        ],
    )
    def test_by_what(self, root: Path, says: str, kind: Kind) -> None:
        machinetree.tell(root, "dkms install", f'echo "{says}"; exit 0')
        assert refused(root).kind == kind

    def test_the_old_module_is_still_there(self, root: Path) -> None:
        """It loads, and it is of another version: the publication has not come about."""
        publish_it(root)
        machinetree.register(root, "2.0")
        error = refused(root)
        assert (error.kind, "another version" in error.what) == (Kind.PUBLISH, True)

    def test_the_source_changed_after_the_build(self, root: Path) -> None:
        does = f'sleep 0.05; echo >>"$root/usr/src/demo-1.0/demo.c"; touch -d 2001-01-01 "$root/{BUILD}/module"/*'
        machinetree.tell(root, "dkms install", does)
        error = refused(root)
        assert (error.kind, "source was changed" in error.what) == (Kind.PUBLISH, True)

    def test_something_has_changed_what_dkms_installed(self, root: Path) -> None:
        """It loads; but at the next look it is not DKMS's, and would be built again, and so on."""
        machinetree.write(root / "other.ko", kerneltree.module("demo", build_id="bbbb"))
        script = root / "usr/sbin/dkms"
        script.write_text(script.read_text().replace('cp "$module" "$file"', 'cp "$root/other.ko" "$file"'))
        error = refused(root)
        assert (error.kind, "POST_INSTALL in dkms.conf" in error.what) == (Kind.CONF, True)
        assert "not the one that DKMS built" in error.what
        assert error.where.endswith("updates/dkms/demo.ko")

    def test_what_is_installed_does_not_load(self, root: Path) -> None:
        error = refused(root, data=kerneltree.module("demo", undefined=["printk", "gone"]))
        assert (error.kind, "Unknown symbol gone" in error.what) == (Kind.PUBLISH, True)

    def test_dkms_does_not_end(self, root: Path) -> None:
        machinetree.tell(root, "dkms ldtarball", "exec sleep 30")
        with pytest.raises(BuildError, match="dkms ldtarball did not end within 0.5 s") as e:
            publish_it(root, timeout=0.5)
        assert e.value.kind == Kind.TIMEOUT

    @pytest.mark.parametrize("place", [f"usr/lib/modules/{KERNEL}", "var/lib/dkms"])
    def test_a_tree_that_cannot_be_written(self, root: Path, place: str) -> None:
        """dkms 3.0 hides that, and says `installed`. Nobody makes a file in /proc/sys/kernel, not even root."""
        (root / place).rename(root / "moved")
        (root / place).symlink_to("/proc/sys/kernel")
        error = refused(root)
        assert (error.kind, error.where) == (Kind.READ_ONLY, f"/{place.removeprefix('usr/')}")
        assert machinetree.ran(root, "dkms") == []

    def test_a_tree_that_was_moved_to_where_our_unit_may_not_write(self, root: Path) -> None:
        (root / "srv").mkdir()
        (root / "srv/dkms").symlink_to("/proc/sys/kernel")
        machinetree.write(root / "etc/dkms/framework.conf", 'dkms_tree="/srv/dkms"\n')
        error = refused(root)
        assert (error.kind, error.where) == (Kind.READ_ONLY, "/srv/dkms")
        assert "where framework.conf has moved dkms_tree" in error.what
        assert error.fix.endswith("systemctl edit knetstatd-build@.service, with ReadWritePaths=/srv/dkms")


def test_what_the_machine_forbids_is_not_the_publications_failure(root: Path) -> None:
    machinetree.write(root / "etc/modprobe.d/x.conf", "install demo /bin/false\n")
    publish_it(root)
    assert not machinetree.prove(root)[0].loads


def test_a_publication_is_younger_than_its_source(root: Path) -> None:
    """Also if the clock was set back since."""
    os.utime(root / "usr/src/demo-1.0/demo.c", (4e9, 4e9))
    publish_it(root)
    assert machinetree.prove(root)[0].is_current


@pytest.mark.parametrize("name", ["demo.ko", "collisions/updates/dkms/demo.ko"])
def test_garbage_never_becomes_dkmss_original(root: Path, name: str) -> None:
    """dkms 3.2 moves there what lies in its module's place and is not its own: `dkms remove` would put it back."""
    place = f"$root/var/lib/dkms/demo/original_module/{KERNEL}/{ARCH}"
    moves = f'f={place}/{name}; mkdir -p "${{f%/*}}"; echo garbage >"$f"; echo /lib/modules/{KERNEL}/demo.ko >"$f.origin"'
    machinetree.tell(root, "dkms install", moves)
    publish_it(root)
    assert machinetree.prove(root)[0].is_current
    assert not (root / "var/lib/dkms/demo/original_module").exists()


@pytest.mark.parametrize("stays", [True, False])
def test_what_somebody_installed_stays_an_original(root: Path, *, stays: bool) -> None:
    """A module of another release may load, by its checksums: nobody is asked here, so only DKMS's own is deleted."""
    machinetree.write(root / "theirs.ko", kerneltree.module("demo", vermagic="6.1.0-9-amd64 SMP "))
    place, where = f"var/lib/dkms/demo/original_module/{KERNEL}/{ARCH}", "extra" if stays else "updates/dkms"
    moves = f'mkdir -p "$root/{place}"; cp "$root/theirs.ko" "$root/{place}/demo.ko"; '
    moves += f'echo /lib/modules/{KERNEL}/{where}/demo.ko >"$root/{place}/demo.ko.origin"'
    machinetree.tell(root, "dkms install", moves)
    publish_it(root)
    assert (root / place / "demo.ko").exists() is stays
