# SPDX-License-Identifier: GPL-2.0-or-later
"""knetstatd: keeps out-of-tree kernel modules working across kernel updates.

Layers, lowest first; a module imports only from layers below its own (tests/unit/test_layers.py holds this):

1. values     errors, names, model, events
2. decisions  plan, config
3. reading    files, unpack, symvers, elf, ko, depmod, kernels, places, der, grub, bootloader, trust, modprobe, host, target,
              initrd, checks, signed, placement, verify, shellfile, dkmsconf, dkms, traps, transaction, packages, artefact,
              attempts, locks, loads, sockets, live, proofs, answers, observe
4. doing      run, units, rehearse, probe, refusals, trial, diagnose, compare, loading, journal, notify, signing, compiler,
              stage, publish, repair
5. programs   watch, uevents, report, explain, tell, progress, builder, rehearsals, worker, sockettable, mending,
              commandline, spread, cli, daemon
"""

__version__ = "1.0.0"
