# SPDX-License-Identifier: GPL-2.0-or-later
"""A module in its place: for each check one that fails, beside one that passes."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import os
import stat
import time
from typing import TYPE_CHECKING

import elf
import kerneltree
import pytest
from kerneltree import KERNEL

from knetstatd.core.model import ELSEWHERE, REMARKS, Result
from knetstatd.machine import host, modprobe_conf, paths, signature_policy
from knetstatd.machine.host import Origin, Rival
from knetstatd.rehearsal.vm import CpioFile, cpio
from knetstatd.system import files
from knetstatd.verify import install_checks, module_readings, verify

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from knetstatd.core.model import Check

PASS, FAIL, WARN, UNKNOWN, NA = Result.PASS, Result.FAIL, Result.WARN, Result.UNKNOWN, Result.NOT_APPLICABLE
OURS, OTHERS = (kerneltree.module("demo", build_id=build) for build in ("aaaa", "bbbb"))
MINE = "updates/dkms/demo.ko"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    kerneltree.make(tmp_path)
    return tmp_path


@pytest.fixture
def tree(root: Path) -> Path:
    return root / "usr/lib/modules" / KERNEL


def checks(root: Path, origin: Origin | None = None, initrds: Path | None = None) -> dict[str, Check]:
    [proof] = verify.prove(root, KERNEL, ["demo"], host=host.facts(root, initrds), origins={"demo": origin})
    found = {check.name: check for check in proof.checks}
    decides = [c.result for c in proof.checks if c.result is FAIL or (c.result is UNKNOWN and c.name not in REMARKS)]
    assert proof.loads == (not decides), proof
    return found


def write(root: Path, name: str, text: str | bytes) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_nothing_in_the_way(root: Path, tree: Path) -> None:
    kerneltree.add(tree, MINE, OURS)
    found = checks(root)
    assert {name: found[name].result for name in ("winner", "origin", "modprobe", "boot", "initrd")} == {
        "winner": PASS, "origin": NA, "modprobe": PASS, "boot": NA, "initrd": NA,
    }  # fmt: skip


def whole(check: Check, result: Result, expected: str, found: str, *reason: str, fix: str = "") -> None:
    """The whole answer; its reason has these words, or there is none."""
    assert check[1:] == (result, expected, found, check.reason, fix)
    assert bool(check.reason) == bool(reason)
    for words in reason:
        assert words in check.reason


class TestWholeAnswers:
    """What was expected, what was found, and the cure. The other tests here tell when each is given."""

    BUILD, DEPMOD = f"Run: knetstatctl build {KERNEL}", f"Run: depmod {KERNEL}"

    def test_alone(self, root: Path, tree: Path) -> None:
        path = kerneltree.add(tree, MINE, OURS)
        found = checks(root)
        whole(found["depmod"], PASS, "", f"{path}")
        whole(found["winner"], PASS, "", f"{path}")
        whole(found["origin"], NA, "", "", "not DKMS that installed it")
        whole(found["modprobe"], PASS, "", "nothing against it")
        whole(found["boot"], NA, "", "", "modules-load.d(5)")
        whole(found["initrd"], NA, "", "", "has no initrd")

    def test_winner(self, root: Path, tree: Path) -> None:
        path, copy = kerneltree.add(tree, MINE, OURS), write(root, "copy/demo.ko", OURS)
        write(tree, "modules.builtin", b"kernel/net/demo.ko\n")
        cure = "Do without the module, or without that kernel"
        whole(checks(root)["winner"], FAIL, f"{path}", "built in", "modprobe loads nothing", fix=cure)
        (tree / "modules.builtin").unlink()
        loser = write(tree, "extra/demo.ko", OTHERS)
        remove = f"Remove the one that is not wanted (dpkg -S or rpm -qf says whose it is), then run: depmod {KERNEL}"
        whole(checks(root)["winner"], WARN, "one file", f"{path}", f"not taken: {loser}", fix=remove)
        path.write_bytes(OTHERS)
        loser.write_bytes(OURS)
        swapped = checks(root, Origin("1", "1", copy))["winner"]
        whole(swapped, FAIL, f"{loser}", f"{path}", "in the place of the one that DKMS installed", fix=remove)

    def test_another_package(self, root: Path, tree: Path) -> None:
        path, copy = kerneltree.add(tree, MINE, OTHERS), write(root, "copy/demo.ko", OURS)
        rival = Rival("other/3", write(root, "other/demo.ko", OTHERS), True)
        found = checks(root, Origin("1", "1", copy, rivals=(rival,)))
        cure = "Remove the package that is not wanted, or run: dkms remove other/3 --all; delete its source in /usr/src"
        whole(found["winner"], FAIL, f"{copy}", f"{path}", "other/3 makes a module of this name too", fix=cure)
        whole(found["origin"], WARN, f"{copy}", f"{path}", "The installed file is of other/3")
        # One that is not taken either is no rival; nor is any where the file is DKMS's own.
        strange = rival._replace(copy=write(root, "strange/demo.ko", b"x"))
        found = checks(root, Origin("1", "1", copy, rivals=(strange,)))
        whole(found["origin"], WARN, f"{copy}", f"{path}", "not the one that DKMS built", fix=self.BUILD)
        twin = rival._replace(copy=copy)
        path.write_bytes(OURS)
        assert checks(root, Origin("1", "1", copy, rivals=(twin,)))["winner"].result is PASS
        gone = checks(root, Origin("1", "1", None, rivals=(twin,)))["winner"]
        assert (gone.result, gone.expected) == (FAIL, "")

    def test_the_kernels_own_is_preferred(self, root: Path, tree: Path) -> None:
        loser = write(tree, MINE, OTHERS)
        path = kerneltree.add(tree, "kernel/net/demo.ko", OURS)
        cure = "Put `updates` before `built-in` there"
        whole(checks(root)["winner"], FAIL, f"{loser}", f"{path}", "/etc/depmod.d", fix=cure)

    def test_origin(self, root: Path, tree: Path) -> None:
        path, copy = kerneltree.add(tree, MINE, OURS), write(root, "copy/demo.ko", OURS)
        known = Origin("2", "2", copy, 1.0)
        whole(checks(root, known)["origin"], PASS, "2", "the file that DKMS built")
        stale = checks(root, known._replace(installed="1"))["origin"]
        whole(stale, WARN, "2", "1", "of another version", fix=self.BUILD)
        gone = checks(root, known._replace(copy=None))["origin"]
        whole(gone, UNKNOWN, "2", "", "DKMS's own copy of it is gone", fix=self.BUILD)
        changed = checks(root, known._replace(changed=4e9))["origin"]
        whole(changed, WARN, "2, as the source is now", "compiled before", "changed after it was compiled", fix=self.BUILD)
        os.utime(copy, (1.7e9, 1.7e9))
        assert checks(root, known._replace(changed=1.7e9))["origin"].result is PASS, "as old as its source"
        assert checks(root, known._replace(changed=1.7e9 + 1))["origin"].result is WARN
        # Of one size and one time, and without a build ID: the contents tell.
        for file, text in ((path, b"a"), (copy, b"b")):
            file.write_bytes(kerneltree.module("demo", more=[elf.Sec("text", text)]))
            os.utime(file, (5, 5))
        whole(checks(root, known)["origin"], WARN, f"{copy}", f"{path}", "not the one that DKMS built", fix=self.BUILD)

    def test_a_file_that_depmod_did_not_get_from_the_kernel_is_left(self, root: Path, tree: Path) -> None:
        """Nothing says that it is the kernel's own, so nothing says that DKMS replaces it."""
        path = kerneltree.add(tree, "kernel/net/demo.ko", OURS)
        [proof] = verify.prove(root, KERNEL, ["demo"], origins={"demo": Origin("1.0")})
        assert (proof.path, proof.loads) == (f"{path}", True)

    def test_modprobe(self, root: Path, tree: Path) -> None:
        kerneltree.add(tree, MINE, OURS)
        line = "/etc/modprobe.d/x.conf line 1"

        def told(text: str) -> Check:
            write(root, "etc/modprobe.d/x.conf", f"{text}\n")
            return checks(root)["modprobe"]

        none, remove = "nothing against it", "Remove that line"
        denied = told("install demo /bin/false")
        whole(denied, FAIL, none, f"{line}: install /bin/false", "loads nothing", fix=remove)
        maybe = told("install demo modprobe -i demo")
        whole(maybe, WARN, none, f"{line}: install modprobe -i demo", "not known here")
        strange = told("install demo logger modprobe")
        whole(strange, UNKNOWN, none, f"{line}: install logger modprobe", "neither insmod nor", fix=remove)
        instead = told("alias demo other")
        whole(instead, FAIL, none, f"{line}: alias demo other", "modprobe loads other in its place", fix=remove)
        cure = "Remove that line if it is to be loaded at boot"
        whole(told("blacklist demo"), WARN, none, f"{line}: blacklist", "Neither udev nor the daemon", fix=cure)
        write(root, "etc/modules-load.d/y.conf", "demo\n")
        wish, both = "/etc/modules-load.d/y.conf line 1", "Remove one of the two lines"
        whole(told("blacklist demo"), FAIL, none, f"{line}: blacklist", f"{wish} wants it loaded at boot", fix=both)
        whole(checks(root)["boot"], PASS, "", f"loaded at boot: {wish}")

    def test_the_kernels_command_line(self, root: Path, tree: Path) -> None:
        kerneltree.add(tree, MINE, OURS)

        def told(words: str) -> Check:
            write(root, "boot/grub/grub.cfg", f"menuentry x {{\nlinux /boot/vmlinuz-{KERNEL} ro {words}\n}}\n")
            return checks(root)["modprobe"]

        none, off = "nothing against it", "Take it off the command line (/etc/default/grub)"
        found = "module_blacklist=demo on its command line"
        whole(told("module_blacklist=demo"), FAIL, none, found, "'Module demo is blacklisted'", fix=off)
        cure = "Remove that line if it is to be loaded at boot"
        found = "modprobe.blacklist= on its command line"
        whole(told("modprobe.blacklist=demo"), WARN, none, found, "Neither udev nor the daemon", fix=cure)
        # The kernel's own word comes first.
        write(root, "etc/modprobe.d/x.conf", "alias demo other\ninstall demo /bin/false\n")
        assert told("module_blacklist=demo").fix == off
        assert "alias" in told("").found, "then which module it is, and then what is done for that"

    def test_what_loads_it(self, root: Path, tree: Path) -> None:
        kerneltree.add(tree, MINE, kerneltree.module("demo", info={"alias": ["pci:\x1b" + "0" * 90, "pci:other"]}))
        whole(checks(root)["boot"], PASS, "", f"loaded when it is asked for: pci:?{'0' * 72}...")

    def test_initrd(self, root: Path, tree: Path) -> None:
        path = kerneltree.add(tree, MINE, kerneltree.module("demo", build_id="ab" * 20))
        image = root / f"boot/initrd.img-{KERNEL}"

        def told(*inside: tuple[str, bytes]) -> Check:
            entries = [CpioFile(f"usr/lib/modules/{KERNEL}/{name}", stat.S_IFREG | 0o644, data) for name, data in inside]
            entries.append(CpioFile("init", stat.S_IFREG | 0o755, b"#!"))
            write(root, f"boot/initrd.img-{KERNEL}", gzip.compress(cpio(entries)))
            return checks(root, initrds=root / "state")["initrd"]

        cure = f"Run: dracut --force /boot/initrd.img-{KERNEL} {KERNEL}"
        whole(told(), PASS, "", "no copy in it")
        assert (root / "state").exists(), "what was read is kept where the caller said"
        whole(told((MINE, path.read_bytes())), PASS, "", "the same copy in it")
        other = kerneltree.module("demo", build_id="cd" * 20)
        digest = f"SHA-256 {hashlib.sha256(other).hexdigest()[:16]}"
        whole(told((MINE, other)), FAIL, f"{path}", digest, f"{image} has another copy", fix=cure)
        whole(told((MINE, b"x")), UNKNOWN, "the installed module", f"{image}", "cannot be compared", fix=cure)
        own = write(tree, "kernel/net/demo.ko", b"x")
        (tree / "modules.order").write_text("kernel/net/demo.ko\n")
        whole(told(("kernel/net/demo.ko", own.read_bytes())), FAIL, f"{path}", "the kernel's own", "own module", fix=cure)
        image.write_bytes(b"nonsense")
        whole(checks(root)["initrd"], FAIL, "a whole initrd", f"{image}", "The initrd is damaged", fix=cure)


class TestWinner:
    def test_before_the_kernels_own(self, root: Path, tree: Path) -> None:
        write(tree, "kernel/net/demo.ko.xz", b"x")
        (tree / "modules.order").write_text("kernel/net/my-demo.ko\nkernel/net/demo.ko\nkernel/a/demo.ko\n")
        path = kerneltree.add(tree, MINE, OURS)
        check = checks(root)["winner"]
        assert (check.result, check.found) == (PASS, f"{path}, before {tree}/kernel/net/demo.ko.xz")

    def test_the_kernels_own_is_preferred(self, root: Path, tree: Path) -> None:
        write(tree, MINE, OTHERS)
        time.sleep(0.02)
        kerneltree.add(tree, "kernel/net/demo.ko", OURS)
        check = checks(root)["winner"]
        assert (check.result, check.expected, check.found) == (FAIL, f"{tree}/{MINE}", f"{tree}/kernel/net/demo.ko")
        # Where depmod simply did not run, a new publication runs it.
        time.sleep(0.02)
        write(tree, MINE, OTHERS)
        (tree / MINE).rename(tree / "updates/demo.ko")
        found = checks(root)
        assert "winner" not in found
        assert (found["depmod"].result, found["depmod"].fix) == (FAIL, f"Run: depmod {KERNEL}")

    def test_two_added_files(self, root: Path, tree: Path) -> None:
        copy = write(root, "copy/demo.ko.gz", gzip.compress(OURS))
        loser = write(tree, "extra/demo.ko", OTHERS)
        kerneltree.add(tree, MINE, OURS)
        origin = Origin("1.0", "1.0", copy)
        check = checks(root, origin)["winner"]
        assert check.result is WARN
        assert os.fspath(loser) in check.reason
        assert checks(root)["winner"].result is WARN
        # Now the other one wins.
        (tree / MINE).write_bytes(OTHERS)
        loser.write_bytes(OURS)
        check = checks(root, origin)["winner"]
        assert (check.result, check.expected, check.found) == (FAIL, os.fspath(loser), f"{tree}/{MINE}")
        # None of the two is ours.
        loser.write_bytes(OTHERS)
        assert checks(root, origin)["winner"].result is WARN

    def test_another_package_makes_it_too(self, root: Path, tree: Path) -> None:
        copy, theirs = write(root, "copy/demo.ko", OURS), write(root, "other/demo.ko", OTHERS)
        kerneltree.add(tree, MINE, OTHERS)
        for guarded, winner, fix in ((True, FAIL, ""), (False, PASS, f"Run: knetstatctl build {KERNEL}")):
            origin = Origin("1.0", "1.0", copy, rivals=(Rival("other/2", write(root, "x/demo.ko", b"x"), True),
                                                        Rival("other/3", theirs, guarded)))  # fmt: skip
            found = checks(root, origin)
            assert found["winner"].result is winner
            assert (found["origin"].result, found["origin"].fix) == (WARN, fix)
            assert "is of other/3" in found["origin"].reason
        guarded_one = origin._replace(rivals=(Rival("other/3", theirs, True),))
        assert "dkms remove other/3 --all" in checks(root, guarded_one)["winner"].fix
        (tree / MINE).write_bytes(OURS)
        assert checks(root, origin)["winner"].result is PASS
        assert checks(root, origin)["origin"].result is PASS

    def test_in_place_of_the_kernels_own(self, root: Path, tree: Path) -> None:
        """DKMS has a package that makes it, and has not installed it, or what it installed is gone."""
        path = kerneltree.add(tree, "kernel/net/demo.ko", OURS)
        (tree / "modules.order").write_text("kernel/net/demo.ko\n")
        assert checks(root)["winner"].result is PASS
        same = write(root, "copy/demo.ko", OURS)
        for origin in (Origin("1.0"), Origin("1.0", "1.0", write(root, "copy/other.ko", OTHERS))):
            [proof] = verify.prove(root, KERNEL, ["demo"], origins={"demo": origin})
            assert (proof.path, proof.is_installed, proof.checks[0].found) == ("", False, f"{path}, the kernel's own")
        for origin in (Origin("1.0", left=True), Origin("1.0", "1.0", same)):
            [proof] = verify.prove(root, KERNEL, ["demo"], origins={"demo": origin})
            assert proof.loads

    def test_built_in(self, root: Path, tree: Path) -> None:
        kerneltree.add(tree, MINE, OURS)
        write(tree, "modules.builtin", b"kernel/net/my-demo.ko\n")
        assert checks(root)["winner"].result is PASS
        write(tree, "modules.builtin", b"kernel/net/demo.ko\n")
        assert (checks(root)["winner"].result, checks(root)["winner"].found) == (FAIL, "built in")

    def test_its_file_has_another_name(self, root: Path, tree: Path) -> None:
        """DEST_MODULE_NAME: modprobe, depmod and the initrd go by the file's name; the kernel's command line by its own."""
        kerneltree.add(tree, "updates/dkms/outer.ko", OURS)

        def result(name: str) -> Result:
            [proof] = verify.prove(root, KERNEL, ["outer"])
            return next(check.result for check in proof.checks if check.name == name)

        assert (result("modprobe"), result("boot")) == (PASS, NA)
        write(root, "etc/modprobe.d/x.conf", "install outer /bin/false\n")
        write(root, "etc/modules-load.d/x.conf", "outer\n")
        assert (result("modprobe"), result("boot")) == (FAIL, PASS)
        (root / "etc/modprobe.d/x.conf").unlink()
        write(root, "boot/grub/grub.cfg", f"menuentry x {{\nlinux /boot/vmlinuz-{KERNEL} ro module_blacklist=demo\n}}\n")
        assert result("modprobe") is FAIL

    def test_a_link_is_no_other_file(self, root: Path, tree: Path) -> None:
        kerneltree.add(tree, "extra/demo.ko", OURS)
        (tree / "weak-updates").mkdir()
        (tree / "weak-updates/demo.ko").symlink_to("../extra/demo.ko")
        (tree / "updates").mkdir()
        (tree / "updates/demo.ko").symlink_to("nowhere")
        assert checks(root)["winner"].result is WARN
        (tree / "updates/demo.ko").unlink()
        assert checks(root)["winner"].result is PASS


class TestOrigin:
    @pytest.fixture
    def copy(self, root: Path, tree: Path) -> Path:
        kerneltree.add(tree, MINE, OURS)
        return write(root, "var/lib/dkms/demo/1.0/demo.ko", OURS)

    def origin(self, root: Path, origin: Origin | None) -> tuple[Result, str]:
        check = checks(root, origin)["origin"]
        return check.result, check.reason

    def test_what_dkms_built(self, root: Path, tree: Path, copy: Path) -> None:
        assert self.origin(root, Origin("1.0", "1.0", copy, 1.0))[0] is PASS
        # Signed or compressed since, it is still the same build.
        copy.write_bytes(gzip.compress(elf.sign(OURS, b"signature")))
        assert self.origin(root, Origin("1.0", "1.0", copy))[0] is PASS

    def test_something_else(self, root: Path, copy: Path) -> None:
        for data in (OTHERS, kerneltree.module("demo"), b"no module", OURS[:-1]):
            copy.write_bytes(data)
            result, reason = self.origin(root, Origin("1.0", "1.0", copy))
            assert (result, "not the one that DKMS built" in reason) == (WARN, True)
        copy.unlink()
        assert self.origin(root, Origin("1.0", "1.0", copy))[0] is WARN
        assert self.origin(root, Origin("1.0", "1.0", None))[0] is UNKNOWN

    def test_two_files_without_a_build_id_are_not_one_build(self, root: Path, tree: Path, copy: Path) -> None:
        for path, text in ((copy, "one"), (tree / MINE, "two")):
            path.write_bytes(kerneltree.module("demo", info={"description": text}))
        assert self.origin(root, Origin("1.0", "1.0", copy))[0] is WARN
        (tree / MINE).write_bytes(copy.read_bytes())
        assert self.origin(root, Origin("1.0", "1.0", copy))[0] is PASS

    def test_another_version(self, root: Path, copy: Path) -> None:
        check = checks(root, Origin("2.0", "1.0", copy))["origin"]
        assert (check.result, check.expected, check.found) == (WARN, "2.0", "1.0")

    def test_the_source_was_changed(self, root: Path, copy: Path) -> None:
        assert "source was changed" in self.origin(root, Origin("1.0", "1.0", copy, time.time() + 1))[1]

    def test_not_dkms(self, root: Path, tree: Path, copy: Path) -> None:
        assert self.origin(root, Origin("1.0"))[0] is NA
        (tree / MINE).unlink()
        kerneltree.add(tree, "weak-updates/demo.ko", OTHERS)
        assert self.origin(root, Origin("1.0", "1.0", copy))[0] is NA

    def test_which_of_the_built_files(self, tmp_path: Path) -> None:
        assert host.copy_of(tmp_path, "my_mod", tmp_path, ("a.ko", "my-mod.ko.xz")) == tmp_path / "my-mod.ko.xz"
        assert host.copy_of(tmp_path, "b", tmp_path, ("a.ko",)) is None


class TestContents:
    """An installed file is the one that was built, byte for byte."""

    @pytest.fixture
    def copy(self, root: Path, tree: Path) -> Path:
        kerneltree.add(tree, MINE, OURS)
        return write(root, "var/lib/dkms/demo/1.0/demo.ko", OURS)

    def contents(self, root: Path, origin: Origin | None) -> Check:
        return checks(root, origin)["contents"]

    def test_the_same(self, root: Path, tree: Path, copy: Path) -> None:
        known = Origin("1.0", "1.0", copy)
        for installed, kept in itertools.product((OURS, elf.sign(OURS, b"p7"), gzip.compress(elf.sign(OURS, b"p7"))), repeat=2):
            kerneltree.add(tree, MINE, installed)
            copy.write_bytes(kept)
            assert self.contents(root, known).result is PASS
            assert self.contents(root, known._replace(digest=module_readings.digest(copy))).result is PASS

    def test_every_byte_counts(self, root: Path, tree: Path, copy: Path) -> None:
        known = Origin("1.0", "1.0", copy)
        digest = module_readings.digest(copy)
        for at in range(0, len(OURS), 97):
            damaged = OURS[:at] + bytes([OURS[at] ^ 1]) + OURS[at + 1 :]
            (tree / MINE).write_bytes(damaged)
            for origin in (known, known._replace(digest=digest)):
                proof = verify.prove(root, KERNEL, ["demo"], origins={"demo": origin})[0]
                assert not proof.loads, at
                if found := [check for check in proof.checks if check.name == "contents"]:  # where it still is a module
                    assert (found[0].result, found[0].fix) == (FAIL, f"Run: knetstatctl build {KERNEL}")

    def test_the_same_build_id_is_not_the_same(self, root: Path, copy: Path) -> None:
        copy.write_bytes(kerneltree.module("demo", build_id="aaaa", info={"version": "2"}))
        assert "not those of DKMS's copy" in self.contents(root, Origin("1.0", "1.0", copy)).reason

    def test_both_copies_are_damaged(self, root: Path, tree: Path, copy: Path) -> None:
        known = Origin("1.0", "1.0", copy, digest=module_readings.digest(copy))
        for path in (tree / MINE, copy):
            path.write_bytes(OURS.replace(b"gcc", b"gcd").replace(b"GCC", b"GCD"))
        assert self.contents(root, known._replace(digest=None)).result is PASS
        found = self.contents(root, known)
        assert (found.result, "DKMS's copy is too" in found.reason) == (FAIL, True)

    def test_the_copy_alone_is_damaged(self, root: Path, copy: Path) -> None:
        known = Origin("1.0", "1.0", copy, digest=module_readings.digest(copy))
        copy.write_bytes(OTHERS)
        found = checks(root, known)
        assert found["contents"].result is PASS
        assert (found["origin"].result, found["origin"].reason) == (WARN, "DKMS's own copy of it is damaged")

    def test_nothing_to_compare_with(self, root: Path, tree: Path, copy: Path) -> None:
        assert self.contents(root, None).result is NA
        assert self.contents(root, Origin("1.0")).result is NA
        assert self.contents(root, Origin("1.0", "1.0", None)).result is UNKNOWN
        copy.unlink()
        assert self.contents(root, Origin("1.0", "1.0", copy)).result is FAIL
        (tree / MINE).unlink()
        kerneltree.add(tree, "weak-updates/demo.ko", OTHERS)
        assert self.contents(root, Origin("1.0", "1.0", copy)).result is NA

    def test_another_packages_file_is_not_damaged(self, root: Path, tree: Path, copy: Path) -> None:
        rival = Rival("other/3", write(root, "var/lib/dkms/other/3/demo.ko", OTHERS), guarded=False)
        kerneltree.add(tree, MINE, OTHERS)
        assert self.contents(root, Origin("1.0", "1.0", copy, rivals=(rival,))).result is NA

    def test_what_was_built_has_the_form_that_its_linker_gave_it(self, root: Path, tree: Path, copy: Path) -> None:
        """Of another machine, whose relocations are not known here."""
        arm = kerneltree.module("demo", build_id="aaaa", machine=183)
        for path in (tree / MINE, copy):
            path.write_bytes(arm)
        assert checks(root, Origin("1.0", "1.0", copy))["form"].result is NA
        assert checks(root, None)["form"].result is UNKNOWN
        loose = verify.verify(root, KERNEL, copy)
        assert [check.name for check in loose.checks if check.result is UNKNOWN] == ["form"]
        whole = loose._replace(checks=tuple(check for check in loose.checks if check.name != "machine"))
        assert (whole.loads, whole.holds(linked=True)) == (False, True)


class TestModprobe:
    @pytest.fixture(autouse=True)
    def installed(self, tree: Path) -> None:
        kerneltree.add(tree, MINE, OURS)

    @pytest.mark.parametrize(
        ("line", "result"),
        [
            ("install demo /bin/false", FAIL),
            ("install demo /bin/true", FAIL),
            ("install demo /sbin/modprobe --ignore-install demo && x", WARN),
            ("alias demo off", FAIL),
            ("alias dem? other", FAIL),
            ("alias [d\x1b]emo other", FAIL),
            ("blacklist demo", WARN),
            ("blacklist other", PASS),
            ("install other /bin/false", PASS),
            ("install d*o /bin/false", FAIL),
            ("install de[l-n]o /bin/false", FAIL),
            ("install de[-_]o /bin/false", PASS),
            ("install demo /bin/false # not by modprobe -i demo", FAIL),
            ("install demo logger 'modprobe demo denied'", UNKNOWN),
            ("install demo /sbin/insmod /opt/demo.ko", WARN),
            ("alias other demo", PASS),
            ("softdep demo pre: other", PASS),
        ],
    )
    def test_lines(self, root: Path, line: str, result: Result) -> None:
        write(root, "etc/modprobe.d/x.conf", f"# ours\n{line}\n")
        check = checks(root)["modprobe"]
        assert check.result is result
        assert ("/etc/modprobe.d/x.conf line 2" in check.found) == (result is not PASS)
        assert check.found.isprintable()

    def test_an_install_line_of_a_module_with_soft_dependencies(self, root: Path, tree: Path) -> None:
        """modprobe inserts such a one itself (tests/unit/machine/test_module_needs.py asks it)."""
        kerneltree.add(tree, MINE, OURS)
        kerneltree.add(tree, "kernel/low.ko", kerneltree.module("low"))
        write(root, "etc/modprobe.d/x.conf", "install demo /bin/false\n")
        assert checks(root)["modprobe"].result is FAIL
        (tree / "modules.softdep").write_text("# from the modules\nsoftdep demo pre: low\n")
        assert checks(root)["modprobe"].result is PASS

    @pytest.mark.parametrize(("words", "result"), [
        ("n=1", PASS), ("n=-2147483648 n=+7 n=0x1F n=017", PASS), ("n=yes", FAIL), ("n", FAIL), ("n=", FAIL), ("n=08", FAIL),
        ("n=2147483648", FAIL), ("n=1 n=x", FAIL), ("n=1.5", FAIL), ("u=0", PASS), ("u=-1", FAIL), ("u=4294967295", PASS),
        ("b", PASS), ("b=on", PASS), ("b=off", PASS), ("b=Yes", PASS), ("b=true", PASS), ("b=2", FAIL), ("b=", FAIL),
        ("b=o", FAIL),
        ("b=enable", FAIL),
        ("s=x", PASS), ("s", FAIL), ("list=x", FAIL),
        ("list=1,2", PASS), ("list=1,,2", FAIL), ("list", FAIL), ("unknown=x", PASS), ("", PASS),
        ("s='n=x' b=0", PASS), ('s="a n=x" b=0', PASS),
    ])  # fmt: skip
    def test_a_parameter(self, root: Path, tree: Path, words: str, result: Result) -> None:
        """The kernel ignores a parameter that it does not know, and refuses the module for a value that is none."""
        types = ["n:int", "u:uint", "b:bool", "s:charp", "list:array of int"]
        (tree / MINE).write_bytes(kerneltree.module("demo", info={"parmtype": types}))
        write(root, "etc/modprobe.d/x.conf", f"options other n=x\noptions demo {words}\n")
        check = checks(root)["modprobe"]
        assert (check.result, "/etc/modprobe.d/x.conf line 2" in check.found) == (result, result is FAIL)
        write(root, "etc/modprobe.d/x.conf", "")
        told = " ".join(word if '"' in words else f"demo.{word}" for word in words.split())
        write(root, "boot/grub/grub.cfg", f"menuentry x {{\nlinux /boot/vmlinuz-{KERNEL} ro {told} demo2.n=x\n}}\n")
        assert checks(root)["modprobe"].result is (PASS if '"' in words else result)

    def test_the_bounds_of_a_type(self) -> None:
        values = {
            "0xff": True,
            "0x100": False,
            "0377": True,
            "0400": False,
            "255": True,
            "256": False,
            "-0": False,
            "-1": False,
        }
        assert {value: install_checks.is_taken("byte", value, KERNEL) for value in values} == values
        kinds = {"bool": True, "bint": True, "invbool": False, "charp": False, "array of bool": False, "of its own": True}
        assert {kind: install_checks.is_taken(kind, None, KERNEL) for kind in kinds} == kinds, "with no value"

    @pytest.mark.parametrize(("kernel", "true", "enable"), [
        ("5.10.0-9", False, False), ("5.19.0", None, False), ("6.1.0-9", True, False), ("6.12.1", True, False),
        ("6.19.0", True, None), ("7.2.1", True, True), ("5.11", None, False), ("6.1", True, False), ("6.13", True, None),
        ("7.2", True, True),
    ])  # fmt: skip
    def test_words_that_newer_kernels_know(self, kernel: str, true: bool | None, enable: bool | None) -> None:
        assert install_checks.is_taken("bool", "true", kernel) is install_checks.is_taken("bint", "F", kernel) is true
        assert install_checks.is_taken("invbool", "Disable", kernel) is enable
        assert install_checks.is_taken("array of bool", "1,enable", kernel) is enable

    def test_a_word_that_may_not_be_known(self, root: Path, tree: Path) -> None:
        (tree / MINE).write_bytes(kerneltree.module("demo", info={"parmtype": ["b:bool"]}))
        rules = modprobe_conf.Rules(options=(modprobe_conf.Line("demo", "b=true", "x.conf line 1"),))
        policy = signature_policy.policy(root, KERNEL, None, signature_policy.firmware(root))
        check = install_checks.configuration("demo", tree / MINE, rules, policy, parameters={"b": "bool"}, kernel="5.19.0")
        assert (check.result, check.found) == (UNKNOWN, "x.conf line 1: b=true")

    def test_a_kernel_that_is_told_to_take_no_module(self, root: Path) -> None:
        write(root, "boot/grub/grub.cfg", f"menuentry x {{\nlinux /boot/vmlinuz-{KERNEL} ro nomodule\n}}\n")
        check = checks(root)["modprobe"]
        assert (check.result, check.found) == (FAIL, "nomodule on its command line")

    @pytest.mark.parametrize(
        ("place", "text", "result"),
        [
            ("etc/sysctl.d/x.conf", "kernel.modules_disabled = 1\n", FAIL),
            ("usr/lib/sysctl.d/x.conf", "-kernel/modules_disabled=1\n", FAIL),
            ("etc/sysctl.d/x.conf", "kernel.modules_disabled=0x1 # for good\n", FAIL),
            ("etc/sysctl.d/x.conf", "kernel.modules_disabled=2\n", PASS),
            ("etc/sysctl.d/x.conf", "# a comment \\\nkernel.modules_disabled=1\n", FAIL),
            ("etc/sysctl.d/x.conf", "kernel.modules_disabled=0\n# kernel.modules_disabled=1\n", PASS),
            ("etc/sysctl.d/x.txt", "kernel.modules_disabled=1\n", PASS),
            ("etc/sysctl.conf", "kernel.modules_disabled=1\n", PASS),
        ],
    )  # fmt: skip
    def test_a_setting_after_which_the_kernel_takes_no_module(self, root: Path, place: str, text: str, result: Result) -> None:
        """systemd-sysctl sets it after what modules-load.d names was loaded."""
        write(root, place, text)
        check = checks(root)["modprobe"]
        assert (check.result, f"/{place} line " in check.found) == (result, result is FAIL)
        write(root, "etc/modules-load.d/x.conf", "demo\n")
        assert checks(root)["modprobe"].result is PASS

    def test_what_may_be_loaded_before_the_kernel_is_closed(self, root: Path, tree: Path) -> None:
        kerneltree.add(tree, "updates/dkms/upper.ko", kerneltree.module("upper"), MINE)
        write(root, "etc/sysctl.d/x.conf", "kernel.modules_disabled=1\n")
        assert checks(root)["modprobe"].result is FAIL
        write(root, "usr/sbin/mkinitramfs", "")
        write(root, "etc/initramfs-tools/modules", "upper\n")
        assert checks(root)["modprobe"].result is UNKNOWN, "the initrd may load what it holds"
        write(root, "etc/modules-load.d/x.conf", "upper\n")
        assert checks(root)["modprobe"].result is PASS, "what is loaded brings it along"
        (root / "usr/sbin/mkinitramfs").rename(root / "usr/sbin/dracut")
        assert checks(root)["modprobe"].result is UNKNOWN, "dracut's initrd sets what sysctl.d says, too"
        assert "or: echo demo >" in checks(root)["modprobe"].fix
        write(root, "etc/modules-load.d/x.conf", "demo\n")
        assert (checks(root)["modprobe"].result, checks(root)["modprobe"].fix) == (UNKNOWN, "Remove that line"), "it is named"

    def test_an_init_function_that_the_kernel_is_told_not_to_call(self, root: Path, tree: Path) -> None:
        symbols = [elf.Sym("demo_init", ".init.text"), elf.Sym("other", ".init.text", 8)]
        (tree / MINE).write_bytes(kerneltree.module("demo", more_symbols=symbols))
        for name, result in (("init_module", FAIL), ("demo_init", PASS), ("other", PASS)):
            text = f"menuentry x {{\nlinux /boot/vmlinuz-{KERNEL} ro initcall_blacklist=a,{name}\n}}\n"
            write(root, "boot/grub/grub.cfg", text)
            check = checks(root)["modprobe"]
            assert (check.result, check.found.startswith("initcall_blacklist=init_module ")) == (result, result is FAIL), name

    def test_nobody_reads_what_is_to_be_loaded_at_boot(self, root: Path) -> None:
        write(root, "etc/modules-load.d/x.conf", "demo\n")
        mask = root / "etc/systemd/system/systemd-modules-load.service"
        mask.parent.mkdir(parents=True)
        mask.write_text("[Unit]\n")
        assert checks(root)["modprobe"].result is PASS
        mask.unlink()
        mask.symlink_to("/dev/null")
        check = checks(root)["modprobe"]
        assert (check.result, check.found) == (FAIL, "/etc/systemd/system/systemd-modules-load.service")
        assert "/etc/modules-load.d/x.conf line 1 wants it loaded at boot" in check.reason
        mask.unlink()
        write(
            root, "boot/grub/grub.cfg", f"menuentry x {{\nlinux /boot/vmlinuz-{KERNEL} systemd.mask=systemd-modules-load\n}}\n"
        )
        assert checks(root)["modprobe"].found == "systemd.mask=systemd-modules-load"
        write(root, "etc/sysctl.d/x.conf", "kernel.modules_disabled=1\n")
        assert "nothing loads this one before" in checks(root)["modprobe"].reason

    def test_a_blacklist_against_a_wish(self, root: Path) -> None:
        write(root, "etc/modprobe.d/x.conf", "blacklist demo\n")
        write(root, "etc/modules-load.d/x.conf", "demo\n")
        found = checks(root)
        assert (found["modprobe"].result, found["boot"].result) == (FAIL, PASS)
        assert "/etc/modules-load.d/x.conf line 1" in found["modprobe"].reason
        assert not verify.prove(root, KERNEL, ["demo"])[0].loads
        assert verify.prove(root, KERNEL, ["demo"])[0].holds(ELSEWHERE)

    @pytest.mark.parametrize(
        ("words", "result"), [("module_blacklist=a,demo", FAIL), ("modprobe.blacklist=demo", WARN), ("", PASS)]
    )
    def test_the_command_line(self, root: Path, words: str, result: Result) -> None:
        write(root, "boot/grub/grub.cfg", f"menuentry x {{\nlinux /boot/vmlinuz-{KERNEL} ro {words}\n}}\n")
        assert checks(root)["modprobe"].result is result

    def test_what_loads_it(self, root: Path, tree: Path) -> None:
        assert checks(root)["boot"].result is NA
        (tree / MINE).write_bytes(kerneltree.module("demo", info={"alias": "pci:v00008086*"}))
        assert (checks(root)["boot"].result, checks(root)["boot"].found[-14:]) == (PASS, "pci:v00008086*")


class TestInitrd:
    def check(self, root: Path, *inside: tuple[str, bytes]) -> Check:
        entries = [CpioFile(f"usr/lib/modules/{KERNEL}/{name}", stat.S_IFREG | 0o644, data) for name, data in inside]
        entries.append(CpioFile("init", stat.S_IFREG | 0o755, b"#!"))
        write(root, f"boot/initrd.img-{KERNEL}", gzip.compress(cpio(entries)))
        return checks(root, initrds=root / "state")["initrd"]

    def test_copies(self, root: Path, tree: Path) -> None:
        kerneltree.add(tree, MINE, OURS)
        assert self.check(root).result is PASS
        assert self.check(root, ("kernel/a.ko", OTHERS), (MINE, OURS)).result is PASS
        check = self.check(root, (MINE, OTHERS))
        assert (check.result, check.expected, "SHA-256" in check.found) == (FAIL, str(tree / MINE), True)
        assert KERNEL in check.fix
        assert self.check(root, (MINE, b"nonsense")).result is UNKNOWN
        plain = kerneltree.module("demo")
        assert self.check(root, (MINE, plain)).result is FAIL
        (tree / MINE).write_bytes(plain)
        assert self.check(root, (MINE, plain)).result is PASS
        assert self.check(root, (MINE, plain + b"more")).result is not PASS

    def test_the_kernels_own(self, root: Path, tree: Path) -> None:
        kerneltree.add(tree, MINE, OURS)
        own = "kernel/net/demo.ko.xz"
        assert self.check(root, (own, b"x")).result is PASS, "that kernel has none such"
        write(tree, own, b"x")
        (tree / "modules.order").write_text("kernel/net/demo.ko\n")
        check = self.check(root, (own, b"x"))
        assert (check.result, check.found, KERNEL in check.fix) == (FAIL, "the kernel's own", True)
        assert self.check(root, (own, b"x"), (MINE, OURS)).result is PASS

    def test_the_installed_one_is_the_kernels_own(self, root: Path, tree: Path) -> None:
        """Then the copy in the initrd is no other one."""
        kerneltree.add(tree, "kernel/net/demo.ko", OURS)
        (tree / "modules.order").write_text("kernel/net/demo.ko\n")
        check = self.check(root, ("kernel/net/demo.ko", OURS))
        assert (check.result, check.found) == (PASS, "no copy in it")

    def test_one_that_cannot_be_read(self, root: Path, tree: Path) -> None:
        kerneltree.add(tree, MINE, OURS)
        write(root, f"boot/initrd.img-{KERNEL}", b"BZh91AY")
        assert checks(root)["initrd"].result is FAIL
        assert not verify.prove(root, KERNEL, ["demo"])[0].loads

    def test_it_is_an_input(self, root: Path, tree: Path) -> None:
        path = kerneltree.add(tree, MINE, OURS)
        before = [files.identity(each) for each in (path, *paths.inputs(root, KERNEL))]
        write(root, f"boot/initrd.img-{KERNEL}", b"")
        assert [files.identity(each) for each in (path, *paths.inputs(root, KERNEL))] != before


def test_a_host_is_another_when_anything_changes(tree: Path, root: Path) -> None:
    changes: list[Callable[[], object]] = [
        lambda: write(root, "etc/modprobe.d/x.conf", "blacklist a\n"),
        lambda: write(root, "etc/modules-load.d/x.conf", "a\n"),
        lambda: write(root, "boot/grub/grub.cfg", "linux /vmlinuz-1 x\n"),
        lambda: write(root, "boot/grub/grubenv", "kernelopts=x\n"),
        lambda: write(root, "boot/loader/entries/a.conf", "linux /x\n"),
        lambda: write(root, "sys/module/module/parameters/sig_enforce", "Y\n"),
        lambda: write(root, "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c", b"\6\0\0\0\1"),
    ]
    before = host.facts(root)
    assert host.facts(root) == before
    for change in changes:
        change()
        assert host.facts(root) != before
        before = host.facts(root)
