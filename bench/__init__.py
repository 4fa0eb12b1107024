# SPDX-License-Identifier: GPL-2.0-or-later
"""The budgets, each as a ratio to a peer, a limit or a number, measured in one run on one machine.

Rules:

1. Ours and the peer alternate, round by round, and medians are compared: what else the machine does hits both.
2. The column "by" says what was compared: `cpu` (user and system time of the whole process tree), `wall`, or memory.
   CPU time is taken wherever the work is one chain of computation; wall time where waiting is a part of the answer.
3. Everything happens in throwaway Debian containers (tests/container), with the real dkms, real headers and real modules.
   /var and /lib/modules in them are on the machine's disk, so that a sync costs there what it costs anywhere.
"""
