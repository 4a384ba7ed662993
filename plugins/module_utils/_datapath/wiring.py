# SPDX-License-Identifier: GPL-3.0-or-later
"""What is told of a node's wiring: its uplinks and why they are, how many peers it has, and what is missing. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import uplinks as _uplinks
from . import workloads as _workloads
from .peers import is_address

Facts = Mapping[str, Any]

_LOST = "stay in the kernel's path; see overlay_peers"


def describe(
    facts: Facts, uplinks: Iterable[str], left_out: Sequence[Facts], peers: Sequence[str], ways: Mapping[str, Facts]
) -> dict[str, Any]:
    """``uplinks`` (``name, why, addresses, prefixes``: why it is one, and how many peers the node reaches by it),
    ``links_left_out`` (``name, reason``), ``peers`` (how many ``addresses`` and ``prefixes``), and ``kernel_path``: the
    workloads that can never take the fast path (``address, interface, reason``). ``ways``: what
    :func:`_uplinks.ways_to` returns for the peers."""
    none = {"addresses": 0, "prefixes": 0}
    return {
        "uplinks": [{"name": name, "why": _why(facts, name, ways), **ways.get(name, none)} for name in sorted(uplinks)],
        "links_left_out": [{"name": one["name"], "reason": one["reason"]} for one in left_out],
        "peers": count(peers),
        "kernel_path": _workloads.in_kernels_path(facts["workloads"]),
    }


def _why(facts: Facts, name: str, ways: Mapping[str, Facts]) -> list[str]:
    if not facts["uplinks_by_route"]:
        return ["named by overlay_uplinks"]
    tables = {
        str(route.get("table") or "")
        for route in facts["routes"]
        if route["interface"] == name and _uplinks.is_default(route["prefix"])
    }
    found = [f"default route{f' of table {table}' if table else ''}" for table in sorted(tables)]
    return found + (["routes to peers"] if name in ways else [])


def count(peers: Iterable[str]) -> dict[str, int]:
    """How many of them are single ``addresses``, and how many ``prefixes``."""
    single = [is_address(peer) for peer in peers]
    return {"addresses": sum(single), "prefixes": len(single) - sum(single)}


def lacks(workloads: Sequence[Facts], uplinks: Iterable[str], peers: Sequence[str]) -> list[str]:
    """Sentences about what is missing for the fast path, whatever the reason."""
    found = []
    if not list(uplinks):
        found.append("no uplink was found: nothing will take the fast path; see overlay_uplinks")
    if workloads and not any(_workloads.qualifies(one) for one in workloads):
        found.append("none of its workloads can take the fast path")
    wide = [peer for peer in peers if not is_address(peer)]
    if not peers:
        found.append("it has no peers: nothing will take the fast path; see overlay_peers")
    elif not wide:
        found.append(
            f"no prefix of workloads is among its peers, only addresses: connections between workloads {_LOST}"
        )
    else:
        there = {":" in peer for peer in wide}
        own = {":" in one["address"] for one in workloads if _workloads.qualifies(one)}
        found += [
            f"no {'IPv6' if six else 'IPv4'} prefix is among its peers: such connections between workloads {_LOST}"
            for six in sorted(own - there)
        ]
    return found


def strangers(names: Sequence[str]) -> list[str]:
    """A sentence about the nodes whose workloads are no peers though others' are."""
    who = _workloads.some(names)
    return [f"workloads of {who} are no peers, since no route tells their prefix: these {_LOST}"] if names else []


def uplink_text(uplink: Facts, numbers: bool = True) -> str:
    """``eth0 (default route, routes to peers: 2 addresses and 4 prefixes)``"""
    told = ", ".join(uplink["why"]) or "attached"
    if numbers and (uplink["addresses"] or uplink["prefixes"]):
        told += f": {counted(uplink['addresses'], 'addresses')} and {counted(uplink['prefixes'], 'prefixes')}"
    return f"{uplink['name']} ({told})"


def counted(number: object, kind: str) -> str:
    """``1 prefix``, ``2 prefixes``"""
    return f"{number} {kind if str(number) != '1' else kind[:-2]}"
