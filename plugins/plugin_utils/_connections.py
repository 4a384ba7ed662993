# SPDX-License-Identifier: GPL-3.0-or-later
"""Which part of the connections was admitted, and where the others ended, from the datapath's counters. Pure.

The datapath counts each step of a handshake once, but for a SYN or a SYN-ACK that is sent again and comes out again:
then a later step may seem to be reached more often than an earlier one, and the earlier count is believed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

Counts = Mapping[str, Mapping[str, int]]
Connections = dict[str, Any]

# Step of a handshake -> whether the opener's side counts it, what is meant by ending there, and the likely causes.
_STEPS: dict[str, tuple[bool, str, str]] = {
    "syn_in": (
        True,
        "the SYN did not come out at the other side",
        "the packet filter or a policy refused it; its addresses or ports were translated; it left by a link that is "
        "no uplink (a tunnel, a port of a bridge), or to an interface that is no workload's",
    ),
    "syn_out": (
        True,
        "no SYN-ACK came back",
        "nobody listens there; the answer came by a link that is no uplink, or somebody's filter took it ahead of the "
        "overlay",
    ),
    "answer_in": (
        False,
        "the SYN-ACK did not come out at the side of the SYN",
        "it left by another link (asymmetric routes, a tunnel), with other addresses or ports, or the packet filter "
        "refused it",
    ),
    "answer_out": (
        False,
        "no ACK came",
        "the client gave up or only sent a SYN (a scan, a flood), or its ACK came by a link that is no uplink",
    ),
    "ack_in": (
        True,
        "the ACK did not come out",
        "the packet filter refused it, or the workload's interface changed meanwhile",
    ),
}
# Only a SYN of a listed service is counted by these.
_NOT_ELIGIBLE = {
    "not_peer": "the other end is no peer; see overlay_peers",
    "not_workload": "the address is no workload's: that of a service, the node's own, or one that is excluded",
    "same_node": "both ends are on this node",
    "host_address": "the other end is this node itself",
    "draining": "the mode was drain",
}


def connections(counters: Counts) -> Connections:
    """``begun``: connections of listed services, workloads and peers; ``admitted`` of them, and their ``share`` (None:
    there was none); ``ended``: how many of the others ended at which ``step`` (the last that was seen), what that
    ``means`` and its likely ``causes``; ``not_eligible``: SYNs that began none, by reason; ``older``: packets of
    connections that are older than the overlay, translated, or ended in that list."""

    def counted(name: str, side: str) -> int:
        return counters.get(f"{side}.{name}", {}).get("packets", 0)

    begun = admitted = 0
    ended: Counter[str] = Counter()
    for opener, other in (("uplink", "workload"), ("workload", "uplink")):
        reached = [counted(step, opener if own else other) for step, (own, _means, _causes) in _STEPS.items()]
        reached.append(counted("admitted", opener))
        for place in range(1, len(reached)):
            reached[place] = min(reached[place - 1], reached[place])
        ended.update({step: reached[place] - reached[place + 1] for place, step in enumerate(_STEPS)})
        begun, admitted = begun + reached[0], admitted + reached[-1]
    refused = {name: sum(counted(name, side) for side in ("uplink", "workload")) for name in _NOT_ELIGIBLE}
    return {
        "begun": begun,
        "admitted": admitted,
        "share": round(admitted / begun, 4) if begun else None,
        "ended": [
            {"step": step, "connections": ended[step], "means": means, "causes": causes}
            for step, (_own, means, causes) in _STEPS.items()
            if ended[step]
        ],
        "not_eligible": {name: number for name, number in refused.items() if number},
        "older": counted("unknown_flow", "uplink") + counted("unknown_flow", "workload"),
    }


def total(found: Iterable[Connections]) -> Connections:
    """``begun``, ``admitted`` and ``share`` of several nodes."""
    found = list(found)
    begun, admitted = (sum(one[key] for one in found) for key in ("begun", "admitted"))
    return {"begun": begun, "admitted": admitted, "share": round(admitted / begun, 4) if begun else None}


_ENOUGH = 0.95


def told(found: Connections, everything: bool = True) -> list[str]:
    """Sentences about the connections that were not admitted. Not ``everything``: only what is worth a look, which is
    less than 95 % admitted, and more SYNs that are not eligible than others."""
    lines = []
    if everything or (found["share"] is not None and found["share"] < _ENOUGH):
        for one in found["ended"]:
            lines.append(
                f"of {found['begun']} connections {one['connections']} were not admitted, since {one['means']}: "
            )
            lines[-1] += one["causes"]
    for name, number in found["not_eligible"].items():
        if everything or number > found["begun"]:
            lines.append(
                f"{number} SYNs of listed services are for no connection of the fast path: {_NOT_ELIGIBLE[name]}"
            )
    return lines
