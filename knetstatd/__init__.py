# SPDX-License-Identifier: GPL-2.0-or-later
"""knetstatd keeps out-of-tree kernel modules working across kernel updates.

The folders stand in one line; each imports only from those to its left, and those in braces do not import each other:

    core < system < formats < { boot, dkms } < machine < { state, verify, diagnosis } < verdict
         < { rehearsal, daemon, repair } < build < cli

docs/architecture.md has the picture, and a sentence for each file.
"""

__version__ = "1.0.0"
