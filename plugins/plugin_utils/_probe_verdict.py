# SPDX-License-Identifier: GPL-3.0-or-later
"""What probes of a node and its datapath's counters mean: did the overlay carry the very connections? Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

Told = Mapping[str, Any]

_CARRIED = {"uplink.to_workload", "workload.to_uplink"}
_TARGETS = 6


def judge(probed: Told, seen: Told, before: Told, peers: Iterable[str], uplinks: Collection[str]) -> dict[str, Any]:
    """``probed``: what ``overlay_probe`` returned where the connections were made. ``seen``, ``before``: what it
    returned on the node whose datapath is probed, after and before. ``peers``: prefixes of whom the overlay serves.
    ``uplinks``: names of the links that carry it.

    Returns ``failed`` and ``left_out`` (sentences), and ``again``: whether more patience may help. Flows between one
    workload's interface and one next hop try the fast path one after the other: of those that were admitted, one is
    enough.
    """
    flows = {_name(flow): flow for flow in seen.get("flows", ())}
    networks = [ipaddress.ip_network(peer) for peer in peers]
    connections = [(one, flows[_name(one["flow"])]) for one in probed.get("connections", ())]
    carried = {flow["interface"] for one, flow in connections if not _trouble(one, flow)}
    failed, left_out, again = [], [], True
    for one, flow in connections:
        trouble = _trouble(one, flow)
        if not trouble or (_waited(one, flow) and flow["interface"] in carried):
            continue
        if one["closed"]:
            left_out.append(f"{_name(flow)} was closed by the other end before a keepalive could travel")
        elif not any(ipaddress.ip_address(flow["remote"]) in network for network in networks):
            left_out.append(f"{_name(flow)} is not with a peer of the overlay")
        elif flow["link"] and flow["link"] not in uplinks:
            left_out.append(f"{_name(flow)} goes by way of {flow['link']}, which is no uplink of the overlay")
        else:
            failed.append(
                f"Cannot carry a connection by the fast path: {_name(flow)}. Reason: {trouble}. "
                f"Meanwhile the node counted {_grown(seen, before)}."
            )
            again = again and not one["retransmissions"]
    return {"failed": failed, "left_out": left_out, "again": bool(failed) and again}


def far_targets(nodes: Mapping[str, Told], others: Sequence[str], ports: Sequence[int]) -> list[dict[str, Any]]:
    """Services of a few workloads of other nodes, for a workload to connect to; the nodes by turns.

    ``nodes``: those of the picture; ``others``: their names, those to be asked first in front.
    """
    found = [
        (place, number, {"address": address, "port": port})
        for number, name in enumerate(others)
        for place, (address, port) in enumerate(
            (address, port) for address in nodes[name].get("workloads", ()) for port in ports
        )
    ]
    return [target for _place, _number, target in sorted(found, key=lambda entry: entry[:2])[:_TARGETS]]


def _trouble(one: Told, flow: Told) -> str:
    """What speaks against a connection, as half a sentence; empty for nothing."""
    if one["retransmissions"]:
        return f"{one['retransmissions']} segments were sent again"
    if not flow["admitted"]:
        return "its handshake was not seen going in and coming out"
    if not (flow["to_workload"] and flow["to_uplink"]):
        return f"{flow['to_workload']} packets took it to the workload, {flow['to_uplink']} to the uplink"
    if one["answered"] < one["keepalives"]:
        return f"{one['keepalives'] - one['answered']} of {one['keepalives']} keepalives were not answered"
    return ""


def _waited(one: Told, flow: Told) -> bool:
    """Whether nothing is wrong but that no packet took the fast path."""
    carried = flow["to_workload"] or flow["to_uplink"]
    return flow["admitted"] and not (carried or one["retransmissions"] or one["answered"] < one["keepalives"])


def _name(flow: Told) -> str:
    ends = (f"{_host(flow[end])}:{flow[f'{end}_port']}" for end in ("workload", "remote"))
    return " with ".join(ends)


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _grown(seen: Told, before: Told) -> str:
    former = before.get("counters", {})
    grown = {label: packets - former.get(label, 0) for label, packets in seen.get("counters", {}).items()}
    ranked = sorted(((n, label) for label, n in grown.items() if n > 0 and label not in _CARRIED), reverse=True)
    return ", ".join(f"{label} {packets}" for packets, label in ranked[:8]) or "nothing"
