# SPDX-License-Identifier: GPL-3.0-or-later
"""What the nodes said about themselves -> one document of plain data about the fleet. Pure.

docs/status.md describes the document; its table on the terminal and its page are made from nothing else.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import uplinks as _uplinks
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import wiring as _wiring
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import workloads as _workloads
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.reasons import EVENTS, PASSED, REASONS
from ansible_collections.ebpf.overlay.plugins.plugin_utils import _connections
from ansible_collections.ebpf.overlay.plugins.plugin_utils._wiring_report import alike

FORMAT = 1
OWNER = "ebpf.overlay"
ELSEWHERE = "elsewhere"

# The numbers are in this order: what went the short way, why a packet did not, what became of handshakes and flows.
_REDIRECTED = frozenset(name for number, (name, __) in REASONS.items() if number < PASSED)
_PASSED = frozenset(name for number, (name, __) in REASONS.items() if PASSED <= number < EVENTS)
# Packets that are none of a listed service: no fast path is meant for them.
_NOT_MEANT = frozenset(("not_ip", "not_tcp", "malformed", "fragment", "not_service"))

# What a node can be: overlaid, bare (no overlay), drifted, unreachable, failed (its status could not be read).
TROUBLED = ("unreachable", "failed")


def fleet_status(names: Iterable[str], hostvars: Mapping[str, Any], when: str) -> dict[str, Any]:
    """The document. ``hostvars``: with what the tasks of ``status.yml`` registered; ``when``: a time, for people."""
    nodes = [_node(name, hostvars[name]) for name in names]
    totals = Counter(node["state"] for node in nodes)
    traffic = _sum(node["traffic"] for node in nodes if node["traffic"])
    return {
        "format": FORMAT,
        "when": when,
        "totals": {
            "nodes": len(nodes),
            **{state: totals.get(state, 0) for state in ("overlaid", "drifted", "bare", *TROUBLED)},
            "workloads": sum(len(node["workloads"]) for node in nodes),
            "flows": sum(node["flows"]["open"] for node in nodes if node["flows"]),
            "traffic": traffic,
            "connections": _connections.total(node["connections"] for node in nodes if node["connections"]),
        },
        "nodes": nodes,
        "links": _links(nodes),
    }


def _node(name: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    reads = {
        key: _registered(variables, f"node_{key}") for key in ("looked", "attached", "stats", "flows", "generation")
    }
    node: dict[str, Any] = {
        "name": name,
        "state": "bare",
        "reason": None,
        "generation": None,
        "digest": None,
        "pending": None,
        "mode": None,
        "uplinks": [],
        "addresses": [],
        "workloads": [],
        "wiring": None,
        "notes": [],
        "attachments": [],
        "drift": [],
        "counters": {},
        "traffic": None,
        "connections": None,
        "flows": None,
    }
    if any(variables.get(f"node_{key}", {}).get("unreachable") for key in reads):
        return {**node, "state": "unreachable", "reason": _unreachable(variables, reads)}
    facts = (reads["looked"] or {}).get("ansible_facts", {}).get("overlay")
    if facts:
        node.update(_placed(facts))
    if reads["attached"]:
        node["attachments"] = _attachments(reads["attached"]["interfaces"])
        # Some are uplinks only because of the cluster's other nodes.
        attached = {item["interface"] for item in node["attachments"] if item["program"] == "from_uplink"}
        node["uplinks"] = sorted({*node["uplinks"], *attached})
    if reads["stats"]:
        node["counters"] = _counters(reads["stats"]["entries"])
        if reads["stats"]["exists"]:
            node["traffic"] = _traffic(node["counters"])
            node["connections"] = _connections.connections(node["counters"])
    if reads["flows"]:
        node["flows"] = {"open": reads["flows"]["flows"], "pairs": reads["flows"]["pairs"]}
    generation = reads["generation"]
    if generation:
        node.update(
            generation=generation["number"],
            digest=generation["digest"],
            pending=generation["pending"],
            drift=generation["drift"],
        )
    if facts:
        recorded = {one["number"] for one in (generation or {}).get("generations", ())}
        node.update(_wired(facts, node, node["generation"] in recorded))
    if variables.get("node_trouble") or not all(reads.values()):
        return {**node, "state": "failed", "reason": variables.get("node_trouble") or "it was not read"}
    return {**node, "state": _state(node)}


def _state(node: Mapping[str, Any]) -> str:
    if any(item["kind"] != "ahead" for item in node["drift"]):
        return "drifted"
    if node["generation"] or node["mode"] or node["attachments"]:
        return "overlaid"
    return "bare"


def _registered(variables: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """What a task registered, None where it did not succeed."""
    result = variables.get(name) or {}
    good = result and not any(result.get(word) for word in ("failed", "skipped", "unreachable"))
    return result if good else None


def _unreachable(variables: Mapping[str, Any], reads: Iterable[str]) -> str:
    told = [variables.get(f"node_{key}", {}) for key in reads]
    return next((" ".join(str(one.get("msg", "")).split()) for one in told if one.get("unreachable")), "")[:300]


def _placed(facts: Mapping[str, Any]) -> dict[str, Any]:
    workloads: dict[str, list[str]] = {}
    for workload in facts["workloads"]:
        workloads.setdefault(workload["interface"], []).append(workload["address"])
    control = facts["control"]
    return {
        "mode": control["mode"] if control else None,
        "uplinks": [uplink["name"] for uplink in facts["uplinks"]],
        "addresses": list(facts["addresses"]),
        "workloads": [
            {"interface": interface, "addresses": sorted(addresses, key=_address_order)}
            for interface, addresses in sorted(workloads.items(), key=lambda item: _address_order(min(item[1])))
        ],
    }


def _wired(facts: Mapping[str, Any], node: Mapping[str, Any], recorded: bool) -> dict[str, Any]:
    """``wiring``, as the plan tells it, but of what is on the node; and the sentences about what is missing.
    ``recorded``: whether the node has the record of its generation, in which its peers are."""
    peers = [peer for peer in facts["known_peers"] if not _uplinks.is_default(peer)]
    ways = _uplinks.ways_to(facts["routes"], peers)
    left_out = {one["name"]: one["reason"] for one in facts["links_left_out"]}
    if facts["uplinks_by_route"]:
        left_out.update(
            {one["name"]: one["unfit"] for one in facts["interfaces"] if one["name"] in ways and one["unfit"]}
        )
    links = [{"name": name, "reason": reason} for name, reason in left_out.items()]
    wiring = _wiring.describe(facts, node["uplinks"], links, facts["known_peers"], ways)
    notes = _uplinks.told(links) + _workloads.told(facts["workloads"])
    if recorded:
        notes += _wiring.lacks(facts["workloads"], node["uplinks"], facts["known_peers"])
    return {"wiring": wiring if recorded else {**wiring, "peers": None}, "notes": notes}


def _address_order(address: str) -> tuple[int, int]:
    parsed = ipaddress.ip_address(address)
    return parsed.version, int(parsed)


def _attachments(interfaces: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "interface": link["name"],
            "direction": direction,
            "program": entry["name"].partition(":")[2],
            **{key: entry[key] for key in ("mechanism", "priority", "handle", "hidden_by")},
        }
        for link in interfaces
        for direction in ("ingress", "egress")
        for entry in link[direction]
        if entry["owner"] == OWNER
    ]


def _counters(entries: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """``direction.reason`` -> packets and bytes, without those that are zero."""
    return {
        entry["key"]: {"packets": int(entry["value"]["packets"]), "bytes": int(entry["value"]["bytes"])}
        for entry in entries
        if int(entry["value"]["packets"])
    }


def _traffic(counters: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Packets and bytes by path. ``kernel``: of the listed services; ``other``: all else that the hooks saw."""
    found = {path: {"packets": 0, "bytes": 0} for path in ("fast", "kernel", "other")}
    for label, count in counters.items():
        name = label.partition(".")[2]
        path = "fast" if name in _REDIRECTED else "other" if name in _NOT_MEANT else "kernel"
        if name in _REDIRECTED or name in _PASSED:
            for unit in ("packets", "bytes"):
                found[path][unit] += count[unit]
    return {**found, "share": _share(found)}


def _sum(traffics: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    found = {path: {"packets": 0, "bytes": 0} for path in ("fast", "kernel", "other")}
    for traffic in traffics:
        for path, units in found.items():
            for unit in units:
                units[unit] += traffic[path][unit]
    return {**found, "share": _share(found)}


def _share(traffic: Mapping[str, Mapping[str, int]]) -> float | None:
    """Of the packets of listed services, the part on the fast path; None where there was none."""
    meant = traffic["fast"]["packets"] + traffic["kernel"]["packets"]
    return round(traffic["fast"]["packets"] / meant, 4) if meant else None


def _links(nodes: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Flows by the node that redirects them and the node of their other end."""
    owners = {}
    for node in nodes:
        for address in [*node["addresses"], *(one for workload in node["workloads"] for one in workload["addresses"])]:
            owners[address] = node["name"]
    found: Counter[tuple[str, str]] = Counter()
    for node in nodes:
        for pair in (node["flows"] or {}).get("pairs", ()):
            found[node["name"], owners.get(pair["remote"], ELSEWHERE)] += int(pair["flows"])
    return [{"node": node, "remote": remote, "flows": flows} for (node, remote), flows in sorted(found.items())]


# --- on the terminal --------------------------------------------------------------------------------------------------

_MOST_ITEMS = 100  # of a node; a map may lack every entry
_HEADS = (
    *("node", "state", "generation", "mode", "workloads", "attached", "flows", "admitted", "fast path"),
    "packets fast / kernel",
)


def status_table(fleet: Mapping[str, Any]) -> list[str]:
    """The lines of a table, what differs below it."""
    rows = [_HEADS, *(_row(node) for node in fleet["nodes"])]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    for node in fleet["nodes"]:
        if node["reason"]:
            lines.append(f"{node['name']}: {node['reason']}")
        lines += [f"{node['name']}: {sentence(item)}" for item in node["drift"][:_MOST_ITEMS]]
        if more := len(node["drift"][_MOST_ITEMS:]):
            lines.append(f"{node['name']}: and {more} more objects that differ, all in the JSON")
        lines += [f"{node['name']}: {note}" for note in node["notes"]]
        if node["connections"]:
            lines += [f"{node['name']}: {line}" for line in _connections.told(node["connections"], False)]
    return lines + alike({node["name"]: node["wiring"] for node in fleet["nodes"] if node["wiring"]})


def _row(node: Mapping[str, Any]) -> tuple[str, ...]:
    if node["state"] == "unreachable":
        return (node["name"], node["state"], *["-"] * (len(_HEADS) - 2))
    attached = Counter(item["program"] for item in node["attachments"])
    traffic = node["traffic"]
    generation = "-" if node["generation"] is None else f"{node['generation']} {node['digest'][:8]}".rstrip()
    waiting = f" ({node['pending']} waits)" if node["pending"] else ""
    return (
        node["name"],
        node["state"],
        generation + waiting,
        node["mode"] or "not loaded",
        str(len(node["workloads"])),
        ", ".join(f"{count} {program}" for program, count in sorted(attached.items())) or "nothing",
        str(node["flows"]["open"]) if node["flows"] else "-",
        share_text(node["connections"]),
        share_text(traffic),
        f"{traffic['fast']['packets']} / {traffic['kernel']['packets']}" if traffic else "-",
    )


def share_text(traffic: Mapping[str, Any] | None) -> str:
    """``96 %``; never 100 or 0 where it is not exactly that."""
    if not traffic or traffic["share"] is None:
        return "-"
    share = traffic["share"]
    if 0 < share < 0.01:
        return "< 1 %"
    return "> 99 %" if 0.99 < share < 1 else f"{share:.0%}".replace("%", " %")


def sentence(item: Mapping[str, Any]) -> str:
    """One object that differs, for people."""
    owner = f" (owner: {item['owner']})" if item["owner"] else ""
    if item["kind"] in ("hidden", "ahead"):
        return f"{item['object']}: {item['found']}{owner}"
    if item["kind"] == "unknown":
        return f"{item['object']}: {item['found']}"
    wanted = item["wanted"] or "nothing"
    return f"{item['object']}: should be {wanted}; there is {item['found'] or 'nothing'}{owner}"
