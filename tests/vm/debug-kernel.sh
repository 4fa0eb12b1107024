#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# tests/vm/debug-kernel.sh SERIES OUT
#
# Builds a small kernel of Debian's linux-source-SERIES that watches itself:
# KASAN, lockdep (PROVE_LOCKING), kmemleak, sleeping and RCU misuse. OUT then
# holds bzImage, and build/, which modules can be built against (KDIR=OUT/build).
# Where that is newer than this script, nothing is done.
#
# The source is downloaded by apt-get: from this machine's archives, or from
# those that $APT_CONFIG names. Ten minutes, 3 GB.
# Needs: gcc make flex bison bc libelf-dev xz-utils.
set -eu

script=$(realpath "$0") series=${1:?which series, e.g. 7.3} out=${2:?to which directory}
mkdir -p "$out"
out=$(realpath "$out")
tree="$out/linux-source-$series"
cd "$out"
if [ bzImage -nt "$script" ]; then
    exit
fi

if [ ! -e unpacked ]; then
    apt-get download -q "linux-source-$series"
    dpkg-deb --fsys-tarfile linux-source-"$series"_*.deb | tar -xO "./usr/src/linux-source-$series.tar.xz" | tar -xJ
    rm linux-source-"$series"_*.deb
    touch unpacked
fi

# What a machine without disk and network cards needs to run tests/vm/zoo.
cat >"$out/zoo.config" <<'END'
CONFIG_64BIT=y
CONFIG_SMP=y
CONFIG_PRINTK=y
CONFIG_LOG_BUF_SHIFT=18
CONFIG_BUG=y
CONFIG_TTY=y
CONFIG_SERIAL_8250=y
CONFIG_SERIAL_8250_CONSOLE=y
CONFIG_BLK_DEV_INITRD=y
CONFIG_BINFMT_ELF=y
CONFIG_BINFMT_SCRIPT=y
CONFIG_DEVTMPFS=y
CONFIG_PROC_FS=y
CONFIG_SYSFS=y
CONFIG_FUTEX=y
CONFIG_EPOLL=y
CONFIG_POSIX_TIMERS=y
CONFIG_HIGH_RES_TIMERS=y
CONFIG_MULTIUSER=y
CONFIG_MODULES=y
CONFIG_MODULE_UNLOAD=y
CONFIG_NAMESPACES=y
CONFIG_NET_NS=y
CONFIG_NET=y
CONFIG_UNIX=y
CONFIG_INET=y
CONFIG_IPV6=y
CONFIG_INET_DIAG=y
CONFIG_INET_UDP_DIAG=y
CONFIG_KALLSYMS=y
CONFIG_PREEMPT=y
CONFIG_DEBUG_KERNEL=y
CONFIG_KASAN=y
CONFIG_KASAN_GENERIC=y
CONFIG_KASAN_OUTLINE=y
CONFIG_KASAN_VMALLOC=y
CONFIG_PROVE_LOCKING=y
CONFIG_PROVE_RCU=y
CONFIG_DEBUG_ATOMIC_SLEEP=y
CONFIG_DEBUG_PREEMPT=y
CONFIG_DEBUG_KMEMLEAK=y
CONFIG_DEBUG_KMEMLEAK_MEM_POOL_SIZE=32000
CONFIG_DEBUG_FS=y
CONFIG_DEBUG_LIST=y
CONFIG_DETECT_HUNG_TASK=y
CONFIG_SOFTLOCKUP_DETECTOR=y
CONFIG_NET_NS_REFCNT_TRACKER=y
CONFIG_DEBUG_INFO_NONE=y
# CONFIG_WERROR is not set
# CONFIG_SLUB_TINY is not set
# CONFIG_CC_OPTIMIZE_FOR_SIZE is not set
END
mkdir -p build
make -C "$tree" O="$out/build" tinyconfig >/dev/null
(cd "$tree" && KCONFIG_CONFIG="$out/build/.config" scripts/kconfig/merge_config.sh -m -O "$out/build" "$out/build/.config" "$out/zoo.config" >/dev/null)
make -C "$tree" O="$out/build" olddefconfig >/dev/null
# Kconfig leaves out without a word what it cannot have.
grep '^CONFIG_.*=' zoo.config | while read -r line; do
    grep -qx "$line" build/.config || { echo "$line is not in the configuration" >&2; exit 1; }
done
make -C "$tree" O="$out/build" -j"$(nproc)" bzImage modules >build.log 2>&1 || { tail -n 30 build.log >&2; exit 1; }
cp build/arch/x86/boot/bzImage bzImage
echo "$out/bzImage"
