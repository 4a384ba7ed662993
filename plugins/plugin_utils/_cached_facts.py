# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether facts that a cache kept can be believed. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What the picture and the plans of other nodes need.
_NEEDED = ("addresses", "capabilities", "identity", "kernel", "uplinks")
# Seconds by which the controller's own clock may have been set back since.
_SLACK = 60


def why_not(facts: Any, now: float, max_age: float, dialled: str) -> str:
    """Why these facts of a node that this run did not gather are not believed; empty where they are.

    ``now``: the controller's clock, seconds since the epoch; it also made the stamp in the facts. ``max_age``: seconds.
    ``dialled``: the address or name under which the inventory reaches the node now.
    """
    if facts is None:
        return "no facts"
    if not isinstance(facts, Mapping) or any(name not in facts for name in _NEEDED):
        return "its cached facts are incomplete"
    gathered = facts.get("gathered_at")
    if isinstance(gathered, bool) or not isinstance(gathered, (int, float)):
        return "its cached facts have no date"
    if gathered > now + _SLACK:
        return f"its cached facts are from the future, by {gathered - now:.0f} s"
    if now - gathered > max_age:
        return f"its cached facts are {(now - gathered) / 3600:.1f} h old"
    known = str(facts.get("dialled", dialled))
    if known != dialled:
        return f"its cached facts are of another machine: they were gathered from {known}, the inventory says {dialled}"
    return ""
