# SPDX-License-Identifier: GPL-2.0-or-later
"""Bytes that others wrote, parsed: each module is a pure function of its input."""
