# SPDX-License-Identifier: GPL-2.0-or-later
"""What a build does not cure: states in which dkms and dpkg get stuck."""
