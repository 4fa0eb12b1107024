#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# tests/vm/debug-kernel.sh SERIES OUT
#
# Builds a small kernel of Debian's linux-source-SERIES that watches itself:
# KASAN, lockdep (PROVE_LOCKING), kmemleak, sleeping and RCU misuse. OUT then
# holds bzImage, and build/, which modules can be built against (KDIR=OUT/build).
#
# Needs: gcc make flex bison bc libelf-dev xz-utils, and the source's tarball
# in OUT/source or as a package that apt-get can download.
set -eu

series=${1:?which series, e.g. 7.3} out=${2:?to which directory}
tree="$out/linux-source-$series"

mkdir -p "$out"
cd "$out"
if [ ! -e "$tree/Makefile" ]; then
    if [ ! -e "linux-source-$series.tar.xz" ]; then
        apt-get download -q "linux-source-$series"
        dpkg-deb --fsys-tarfile linux-source-"$series"_*.deb | tar -x --strip-components=3 ./usr/src/
    fi
    tar -xf "linux-source-$series.tar.xz"
fi

# What a machine without disk and network cards needs to run tests/vm/zoo.
cat >"$out/zoo.config" <<'END'
CONFIG_64BIT=y
CONFIG_SMP=y
CONFIG_PRINTK=y
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
CONFIG_TMPFS=y
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
CONFIG_KALLSYMS=y
CONFIG_PREEMPT=y
CONFIG_DEBUG_KERNEL=y
CONFIG_KASAN=y
CONFIG_KASAN_GENERIC=y
CONFIG_KASAN_OUTLINE=y
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
for option in KASAN PROVE_LOCKING DEBUG_KMEMLEAK DEBUG_ATOMIC_SLEEP IPV6 MODULES NET_NS SERIAL_8250_CONSOLE; do
    grep -q "^CONFIG_$option=y" build/.config || { echo "$option is not in the configuration" >&2; exit 1; }
done
make -C "$tree" O="$out/build" -j"$(nproc)" bzImage modules >build.log 2>&1 || { tail -n 30 build.log >&2; exit 1; }
cp build/arch/x86/boot/bzImage bzImage
echo "$out/bzImage"
