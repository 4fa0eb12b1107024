# SPDX-License-Identifier: GPL-2.0-or-later
"""Values, and the one decision of the program; nothing here reads or writes anything but the configuration's files."""
