# SPDX-License-Identifier: GPL-3.0-or-later
"""How a cluster is wired: one file for each way, a class ``Wired`` in it. :class:`direct.Wired` is what they share."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ..paths import LabError

if TYPE_CHECKING:
    from .direct import Wired

NAMES = ("direct", "vxlan", "ecmp", "bridge", "ptp", "bgp", "tunnel")


def named(name: str) -> Wired:
    """The wiring of that name. Raises LabError."""
    if name not in NAMES:
        raise LabError(f"building a lab with the wiring {name}: there is none; choose one of {', '.join(NAMES)}")
    wired: Wired = import_module(f".{name}", __package__).Wired()
    return wired
