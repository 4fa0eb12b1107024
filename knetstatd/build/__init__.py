# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps of a build: compile, prove, publish, load."""
