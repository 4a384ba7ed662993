# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: ``wirings [WIRING...]``. Each in a virtual machine of its own; exit status 1 when any failed."""

from __future__ import annotations

import sys

from . import __main__ as matrix
from .guest.wirings import WIRINGS
from .systems import SYSTEMS

TRIXIE = next(system for system in SYSTEMS if system.suite == "trixie")

if __name__ == "__main__":
    sys.exit(matrix.main("wirings", sys.argv[1:], {name: matrix.Boot(name, TRIXIE, name) for name in WIRINGS}))
