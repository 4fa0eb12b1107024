# SPDX-License-Identifier: GPL-2.0-or-later
"""`python -m knetstatd` runs the daemon."""

import sys

from knetstatd.daemon.main import main

sys.exit(main())
