# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kernel the next reboot starts: GRUB's and systemd-boot's own rules, read from their files."""
