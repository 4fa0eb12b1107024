# SPDX-License-Identifier: GPL-2.0-or-later
"""What is so on this machine, and what it means for the next reboot."""
