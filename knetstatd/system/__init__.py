# SPDX-License-Identifier: GPL-2.0-or-later
"""The doors to the operating system: files, programs, locks, systemd's units, the journal, the terminal."""
