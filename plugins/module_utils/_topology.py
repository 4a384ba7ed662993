# SPDX-License-Identifier: GPL-3.0-or-later
"""From the facts of all nodes to what one node's maps must hold. Pure.

Facts of a node are what the module ``overlay_facts`` returns. The picture of the cluster is built once from all of
them and says what nodes must know about each other; everything else a node knows itself.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import OLDEST
from ansible_collections.ebpf.overlay.plugins.module_utils._layout import DEVICE_PROBES, DEVICES, PIN_DIR
from ansible_collections.ebpf.overlay.plugins.module_utils._peers import workload_prefixes
from ansible_collections.ebpf.overlay.plugins.module_utils._services import service_entries
from ansible_collections.ebpf.overlay.plugins.module_utils._uplinks import RouteTable, find_links, is_default
from ansible_collections.ebpf.overlay.plugins.module_utils._workloads import NEVER_BY_PEER, told

Facts = Mapping[str, Any]

FORMAT = 2
"""Of the facts. Those of another release, in a cache, are as good as none."""


@dataclass(frozen=True)
class Controller:
    """Where Ansible runs: its ``identity`` (machine id, boot id), and by name the addresses that it dials for nodes,
    where the inventory gives them as numbers."""

    identity: tuple[str, ...] = ()
    dialled: Mapping[str, str] = field(default_factory=dict)


# --- the cluster ------------------------------------------------------------------------------------------------------


def build_picture(
    facts: Mapping[str, Facts | None],
    fresh: Container[str],
    now: float = 0,
    max_age: float = 0,
    controller: Controller = Controller(),
) -> dict[str, dict[str, Any]]:
    """What nodes must know of each other: ``nodes`` (name -> ``addresses`` without prefix length, ``prefixes`` of its
    workloads, and the addresses of a few ``workloads`` for probes), and ``missing``, the nodes that it does not know
    (name -> why).

    ``facts``: by node name, None where there are none. ``fresh``: the nodes whose facts this run gathered; all others
    come from a cache and must not be older than ``max_age`` seconds at ``now`` (seconds since the epoch).
    Raises :class:`OverlayError` when two nodes are one machine or claim one address, one has the controller's
    facts, or one has a kernel that is too old.
    """
    known: dict[str, Facts] = {}
    addresses: dict[str, set[str]] = {}
    missing: dict[str, str] = {}
    owners: dict[Any, str] = {}
    for name, node in facts.items():
        why = _why_not(node, name in fresh, now, max_age)
        if node is None or why:
            missing[name] = why
            continue
        if not node["capabilities"]["supported"]:
            raise OverlayError(
                "build the picture of the cluster",
                f"node {name}",
                f"its kernel {node['kernel']['release']} is older than Linux {'.'.join(map(str, OLDEST))}",
                "Upgrade its kernel, or take it out of the group.",
            )
        dialled = controller.dialled.get(name)
        # What tells this machine from others; all else that it has may move, or be the same on many.
        names = {address for uplink in node["uplinks"] for address in uplink["primary"]}
        names.update({dialled} & set(node["addresses"]))
        claims: dict[Any, str] = {address: f"both have the address {address}" for address in sorted(names)}
        identity = tuple(node["identity"].values())
        if identity == controller.identity and dialled and dialled not in node["addresses"]:
            raise OverlayError(
                "build the picture of the cluster",
                f"node {name}",
                f"its facts are those of the controller, which has no address {dialled}",
                "A connection led to the wrong machine: look for ansible_connection or delegate_to in the inventory.",
            )
        if identity and all(identity):
            # Clones share the one, containers of a machine the other.
            claims[identity] = "the facts of both come from one machine (same machine id, same boot)"
        for claim, reason in claims.items():
            other = owners.setdefault(claim, name)
            if other != name:
                raise OverlayError(
                    "build the picture of the cluster",
                    f"nodes {other} and {name}",
                    reason,
                    "One machine is in the inventory twice, an address is used twice, or cached facts are of another "
                    "time; correct the inventory, or gather the facts of both again.",
                )
        known[name] = node
        addresses[name] = {*node["own_addresses"], *names}
    claimed = Counter(address for listed in addresses.values() for address in listed)
    listed = {
        name: sorted(one for one in found if claimed[one] == 1 or owners.get(one) == name)
        for name, found in addresses.items()
    }
    prefixes = workload_prefixes(
        listed,
        {name: node["workload_prefixes"] for name, node in known.items()},
        ((route["prefix"], route["gateway"]) for node in known.values() for route in node["routes"]),
    )
    nodes = {
        name: {"addresses": listed[name], "prefixes": prefixes[name], "workloads": _for_probes(node["workloads"])}
        for name, node in known.items()
    }
    return {"nodes": nodes, "missing": missing}


def _for_probes(workloads: Sequence[Facts]) -> list[str]:
    return [workload["address"] for workload in workloads[:3]]


def _why_not(node: Facts | None, fresh: bool, now: float, max_age: float) -> str:
    if node is None:
        return "no facts"
    if node.get("format") != FORMAT:
        return "facts are those of another release of the collection"
    if fresh:  # the node's clock is trusted only where nothing else is known
        return ""
    age = now - node["gathered_at"]
    return "" if age <= max_age else f"facts are {age / 3600:.1f} h old"


# --- one node's maps --------------------------------------------------------------------------------------------------


def plan_node(name: str, facts: Facts, picture: Mapping[str, Facts], services: Any) -> dict[str, Any]:
    """What node ``name`` must be: ``maps`` (name -> entries for the module ``bpf_map_sync``), ``attachments`` (for
    ``tc_bpf_attach``, reply side first), the names of its ``uplinks``, the number of ``peers``, and ``notes``:
    sentences about what stays in the kernel's path.

    While the picture misses nodes, the peers that the node knows already stay: some of them may be theirs.
    Raises :class:`OverlayError` for a service that cannot be accelerated.
    """
    others = {other: node for other, node in picture["nodes"].items() if other != name}
    uplinks, left_out = _find_uplinks(facts, others)
    peers = _find_peers(facts, others, uplinks)
    if picture["missing"]:
        there = {interface["ifindex"]: interface for interface in facts["interfaces"]}
        for entry in facts["known_peers"]:
            uplink = there.get(entry["value"]["uplink"])
            if uplink and (uplink["name"] in uplinks or (facts["uplinks_by_route"] and not uplink["unfit"])):
                uplinks.setdefault(uplink["name"], uplink["ifindex"])
                peers.setdefault(entry["key"], dict(entry["value"]))
    for address in facts["addresses"]:
        peers[_prefix(address)] = {"uplink": 0, "mtu": 0, "next_hop": "::"}

    workloads = [workload for workload in facts["workloads"] if not workload["never_admitted"]]
    carriers = {workload["interface"]: workload["ifindex"] for workload in workloads}
    return {
        "maps": {
            "ifindex_map": [
                {
                    "key": workload["address"],
                    "value": {"ifindex": workload["ifindex"], "mtu": workload["mtu"], "flags": _flags(workload)},
                }
                for workload in workloads
            ],
            "services": service_entries(services),
            "peers": [{"key": prefix, "value": value} for prefix, value in sorted(peers.items())],
            "devices": [
                {"key": place, "value": ifindex}
                for place, ifindex in place_devices([*carriers.values(), *uplinks.values()])
            ],
        },
        "attachments": [
            {"interface": interface, "direction": "ingress", "program": f"{PIN_DIR}/from_workload"}
            for interface in sorted(carriers)
        ]
        + [
            {"interface": uplink, "direction": "ingress", "program": f"{PIN_DIR}/from_uplink"}
            for uplink in sorted(uplinks)
        ],
        "uplinks": sorted(uplinks),
        "peers": len(others),
        "notes": _notes(facts, others, uplinks, left_out),
    }


def _flags(workload: Facts) -> int:
    return NEVER_BY_PEER if workload["never_by_peer"] else 0


def _find_uplinks(facts: Facts, others: Mapping[str, Facts]) -> tuple[dict[str, int], dict[str, str]]:
    """Name -> ifindex of the uplinks, those included by which the node reaches the ``others`` and their workloads; and
    name -> reason of the links that would be uplinks."""
    uplinks = {uplink["name"]: uplink["ifindex"] for uplink in facts["uplinks"]}
    if not facts["uplinks_by_route"]:
        return uplinks, {one["name"]: one["reason"] for one in facts["links_left_out"]}
    addresses = [address for node in others.values() for address in node["addresses"]]
    prefixes = [prefix for node in others.values() for prefix in node["prefixes"]]
    links = find_links(facts["routes"], addresses, prefixes)
    links |= {route["interface"] for route in facts["routes"] if is_default(route["prefix"])}
    left_out = {}
    for interface in facts["interfaces"]:
        if interface["name"] in links:
            if interface["unfit"]:
                left_out[interface["name"]] = interface["unfit"]
            else:
                uplinks.setdefault(interface["name"], interface["ifindex"])
    return uplinks, left_out


def _notes(
    facts: Facts, others: Mapping[str, Facts], uplinks: Mapping[str, int], left_out: Mapping[str, str]
) -> list[str]:
    notes = [f"link {name} is no uplink: {reason}" for name, reason in sorted(left_out.items())]
    if not uplinks:
        notes.append("no uplink was found: nothing will take the fast path; see overlay_uplinks")
    if others and not any(node["prefixes"] for node in others.values()):
        notes.append(
            "no workload prefix of another node is known, so only the nodes themselves are peers; see overlay_peers"
        )
    return notes + told(facts["workloads"])


def _find_peers(facts: Facts, others: Mapping[str, Facts], uplinks: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Entries of the map ``peers`` by prefix: the other nodes, and what this node routes through them."""
    routes = [route for route in facts["routes"] if not is_default(route["prefix"])]
    table = RouteTable(facts["routes"])
    addresses = [address for node in others.values() for address in node["addresses"]]
    gateways = set(addresses)
    ways = [(address, hop) for address in addresses for hop in table.find(address)[:1]]
    ways += [(route["prefix"], route) for route in routes if route["gateway"] in gateways]
    mtus = {interface["name"]: interface["mtu"] for interface in facts["interfaces"]}
    return {
        _prefix(prefix): {
            "uplink": uplinks[route["interface"]],
            "mtu": mtus[route["interface"]],
            "next_hop": route["gateway"] or "::",
        }
        for prefix, route in ways
        if route["interface"] in uplinks and route["interface"] in mtus
    }


def place_devices(ifindexes: Iterable[int]) -> list[tuple[int, int]]:
    """``(place in the map devices, ifindex)`` of every interface, where the datapath looks for it.

    Raises :class:`OverlayError` where more interfaces want the same few places than there are (DEVICE_PROBES).
    """
    places: dict[int, int] = {}
    for ifindex in sorted(set(ifindexes)):
        candidates = (
            ((ifindex + probe * 0x9E3779B9) * 0x85EBCA6B & 0xFFFFFFFF) >> 19 for probe in range(DEVICE_PROBES)
        )
        place = next((place for place in candidates if place not in places), None)
        if place is not None:
            places[place] = ifindex
    return sorted(places.items())


def _prefix(text: str) -> str:
    return str(ipaddress.ip_network(text, strict=False))
