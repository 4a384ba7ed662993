# SPDX-License-Identifier: GPL-3.0-or-later
"""Which rule decides about a new connection: the datapath's admission, step by step (``handshake.h``). Pure.

The order is that of the programs, so that the reason is the one that they count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

ADMITTED = "admitted"


@dataclass(frozen=True)
class Seen:
    """What the live maps say. ``mode``: as the map has it, None where no datapath is loaded. ``lease_over``: its
    deadline has passed. ``services``: whether the server's port, and the client's where it is given, are listed.

    ``client``, ``server``: the interface of the workload with that address, None where it is none of this node.
    ``peer``: what the map ``peers`` says of the other end, None where nothing. ``carried``: whether the workload's
    interface is one that carries the programs. ``ways``: the trials of that interface, and their states.
    """

    mode: str | None
    lease_over: bool = False
    services: tuple[bool, bool] = (False, False)
    client: str | None = None
    server: str | None = None
    peer: str | None = None
    carried: bool = True
    ways: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """``reason``: as in the statistics, where the rule does not hold."""

    rule: str
    holds: bool
    says: str
    reason: str


def walk(seen: Seen, client: str, server: str, port: int) -> dict[str, Any]:
    """``decides``: the reason that the datapath counts, or ``admitted``. ``steps``: the rules up to the one that
    decides."""
    steps, decides = [], ADMITTED
    for step in _steps(seen, client, server, port):
        steps.append({"rule": step.rule, "holds": step.holds, "says": step.says})
        if not step.holds:
            decides = step.reason
            break
    return {
        "decides": decides,
        "eligible": decides == ADMITTED,
        "hook": "workload" if seen.client else "uplink",
        "steps": steps,
        "ways": list(seen.ways),
    }


def _steps(seen: Seen, client: str, server: str, port: int) -> Iterator[Step]:
    yield Step("a datapath is loaded", seen.mode is not None, f"mode {seen.mode or 'absent'}", "absent")
    yield Step("the mode is not off", seen.mode != "off", f"mode {seen.mode}", "off")
    listed = f"TCP {port} is {'' if seen.services[0] else 'not '}in overlay_services"
    yield Step("one of the ports is a service", any(seen.services), listed, "not_service")
    lease = "its lease is over" if seen.lease_over else "no lease, or one that runs"
    yield Step("the mode has not run out", not seen.lease_over, lease, "lease_expired")
    yield Step("the mode admits new connections", seen.mode == "on", f"mode {seen.mode}", "draining")
    yield Step("the port connected to is a service", seen.services[0], listed, "not_service")
    workload, other = (client, server) if seen.client else (server, client)
    interface = seen.client or seen.server
    where = f"{workload} is {f'a workload, on {interface}' if interface else 'no workload'} of this node"
    yield Step("one end is a workload of this node", interface is not None, where, "not_workload")
    both = seen.client is not None and seen.server is not None
    yield Step(
        "the other end is none", not both, f"{other} is {'a' if both else 'no'} workload of this node", "same_node"
    )
    known = f"{other} is {'in' if seen.peer else 'not in'} the list of peers"
    yield Step("the other end is a listed peer", seen.peer is not None, known, "not_peer")
    own = f"{other} is {'an' if seen.peer == 'own' else 'no'} address of the node itself"
    yield Step("the other end is not this node", seen.peer != "own", own, "host_address")
    carries = f"{interface} {'carries' if seen.carried else 'does not carry'} the overlay's programs"
    yield Step("the workload's interface takes part", seen.carried, carries, "interface_gone")
