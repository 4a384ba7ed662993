# SPDX-License-Identifier: GPL-3.0-or-later
"""Which machine this is, since when it runs, and its interfaces."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any


def identity() -> dict[str, str]:
    """``machine_id`` (machine-id(5); clones may share it) and ``boot_id`` (containers of one machine share it)."""
    return {"machine_id": _machine_id(), "boot_id": boot_id()}


def _machine_id() -> str:
    try:
        with open("/etc/machine-id", encoding="ascii") as stream:
            return stream.read().strip()
    except OSError:
        return ""


def boot_id() -> str:
    """Differs after every boot (random(4))."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
            return stream.read().strip()
    except OSError:
        return ""


def running_since() -> int:
    """When the first process here began, in clock ticks since the machine's boot (proc(5)); differs after every start
    of a container, too. 0 where that cannot be read.
    """
    try:
        with open("/proc/1/stat", encoding="utf-8") as stream:
            return int(stream.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def interface_table() -> dict[str, int]:
    """Name -> ifindex of all interfaces of this network namespace."""
    return {name: ifindex for ifindex, name in socket.if_nameindex()}


def run_of_this_machine() -> dict[str, Any]:
    """``machine_id``, ``boot_id`` and ``running_since``: together they name one life of one machine."""
    return {**identity(), "running_since": running_since()}


def why_another(gathered: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Why facts from ``gathered`` do not hold for a machine that is ``now`` (:func:`run_of_this_machine`); empty where
    they do. What either of them does not know counts as the same. Pure.
    """

    def differ(name: str) -> bool:
        return bool(gathered.get(name) and now.get(name) and str(gathered[name]) != str(now[name]))

    if differ("machine_id"):
        return f"it is another machine now: its machine id is {now['machine_id']}, and was {gathered['machine_id']}"
    if differ("boot_id") or differ("running_since"):
        return "it has started anew since its facts were gathered"
    return ""
