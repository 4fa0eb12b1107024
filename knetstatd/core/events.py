# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be said in the journal: one stable MESSAGE_ID for each kind of event.

An id never changes and is never used again for something else; scripts and the message catalog rely on it.
Priorities are syslog's (3 error, 4 warning, 5 notice, 6 info): 3 is for what a person must do something about.
The texts of `journalctl -x` are in units/knetstatd.catalog; it may use only the fields that an event always carries.
"""

from __future__ import annotations

import enum

_WHICH = ("package", "version", "kernel")
_WHY = (*_WHICH, "reason")
_CURE = (*_WHY, "fix")
_FAILURE = (*_CURE, "kind", "evidence", "log")


class Event(enum.Enum):
    """A kind of journal entry: MESSAGE_ID, PRIORITY, what it means, and the KNETSTATD_* fields that it always carries."""

    message_id: str
    priority: int
    meaning: str
    fields: tuple[str, ...]

    def __init__(self, message_id: str, priority: int, meaning: str, fields: tuple[str, ...] = ()) -> None:
        self.message_id = message_id
        self.priority = priority
        self.meaning = meaning
        self.fields = fields

    STARTED = "0ca523c38a464c51a9df567d9fdbe841", 6, "the daemon runs and has looked at every kernel once"
    STOPPING = "298b4c22e8e440a49c51e26616417dc0", 6, "the daemon ends"
    KERNEL_SEEN = "7970a140b7a64d08ba00b6c11d45413b", 6, "a kernel that was not there before", ("kernel",)
    KERNEL_REMOVED = "fbc7a5709dfd4713b29336b546b158a0", 6, "a kernel is gone; what was kept for it is deleted", ("kernel",)
    NAME_REFUSED = "0311df46049943ac9b82241865081182", 4, "a name that no kernel or module can have", ("name", "reason")
    NEXT_KERNEL = "0b30f59575c54472b03bf55bcf1af158", 5, "the kernel that the next boot will start", ("kernel", "reason")
    WAITING = "0314fabf69424dfeab15f24908ff3ca1", 6, "the next step waits for somebody or something", _WHY
    HEADERS_MISSING = "2c6508df19724cd58ea2e8cfd01c8533", 3, "a guarded kernel has no usable headers", _CURE
    HEADERS_INSTALLED = "fd6f22466b2e49c690a01d821c6e822e", 5, "headers were installed, as configured", (*_WHICH, "headers")
    SOURCE_MISSING = "d81f7f65333e4358a7f2d3fb9eebdebc", 3, "a guarded module's source is not in DKMS, or broken", _CURE
    PACKAGE_GONE = "74177ec5630e474e9a64073b4f5074c1", 4, "a guarded package left DKMS's tree", _CURE
    WRONG_MODULE = "ca5070c506bb4541b6028c5967864393", 4, "an installed module is not right for its kernel", _WHY
    STAGE_STARTED = "c9d844f98e5a4f8883b282340bd0ff7b", 6, "a module is compiled in a private tree", _WHICH
    STAGED = "e9fefe6007e141dc9853be9ee61fdd43", 6, "compiled and verified; nothing in the system has changed", _WHICH
    PUBLISH_STARTED = "629c60343d7942df9998a5bab383a22a", 6, "a verified module is put into DKMS and /lib/modules", _WHICH
    PUBLISHED = "2270ee63c833478686e515d9643ab6a2", 6, "published, and verified again from the disk", _WHICH
    INCOMPLETE = "38e70eb3551a4a178e07b21b4b3837fc", 4, "published, but unsigned, or a hook could not do its work", _CURE
    INITRD_MADE = "dbae0e9be9694e08a79d26ad9e0b8180", 6, "a kernel's initrd was made anew, as configured", _WHICH
    INITRD_FAILED = "4dad1141be8442bebc5839a23c0837d2", 3, "a kernel's initrd could not be made anew, or is wrong still", _CURE
    HALF_CONFIGURED = "b303aa0f5dc04abf80e65d0437699e41", 3, "a kernel's package is half-configured: it may not boot", _CURE
    READY = "ec45a64dcd6341f08001e5059fd2a550", 5, "the module will load on this kernel", _WHICH
    FAILED = "daad73939ba54dbf8ce22d1e418128b3", 3, "an attempt failed; there will be another", _FAILURE
    GAVE_UP = "9de3b4733d9f474e97e803e5f006ee7b", 3, "an attempt failed and waiting cannot heal it", _FAILURE
    REHEARSAL_STARTED = "87e8ae587c1b4cf3a897641ec4053cea", 6, "a kernel is started in a throwaway machine", _WHICH
    REHEARSED = "937b5afd771d44608a0c39b6b1a330f2", 6, "the kernel took the modules in the rehearsal", _WHICH
    REHEARSAL_FAILED = "1b3f696638a34b2d9c45cc4c5988f482", 3, "the kernel did not take the modules in the rehearsal", _CURE
    NOT_REHEARSED = "4595486e44bc4475bbf8838575ad1fef", 4, "a rehearsal could not be had, or its answer is none", _WHY
    DISAGREEMENT = "8cede7de51774496b143b3a78f29d18f", 3, "the kernel says otherwise than the analysis", _WHY
    LOADED = "6204a59ceeb34dcea9ce11be384ab2f0", 5, "the module was loaded into the running kernel", _WHICH
    UNLOADED = "ee8cd12203c1431fafc17b41ec9fa0bf", 4, "somebody has unloaded the module, and it is left out", _CURE
    OUTDATED = "d049c0a749ea43119ed707d09d83fe3f", 4, "the running kernel has another copy of the module loaded", _CURE
    FAULTY = "dd481c68e8eb4a88b9ece17a7e690f47", 3, "the module in the running kernel fails its probe", _CURE
    CONFIG_REJECTED = "f853d1c9b23b438c9fd32b60dfc32628", 3, "the configuration is faulty", ("evidence",)
    CONFIG_LOADED = "a221aa8706634a7f8e0791665e0311f4", 6, "the configuration was read again"
    EVENTS_LOST = "13d938b2a06946a49e8122838748a841", 4, "events were lost; everything is looked at again"
    DEGRADED = "ec738cffab104cb8ad5390bedf0540e6", 4, "the daemon lacks something, and goes on without it", ("source",)
