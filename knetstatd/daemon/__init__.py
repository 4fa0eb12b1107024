# SPDX-License-Identifier: GPL-2.0-or-later
"""The loop that watches the machine and starts the builders, and what it tells."""
