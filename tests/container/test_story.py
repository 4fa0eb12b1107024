# SPDX-License-Identifier: GPL-2.0-or-later
"""What apt and dkms do without the product: the failures that it is there for, on real kernels."""

import pytest

from . import rig


def test_the_story(machine: rig.Container) -> None:
    """A second kernel arrives. The hook runs, dkms says `installed`, and the module is for the kernel that runs."""
    first, second, *_ = machine.kernels()
    machine.add_fixture("story")
    machine.add_fixture("good")
    result = machine.install_kernel(second)
    assert "/etc/kernel/postinst.d/dkms:" in result.stdout + result.stderr
    assert machine.package_state(second.image) == machine.package_state(second.headers) == "ii"
    assert machine.path(f"/boot/initrd.img-{second.release}").exists()

    status = machine.output("dkms", "status", "-k", second.release)
    assert f"kt-story/1.0, {second.release}, x86_64: installed" in status
    assert f"kt-good/1.0, {second.release}, x86_64: installed" in status
    assert machine.vermagic(second, "kt_good").split()[0] == second.release
    assert machine.vermagic(second, "kt_story").split()[0] == first.release


def test_the_story_across_a_series_has_other_checksums(bookworm: rig.Container) -> None:
    """Between two series the wrong module could not load: its symbol checksums are those of the running kernel."""
    first, *_, last = bookworm.kernels()
    bookworm.add_fixture("story")
    bookworm.install_kernel(last)
    assert bookworm.vermagic(last, "kt_story").split()[0] == first.release
    assert {"init_net", "module_layout", "seq_printf"} <= _wrong_checksums(bookworm, last, "kt_story")
    bookworm.add_fixture("good")
    bookworm.run(["dkms", "install", "kt-good/1.0", "-k", last.release], check=True)
    assert _wrong_checksums(bookworm, last, "kt_good") == set()


def test_kernels_without_modversions(trixie: rig.Container) -> None:
    """There the release in vermagic is all that the kernel has to go by, as in the story."""
    first, second = trixie.kernels("7")
    trixie.install_kernel(first, image=False)
    trixie.set_running(first)
    trixie.add_fixture("story")
    trixie.install_kernel(second)
    assert trixie.vermagic(second, "kt_story").split()[0] == first.release
    assert "modversions" not in trixie.vermagic(second, "kt_story")


def test_a_module_that_does_not_compile_leaves_the_kernel_half_configured(machine: rig.Container) -> None:
    _, second, *_ = machine.kernels()
    machine.add_fixture("nocompile")
    result = machine.install_kernel(second, check=False)
    assert result.returncode == 100
    assert machine.package_state(second.image) in ("iF", "iU")
    assert not machine.path(f"/boot/initrd.img-{second.release}").exists()


def test_image_without_headers_is_silent(machine: rig.Container) -> None:
    _, second, *_ = machine.kernels()
    machine.add_fixture("good")
    machine.install_kernel(second, headers=False)
    assert machine.package_state(second.image) == "ii"
    assert machine.module_file(second, "kt_good") is None


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("good", 0, ""),
        ("slow", 0, ""),
        ("noisy", 0, "<3>kt_noisy"),
        ("nocompile", 10, "kt_nocompile.c:18"),
        ("undef", 10, '"kt_undef_nowhere"'),
    ],
)
def test_fixtures(suite: str, name: str, code: int, said: str) -> None:
    with rig.container(suite, boot=False) as c:
        kernel = c.kernels()[0]
        module = c.add_fixture(name, autoinstall=False, files={"delay": "2\n"} if name == "slow" else None)
        result = c.run(["dkms", "install", module, "-k", kernel.release])
        assert result.returncode == code
        assert (c.module_file(kernel, f"kt_{name}") is None) == (code != 0)
        (log,) = [*c.path(f"/var/lib/dkms/{module}").rglob("make.log")]
        text = log.read_text(errors="replace")
        assert said in text
        assert (len(text) > 4_000_000) == (name == "noisy")
        assert (result.seconds > 2) or name != "slow"
        assert "AUTOINSTALL" not in c.path(f"/usr/src/{module.replace('/', '-')}/dkms.conf").read_text()


def _wrong_checksums(c: rig.Container, kernel: rig.Kernel, module: str) -> set[str]:
    """Symbols of the module in `kernel`'s tree whose checksum is not that of `kernel`."""
    file = c.module_file(kernel, module)
    assert file is not None
    wanted = c.output("modprobe", "--dump-modversions", f"/{file.relative_to(c.root)}")
    symvers = c.path(f"/usr/src/linux-headers-{kernel.release}/Module.symvers").read_text()
    exported = {line.split("\t")[1]: int(line.split("\t")[0], 16) for line in symvers.splitlines()}
    return {name for crc, name in map(str.split, wanted.splitlines()) if exported.get(name) != int(crc, 16)}
