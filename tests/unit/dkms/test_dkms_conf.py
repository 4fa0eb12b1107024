# SPDX-License-Identifier: GPL-2.0-or-later
"""dkms.conf without a shell: each style that packages use, and bash's own answers for the same files."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knetstatd.dkms import dkms_conf
from knetstatd.dkms.dkms_conf import Conf, Make, Module

if TYPE_CHECKING:
    from collections.abc import Callable

    Tree = Callable[[dict[str, str]], Path]

K = "6.1.0-55-amd64"
DKMS = Path("/usr/sbin/dkms")

SIMPLE = """\
# A small module
PACKAGE_NAME="knetstat"
PACKAGE_VERSION="1.0"
BUILT_MODULE_NAME[0]="knetstat"
DEST_MODULE_LOCATION[0]="/updates/dkms"
MAKE[0]="make -C . KERNELDIR=/lib/modules/${kernelver}/build"
AUTOINSTALL="yes"
"""
MANY = r"""
PACKAGE_NAME=multi; PACKAGE_VERSION='2.3~rc1'   # two on a line
export AUTOINSTALL=YES
modules="unused"
version=$PACKAGE_VERSION
BUILT_MODULE_NAME=(one two 'thr''ee')
BUILT_MODULE_LOCATION[0]=src
BUILT_MODULE_LOCATION[1]=src/two/
DEST_MODULE_NAME[1]=$PACKAGE_NAME-two
DEST_MODULE_LOCATION[0]=/kernel/drivers/net
DEST_MODULE_LOCATION[1]=/extra/
DEST_MODULE_LOCATION[2]=/updates
MAKE[0]="make  all \
    KVER=$kernelver KSRC='$kernel_source_dir'"
MAKE[1]='make VERSION=${PACKAGE_VERSION} V=$version'
MAKE_MATCH[1]="^6\.1\."
CLEAN="make clean"
BUILD_EXCLUSIVE_KERNEL="^(5\.[0-9]+|6\..*)"
BUILD_EXCLUSIVE_ARCH="(x86_64|aarch64)"
BUILD_EXCLUSIVE_CONFIG="CONFIG_NET !CONFIG_FOO"
BUILD_DEPENDS[0]="first"
BUILD_DEPENDS+=(second)
PACKAGE_VERSION+=.1
REMAKE_INITRD="no"
"""
# Each needs a shell in its own way, and leaves the rest readable.
DYNAMIC = """
PACKAGE_NAME="dyn"
PACKAGE_VERSION="$(cat VERSION | tr -d '")')"
DEST_MODULE_LOCATION[0]="/updates"
KVER=`uname -r`
MAKE[0]="make KVER=$KVER"
if [ "$arch" = x86_64 ]; then BUILT_MODULE_NAME[0]="fast"; else BUILT_MODULE_NAME[0]="slow"; fi
[[ $kernelver > 6 ]] && AUTOINSTALL="yes"
case "$kernelver" in
    5.*) CLEAN="make old" ;;
    (6.*|7.*) CLEAN="make new" ;;
esac
"""
GUARDED = """
PACKAGE_NAME=guarded PACKAGE_VERSION=1
helper() { AUTOINSTALL="yes"; }
function other { MAKE_MATCH="x"; }
for m in a b; do MAKE[0]="$m"; done
{ BUILD_DEPENDS[0]=x; }
( BUILD_EXCLUSIVE_ARCH=y )
true || BUILD_EXCLUSIVE_CONFIG=z
true && \\
    CLEAN=w
read DEST_MODULE_LOCATION < /dev/null
BUILT_MODULE_NAME=$((1 + 1))
"""


def read(tree: Tree, text: str, kernel: str = "", **overrides: str) -> Conf:
    files = {f"etc/dkms/{name}.conf": content for name, content in overrides.items()}
    root = tree({"src/dkms.conf": text} | files)
    name = (re.findall(r"PACKAGE_NAME=\"?(\w+)", text) or ["x"])[0]
    return dkms_conf.evaluate(root / "src", root, name, "1.0", kernel, "x86_64" if kernel else "")


def test_a_usual_file(tree: Tree) -> None:
    conf = read(tree, SIMPLE)
    assert (conf.package_name, conf.package_version, conf.autoinstall) == ("knetstat", "1.0", "yes")
    assert conf.modules == (Module("knetstat", "knetstat", "", "/updates/dkms"),)
    assert conf.make == (
        Make("make -C . KERNELDIR=/lib/modules/${kernelver}/build", "", (("KERNELDIR", "/lib/modules/${kernelver}/build"),)),
    )
    assert (conf.faults, conf.dynamic) == ((), frozenset())
    assert read(tree, SIMPLE, K).make[0].variables == (("KERNELDIR", f"/lib/modules/{K}/build"),)


def test_a_file_with_everything(tree: Tree) -> None:
    conf = read(tree, MANY, K)
    assert conf.dynamic == frozenset()
    assert (conf.package_name, conf.package_version, conf.autoinstall) == ("multi", "2.3~rc1.1", "YES")
    assert conf.modules == (
        Module("one", "one", "src/", "/kernel/drivers/net"),
        Module("two", "multi-two", "src/two/", "/extra/"),
        Module("three", "three", "", "/updates"),
    )
    assert conf.make[0].command == f"make all KVER={K} KSRC='/lib/modules/{K}/build'"
    assert conf.make[0].variables == (("KVER", K), ("KSRC", f"/lib/modules/{K}/build"))
    # In single quotes a variable is expanded when dkms takes the value over; the file's own ones are gone by then.
    assert conf.make[1] == Make("make VERSION=2.3~rc1.1 V=", r"^6\.1\.", (("VERSION", "2.3~rc1.1"), ("V", "")))
    assert conf.exclusive == {
        "BUILD_EXCLUSIVE_KERNEL": r"^(5\.[0-9]+|6\..*)",
        "BUILD_EXCLUSIVE_ARCH": "(x86_64|aarch64)",
        "BUILD_EXCLUSIVE_CONFIG": "CONFIG_NET !CONFIG_FOO",
    }
    assert conf.faults == ()


@pytest.mark.spawns
@pytest.mark.parametrize(
    ("line", "left"),
    [
        ('BUILD_EXCLUSIVE_KERNEL="^6\\.[1-3]\\."', False), ('BUILD_EXCLUSIVE_KERNEL="^5"', True),
        ('BUILD_EXCLUSIVE_KERNEL="("', False),
        ("BUILD_EXCLUSIVE_KERNEL_MIN=6.1", False), ("BUILD_EXCLUSIVE_KERNEL_MIN=6.2", True),
        ("BUILD_EXCLUSIVE_KERNEL_MAX=6.2", False), ("BUILD_EXCLUSIVE_KERNEL_MAX=5.19", True),
        ("OBSOLETE_BY=6.2", False), ("OBSOLETE_BY=5.19", True), ('OBSOLETE_BY="$(uname -r)"', False), ("", False),
    ],
)  # fmt: skip
def test_what_a_package_leaves_to_the_kernel(tree: Tree, line: str, left: bool) -> None:
    assert K.startswith("6.1.")
    assert read(tree, f"{SIMPLE}{line}\n", K).excludes(K) is left


def test_what_needs_a_shell_is_named_not_guessed(tree: Tree) -> None:
    conf = read(tree, DYNAMIC, K)
    assert conf.dynamic == {"PACKAGE_VERSION", "MAKE", "BUILT_MODULE_NAME", "AUTOINSTALL", "CLEAN"}
    assert conf.package_name == "dyn"
    assert conf.package_version == "$(cat VERSION | tr -d '\")')"
    assert conf.make[0] == Make("make KVER=$KVER", "", (("KVER", "$KVER"),))
    assert conf.knows("PACKAGE_NAME")
    assert not conf.knows("MAKE")


def test_what_stands_in_blocks_is_dynamic(tree: Tree) -> None:
    conf = read(tree, GUARDED)
    assert conf.dynamic == {
        "AUTOINSTALL", "MAKE_MATCH", "MAKE", "BUILD_DEPENDS", "BUILD_EXCLUSIVE_ARCH", "BUILD_EXCLUSIVE_CONFIG", "CLEAN",
        "DEST_MODULE_LOCATION", "BUILT_MODULE_NAME",
    }  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        ". ./common.conf", "source /etc/x", "eval X=1", "exit", "return 0", "cat <<EOF\nPACKAGE_NAME=y\nEOF", "if true; then",
        "x() {", "case x in",
    ],
)  # fmt: skip
def test_after_these_nothing_is_known(tree: Tree, line: str) -> None:
    conf = read(tree, f"{SIMPLE}{line}\n")
    assert not any(map(conf.knows, ("PACKAGE_NAME", "MAKE", "AUTOINSTALL")))
    assert conf.package_name == "knetstat"
    # But an override that assigns it is known again.
    conf = read(tree, f"{SIMPLE}{line}\n", knetstat='AUTOINSTALL=""\n')
    assert conf.knows("AUTOINSTALL")
    assert not conf.knows("MAKE")


def test_a_later_plain_assignment_is_known(tree: Tree) -> None:
    conf = read(tree, "AUTOINSTALL=$(x)\nAUTOINSTALL=yes\nMAKE[1]=`x`\nMAKE[0]=y\nCLEAN=$X\nX=$(y)\nBUILD_DEPENDS=$X")
    assert conf.autoinstall == "yes"
    assert conf.dynamic == {"MAKE", "BUILD_DEPENDS"}
    assert read(tree, "MAKE=($(x))\nMAKE=(y)").dynamic == frozenset()


@pytest.mark.parametrize(
    ("value", "kernel", "obsolete"),
    [
        ("5.4.0", K, True), ("6.1.0", K, True), ("6.1.0-55", K, True), ("6.1.0-54", K, True), ("6.1.0-56", K, False),
        ("6.2", K, False), ("99", K, False), ("", K, False), ("$(x)", K, False), ("6.1", "6.1", True),
    ],
)  # fmt: skip
def test_whether_a_kernel_has_the_module_itself(tree: Tree, value: str, kernel: str, obsolete: bool) -> None:
    assert read(tree, f'{SIMPLE}OBSOLETE_BY="{value}"\n').obsolete(kernel) == (value if obsolete else "")


def test_what_the_installed_dkms_does(tree: Tree) -> None:
    """3.0 does not know an override for any version; 3.2 takes the CR of Windows' lines from the values."""
    root = tree(
        {"src/dkms.conf": SIMPLE.replace("\n", "\r\n"), f"etc/dkms/knetstat--{K}.conf": 'CLEAN="x"\nMAKE[0]="make over"\n'}
    )
    reads = 'for f in "$conf" "/etc/dkms/$module.conf"{}; do . "$f"; done\n'
    tree({"usr/sbin/dkms": reads.format("")})
    old = dkms_conf.evaluate(root / "src", root, "knetstat", "1.0", K)
    assert (len(old.sources), old.crlf, len(old.faults)) == (1, os.fspath(root / "src/dkms.conf"), 1)
    tree({"usr/sbin/dkms": reads.format(' "/etc/dkms/$module--$1.conf"') + "eval echo '${x%$CR}'\n"})
    new = dkms_conf.evaluate(root / "src", root, "knetstat", "1.0", K)
    assert (len(new.sources), new.crlf, new.faults) == (2, "", ())
    assert (new.package_name, new.modules[0].name, new.make[0].command) == ("knetstat", "knetstat", "make over")


def test_the_overrides_in_dkms_s_order(tree: Tree) -> None:
    names = ["knetstat", "knetstat-1.0", f"knetstat-1.0-{K}", f"knetstat-1.0-{K}-x86_64"]
    names += [f"knetstat--{K}", f"knetstat--{K}-x86_64"]
    root = tree({"src/dkms.conf": SIMPLE + "MARK=0\n"})
    for number, name in enumerate(names):
        tree({f"etc/dkms/{name}.conf": f'AUTOINSTALL="{number}$AUTOINSTALL$MARK"; MARK=gone\n'})
    conf = dkms_conf.evaluate(root / "src", root, "knetstat", "1.0", K, "x86_64")
    assert conf.autoinstall == "543210yes"
    assert conf.sources == tuple(os.fspath(p) for p in (root / "src/dkms.conf", *(root / f"etc/dkms/{n}.conf" for n in names)))
    assert dkms_conf.evaluate(root / "src", root, "knetstat", "1.0", K).autoinstall == "4210yes"
    assert dkms_conf.evaluate(root / "src", root, "knetstat", "1.0").autoinstall == "10yes"
    assert dkms_conf.evaluate(root / "src", root, "knetstat").autoinstall == "0yes"
    assert dkms_conf.evaluate(root / "src", root).autoinstall == "yes"
    assert dkms_conf.evaluate(root / "src", root, "other", "1.0", K, "x86_64").autoinstall == "yes"


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("", ("PACKAGE_NAME is not set", "PACKAGE_VERSION is not set", "it names no module: there is no DEST_MODULE_LOCATION")),
        (SIMPLE.replace("/updates", "/lib"), ("DEST_MODULE_LOCATION[0] does not begin with /kernel, /updates or /extra",)),
        (SIMPLE.replace('NAME[0]="knetstat"', 'NAME[0]="k.ko"'), ("k.ko ends in .o or .ko",)),
        (SIMPLE + "DEST_MODULE_LOCATION[1]=/extra", ("BUILT_MODULE_NAME[1] is not set",)),
        (SIMPLE + "DEST_MODULE_NAME=k.o", ("k.o ends in .o or .ko",)),
        # Only a shell knows: the index (as in lttng-modules), the name, whether the block is entered.
        ("PACKAGE_NAME=x\nPACKAGE_VERSION=1\ni=$((1-1))\nBUILT_MODULE_NAME[$i]=x\nDEST_MODULE_LOCATION[$i]=/extra\n", ()),
        (SIMPLE + 'if [ -d /x ]; then BUILT_MODULE_NAME[1]="y"; fi\nDEST_MODULE_LOCATION[1]=/extra', ()),
        (SIMPLE.replace("/updates", "$(place)"), ()),
        ("PACKAGE_VERSION=1\nread PACKAGE_NAME <name\nDEST_MODULE_LOCATION=/extra\n", ()),
        (". ./common\n", ()),
    ],
)
def test_what_dkms_refuses(tree: Tree, text: str, faults: tuple[str, ...]) -> None:
    assert read(tree, text).faults == faults


def test_no_file_at_all(tmp_path: Path) -> None:
    conf = dkms_conf.evaluate(tmp_path, tmp_path, "x", "1")
    assert conf.faults[0] == "there is no dkms.conf"
    assert conf.sources == ()


def test_a_module_without_a_name_is_called_like_the_package(tree: Tree) -> None:
    conf = read(tree, 'PACKAGE_NAME="only"\nPACKAGE_VERSION=1\nDEST_MODULE_LOCATION="/extra"\n')
    assert conf.modules == (Module("only", "only", "", "/extra"),)
    assert conf.faults == ()


@pytest.mark.spawns
@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("", None),
        ("MAKE=''", None),
        ("MAKE=a", "a"),
        ("MAKE[0]=a; MAKE[1]=b; MAKE_MATCH[1]=^5", "a"),
        ("MAKE[0]=a; MAKE[1]=b; MAKE_MATCH[1]=^6", "b"),
        ("MAKE[0]=a; MAKE_MATCH[0]=^5", None),
        ("MAKE[1]=b; MAKE_MATCH[1]=^6", "b"),
        ("MAKE[0]=a; MAKE[1]=b; MAKE_MATCH[1]='^6('", "a"),
        ("MAKE[0]=a; MAKE[1]=b", "a"),
    ],
)
def test_the_make_that_is_run(tree: Tree, text: str, command: str | None) -> None:
    chosen = dkms_conf.chosen_make(read(tree, text), K)
    assert (chosen.command if chosen else None) == command


# dkms's own reading of the same files. Its function runs in bash with everything it needs, and prints what it kept.
SCRIPT = r"""
. "$1"; shift
mktemp_or_die() { mktemp "$@"; }
deprecated() { :; }
show_deprecation_warnings=0
module=$1 module_version=1.0 kernelver=$2 arch=x86_64 kernel_source_dir=/lib/modules/$2/build
dkms_tree=/var/lib/dkms source_tree=/usr/src install_tree=/lib/modules
shift 2
for file; do safe_source "$file" $dkms_conf_variables >/dev/null; done
for name in $dkms_conf_variables; do
    eval "indexes=\${!$name[@]}"
    for i in $indexes; do eval "printf '%s[%s]=%s\0' \$name \$i \"\${$name[$i]}\""; done
done
"""


def by_dkms(root: Path, name: str, files: list[Path]) -> dict[str, str]:
    text = DKMS.read_text(errors="replace")
    variables = re.search(r"^readonly dkms_conf_variables=\"[^\"]*\"", text, re.MULTILINE)
    function = re.search(r"^safe_source\(\) \{.*?^\}", text, re.MULTILINE | re.DOTALL)
    assert variables
    assert function
    (root / "functions").write_text(f"{variables[0]}\n{function[0]}\n")
    run = subprocess.run(
        ["bash", "-c", SCRIPT, "bash", root / "functions", name, K, *files],
        capture_output=True, check=True, cwd=root, env={"PATH": "/usr/bin:/bin", "TMPDIR": os.fspath(root)},
    )  # fmt: skip
    return dict(item.split("=", 1) for item in run.stdout.decode().split("\0") if item)


@pytest.mark.spawns
@pytest.mark.skipif(not DKMS.exists(), reason="dkms is not installed")
@pytest.mark.parametrize(
    "text", [SIMPLE, MANY, DYNAMIC, GUARDED, SIMPLE + 'MAKE="a \'b\'  c=\\"d\\" \\\\ e"\n', SIMPLE.replace("\n", "\r\n")]
)
@pytest.mark.parametrize("override", ["", 'AUTOINSTALL=""\nMAKE[0]+=" V=1"\nDEST_MODULE_NAME="$PACKAGE_NAME-x"\n'])
def test_dkms_reads_the_same(tree: Tree, text: str, override: str) -> None:
    conf = read(tree, text, K)
    root = tree({f"etc/dkms/{conf.package_name}.conf": override}) if conf.package_name.isalnum() else tree({})
    conf = dkms_conf.evaluate(root / "src", root, conf.package_name, "1.0", K, "x86_64")
    theirs = by_dkms(root, conf.package_name, [Path(path) for path in conf.sources])
    ours = {f"MAKE[{i}]": make.command for i, make in enumerate(conf.make)}
    ours |= {f"MAKE_MATCH[{i}]": make.match for i, make in enumerate(conf.make) if make.match}
    ours |= {"PACKAGE_NAME[0]": conf.package_name, "PACKAGE_VERSION[0]": conf.package_version}
    ours |= {"AUTOINSTALL[0]": conf.autoinstall}
    ours |= {name if "[" in name else f"{name}[0]": value for name, value in conf.exclusive.items()}
    ours |= {f"DEST_MODULE_LOCATION[{i}]": module.dest for i, module in enumerate(conf.modules)}
    compared = 0
    for key, value in ours.items():
        if conf.knows(key.partition("[")[0]):
            assert theirs.get(key, "") == value, key
            compared += 1
    assert compared >= 2


LINES = st.sampled_from(
    "PACKAGE_NAME= MAKE[0]= A+= \" ' $( ) ` ${ } if then fi ; && || \n { ( case esac do done x $A # \\ << > =".split(" ")
)


@given(st.lists(LINES).map("".join) | st.lists(LINES).map(" ".join), st.binary())
def test_no_bytes_raise(tmp_path: Path, text: str, data: bytes) -> None:
    (tmp_path / "dkms.conf").write_bytes(text.encode() + data)
    conf = dkms_conf.evaluate(tmp_path, tmp_path, "x", "1", K, "x86_64")
    dkms_conf.chosen_make(conf, K)
    assert conf.sources


def test_each_kernel_has_its_own_answer(tree: Tree) -> None:
    """The text is evaluated once for all kernels, also if the name of one is in it; not if a shell may make more of it."""
    text = """
PACKAGE_NAME=m PACKAGE_VERSION=1 DEST_MODULE_LOCATION=/updates
BUILT_MODULE_NAME="m-${kernelver}"
MAKE='make -C $kernel_source_dir KVER=$kernelver'
DEST_MODULE_NAME='$'$kernelver
AUTOINSTALL='$v'${kernelver}
"""
    for kernel in ("6.1.0-1", "7.3.0-2", "6.1.0-1"):
        conf = read(tree, text, kernel)
        assert conf.modules[0].name == f"m-{kernel}"
        assert conf.make[0].command == f"make -C /lib/modules/{kernel}/build KVER={kernel}"
        assert conf.autoinstall == kernel[1:], "dkms asks for $v6, which is not set"
        assert "DEST_MODULE_NAME" in conf.dynamic, "$6 is a parameter of the script's"
    assert read(tree, text).make[0].command == "make -C ${kernel_source_dir} KVER=${kernelver}"
