# SPDX-License-Identifier: GPL-2.0-or-later
"""What dkms is told and what it has done, read from its files without running it."""
