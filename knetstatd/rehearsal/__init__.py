# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own answer: the kernel is started in a throwaway machine and loads the modules."""
