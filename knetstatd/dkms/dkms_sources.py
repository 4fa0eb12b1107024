# SPDX-License-Identifier: GPL-2.0-or-later
"""Sources that lie in /usr/src as dkms wants them, and that dkms does not know.

dkms's kernel hook drops a package from its tree when the last kernel that has a build of it is removed (dkms 3.0: the hook in
prerm.d runs `dkms remove`). The package's source, and its Debian package, stay. `dkms add NAME/VERSION` brings it back.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from knetstatd.core import names
from knetstatd.dkms import dkms_conf, dkms_framework, dkms_tree
from knetstatd.dkms.dkms_tree import Package, Version
from knetstatd.system import files

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def unregistered(root: Path, registered: Mapping[str, Package]) -> dict[str, Package]:
    """The packages with a source NAME-VERSION in dkms's source_tree, of which dkms knows no version; each with its highest."""
    known = {f"{name}-{version.version}" for name, package in registered.items() for version in package.versions}
    there: dict[str, list[Version]] = {}
    place = files.inside(root, dkms_framework.framework(root).source_tree)
    for directory in files.names(place):
        source = place / directory
        if directory in known or not os.path.isfile(source / "dkms.conf"):
            continue
        conf = dkms_conf.evaluate(source, root)
        name, version = conf.package_name, conf.package_version
        # Of another name it is no source that dkms would take: unpacked by hand, or a template.
        if f"{name}-{version}" == directory and names.is_package(name) and names.is_package(version) and name not in registered:
            there.setdefault(name, []).append(dkms_tree.without_builds(root, source, version))
    return {
        name: Package(name, (max(versions, key=lambda v: (names.version_key(v.version), v.version)),))
        for name, versions in sorted(there.items())
    }
