# SPDX-License-Identifier: GPL-3.0-or-later
"""Which flows a person means, what state they are in, and how one is suspended for a time. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError

FAST, TRYING, WAITING, SUSPENDED, ENDING = STATES = ("fast", "trying", "waiting", "suspended", "ending")
MEANINGS = {
    FAST: "its packets take the shortcut between two heartbeats",
    TRYING: "it is the one that tries a way that is not proven yet",
    WAITING: "it stays in the kernel's path until its way is proven, or its turn has come",
    SUSPENDED: "it takes the kernel's path",
    ENDING: "a FIN or RST was seen to come out",
}

Flow = Mapping[str, Any]
"""Key and value of an entry of the map ``flows`` in one."""


@dataclass(frozen=True)
class Selection:
    """``address``: a prefix that holds an end of the flow. ``port``: of the same end. ``state``: one of :data:`STATES`.
    Each is None for any."""

    address: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None
    port: int | None = None
    state: str | None = None

    def matches(self, key: Flow) -> bool:
        """By the ends alone; the state is asked of the value."""
        ends = [(key["workload"], key["workload_port"]), (key["remote"], key["remote_port"])]
        return any(self._holds(address) and self.port in (None, port) for address, port in ends)

    def _holds(self, address: str) -> bool:
        if self.address is None:
            return True
        found = ipaddress.ip_address(address)
        return found.version == self.address.version and found in self.address

    def __str__(self) -> str:
        named = {"address": self.address, "port": self.port, "state": self.state}
        return ", ".join(f"{name} {value}" for name, value in named.items() if value is not None) or "all flows"


def select(address: str | None, port: int | None, state: str | None = None) -> Selection:
    """Raises :class:`OverlayError` for what is no address or prefix."""
    try:
        return Selection(ipaddress.ip_network(address, strict=False) if address else None, port, state)
    except ValueError as error:
        raise OverlayError("find flows", str(address), error, "Give an address or a prefix.") from error


def state_of(flow: Flow, now: int) -> str:
    """``now``: in jiffies."""
    if flow["seen"] > now or flow["ways[0]"]["owed"] or flow["ways[1]"]["owed"]:
        return SUSPENDED
    if flow["ended"]:
        return ENDING
    return {"proven": FAST, "running": TRYING}.get(flow["trial"], WAITING)


def told(flow: Flow, now: int, second: int) -> dict[str, Any]:
    """What a person wants to know. ``second``: in jiffies. ``suspended_for``: seconds, None where it is the datapath
    that suspended it, until two heartbeats came out."""
    inwards, outwards = flow["ways[0]"], flow["ways[1]"]
    left = flow["seen"] - now
    return {
        "workload": flow["workload"],
        "workload_port": flow["workload_port"],
        "remote": flow["remote"],
        "remote_port": flow["remote_port"],
        "state": state_of(flow, now),
        "suspended_for": round(left / second, 1) if left > 0 else None,
        "opened_by": "workload" if flow["opened_by"] == "workload" else "remote",
        "heartbeat_ago": round(-left / second, 1) if left <= 0 else None,
        "interface": inwards["out"],
        "uplink": outwards["out"],
    }


def suspended(flow: Flow, until: int) -> dict[str, Any]:
    """The value of an entry of ``flows`` that leaves its packets to the kernel until then (jiffies).

    The datapath takes no flow for known that was seen longer ago than its idle timeout (``look_up()`` in
    ``shortcut.h``). What was seen in the future is, in unsigned numbers, longer ago than anything. Nothing is awaited
    any more, so that no heartbeat under way sets the time anew; a way must be proven before it is used again.
    """
    ways = {name: {**flow[name], "proven": 0, "asked": 0} for name in ("ways[0]", "ways[1]")}
    return {**flow, **ways, "seen": until}
