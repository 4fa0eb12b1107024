# SPDX-License-Identifier: GPL-2.0-or-later
"""Will this module file load on that kernel?"""
