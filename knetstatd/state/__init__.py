# SPDX-License-Identifier: GPL-2.0-or-later
"""What the program remembers, and every path of its own below /var/lib/knetstatd and /run/knetstatd."""
