# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts of this machine: its kernels, its boot loader, dkms, dpkg, modprobe's configuration, who is at work."""
