# SPDX-License-Identifier: GPL-2.0-or-later
"""knetstatctl: the command, and how it draws what it shows."""
