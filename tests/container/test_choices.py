# SPDX-License-Identifier: GPL-2.0-or-later
"""What an administrator has chosen, with the real dkms: another place for its tree, an older version, nothing by itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from . import product

if TYPE_CHECKING:
    from .rig import Container


def test_a_tree_that_was_moved(machine: Container) -> None:
    c = machine
    release = c.kernels()[0].release
    conf = c.path("/etc/dkms/framework.conf")
    conf.write_text(conf.read_text() + '\ndkms_tree="/srv/dkms"\n')
    c.path("/srv/dkms").mkdir()
    product.install(c, ["*"])
    said = c.run(["knetstatctl", "check", "running"])
    assert said.returncode == 3
    assert said.stdout.startswith("UNKNOWN: * matches nothing: no package is registered in /srv/dkms; ")
    c.add_fixture("good", autoinstall=False)
    assert not c.path("/var/lib/dkms/kt-good").exists()
    c.start_product()

    def told() -> str:
        """The daemon's own word: nspawn's boot id is not the one that units see, and what is waited for is so in one boot."""
        return c.run(["cat", "/run/knetstatd/status.json"]).stdout

    product.wait("it is not published", lambda: "ReadWritePaths" in told())
    [made] = json.loads(told())["verdicts"]
    assert (made["ready"], made["state"]) == (False, "failed")
    assert made["fix"] == "Allow it: systemctl edit knetstatd-build@.service, with ReadWritePaths=/srv/dkms"
    c.write("/etc/systemd/system/knetstatd-build@.service.d/tree.conf", "[Service]\nReadWritePaths=/srv/dkms\n")
    c.run(["systemctl", "daemon-reload"], check=True)
    c.path(f"/var/lib/knetstatd/kernels/{release}/kt-good.json").unlink()  # it is tried again at once, not after a pause
    product.wait_ready(c, "running")
    assert c.path(f"/srv/dkms/kt-good/1.0/{release}/x86_64/module").is_dir()
    assert f"kt-good/1.0, {release}, x86_64: installed" in c.output("dkms", "status")
    assert not c.path("/var/lib/dkms/kt-good").exists()


def add(c: Container, version: str) -> None:
    """Registers another version of kt-good."""
    c.run(["cp", "-a", "/usr/src/kt-good-1.0", f"/usr/src/kt-good-{version}"], check=True)
    c.run(["sed", "-i", f's/VERSION="1.0"/VERSION="{version}"/', f"/usr/src/kt-good-{version}/dkms.conf"], check=True)
    c.run(["dkms", "add", f"kt-good/{version}"], check=True)


def test_an_older_version_that_was_installed_by_hand(machine: Container) -> None:
    c = machine
    release = c.kernels()[0].release
    c.add_fixture("good", autoinstall=False)
    add(c, "1.1")
    c.run(["dkms", "install", "--force", "-m", "kt-good", "-v", "1.0", "-k", release], check=True, timeout=300)
    product.start(c, ["kt-good"])
    product.wait_ready(c, "running")
    made = product.verdict(c, "running")
    assert (made["version"], made["state"], made["why"], made["in_progress"]) == ("1.0", "ready", "ready", False)
    assert made["reason"] == "version 1.0 was installed by hand after 1.1 was registered, and is left alone"
    assert "stage-started" not in product.kinds(c, "kt-good")
    # What it says to run does it.
    c.run(made["fix"].split(), check=True, timeout=300)
    product.wait("the newer one", lambda: product.verdict(c, "running")["version"] == "1.1")
    assert (product.verdict(c, "running")["state"], product.verdict(c, "running")["reason"]) == ("ready", "")
    # It was not chosen over one that is registered later.
    add(c, "1.2")
    product.wait("the newest one", lambda: f"kt-good/1.2, {release}, x86_64: installed" in c.output("dkms", "status"), 240)
    product.wait_ready(c, "running")
    assert (product.verdict(c, "running")["version"], product.verdict(c, "running")["reason"]) == ("1.2", "")


def test_a_package_that_did_not_register_its_module(machine: Container) -> None:
    """As Debian's -dkms packages do with that file."""
    c = machine
    c.add_fixture("good", autoinstall=False)
    c.run(["dkms", "remove", "kt-good/1.0", "--all"], check=True)
    c.path("/usr/src/kt-good-1.0").rename(c.path("/root/source"))
    c.write("/etc/dkms/no-autoinstall", "")
    product.start(c, ["*"])
    c.path("/root/source").rename(c.path("/usr/src/kt-good-1.0"))
    postinst = c.run(["sh", "/usr/lib/dkms/common.postinst", "kt-good", "1.0"])
    assert "autoinstall for dkms modules has been disabled" in postinst.stdout + postinst.stderr
    product.wait("it is named", lambda: any(v["package"] == "kt-good" for v in product.verdicts(c, "running")))
    made = product.verdict(c, "running")
    assert (made["state"], made["fix"]) == ("source-missing", "dkms add kt-good/1.0")
    assert made["reason"].endswith("while /etc/dkms/no-autoinstall is there, no -dkms package registers its own")
    c.run(made["fix"].split(), check=True)
    product.wait_ready(c, "running")
