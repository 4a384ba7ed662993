# SPDX-License-Identifier: GPL-3.0-or-later
"""From the facts of all nodes to what one node's maps must hold. Pure.

Facts of a node are what the module ``overlay_facts`` returns. The picture of the cluster is built once from all of
them and says what nodes must know about each other; everything else a node knows itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.features import OLDEST

from . import uplinks as _uplinks
from . import wiring as _wiring
from . import workloads as _workloads
from .layout import DEVICE_PROBES, PIN_DIR
from .peers import (
    not_within,
    parse_peers,
    peer_entries,
    without_covered,
    workload_prefixes,
)
from .services import service_entries
from .uplinks import is_default, ways_to
from .workloads import NEVER_BY_PEER, qualifies

Facts = Mapping[str, Any]

FORMAT = 2
"""Of the facts. Those of another release, in a cache, are as good as none."""

DEVICE_SHIFT = 19  # leaves 13 of 32 bits: 8192 places


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
    Raises :class:`OverlayError` when two nodes are one machine or claim one address, for themselves or for a workload,
    one has the controller's facts, or one has a kernel that is too old.
    """
    known: dict[str, Facts] = {}
    addresses: dict[str, set[str]] = {}
    missing: dict[str, str] = {}
    owners: dict[Any, str] = {}
    hosts: dict[str, str] = {}
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
        if name in fresh:  # what a cache knows of workloads may have moved since
            _claim_workloads(name, node["workloads"], hosts)
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


def _claim_workloads(name: str, workloads: Sequence[Facts], hosts: dict[str, str]) -> None:
    """Note in ``hosts`` (address of a workload -> node) those of node ``name``."""
    for workload in workloads:
        other = hosts.setdefault(workload["address"], name)
        if other != name:
            raise OverlayError(
                "build the picture of the cluster",
                f"nodes {other} and {name}",
                f"both have a workload with the address {workload['address']}",
                "Nothing was changed. Run again if the workload was on its way from one to the other; otherwise remove "
                "the route to it from the node that it is not on (ip route show there).",
            )


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


def plan_node(
    name: str, facts: Facts, picture: Mapping[str, Facts], services: Any, wanted_peers: Any = ()
) -> dict[str, Any]:
    """What node ``name`` must be: ``maps`` (name -> entries for the module ``bpf_map_sync``), ``attachments`` (for
    ``tc_bpf_attach``, in this order), the names of its ``uplinks``, the number of ``peers``, ``notes``: sentences about
    what stays in the kernel's path, and ``wiring``: see :func:`_wiring.describe`.
    ``services``, ``wanted_peers``: as the user gives them.

    While the picture misses nodes, the peers that the node knows already stay: some of them may be theirs.
    Raises :class:`OverlayError` for a service that cannot be accelerated, and for a peer that is no prefix.
    """
    others = {other: node for other, node in picture["nodes"].items() if other != name}
    here = picture["nodes"].get(name, {"addresses": [], "prefixes": []})
    prefixes = without_covered({one for node in others.values() for one in node["prefixes"]} - set(here["prefixes"]))
    found = [*(address for node in others.values() for address in node["addresses"]), *prefixes]
    if picture["missing"]:
        found += [prefix for prefix in facts["known_peers"] if not is_default(prefix)]
    given = parse_peers(wanted_peers)
    peers = given or found

    ways = ways_to(facts["routes"], dict.fromkeys([*found, *(peer for peer in given if not is_default(peer))]))
    uplinks, left_out = _find_uplinks(facts, ways)
    workloads = [workload for workload in facts["workloads"] if qualifies(workload)]
    carriers = {**{workload["interface"]: workload["ifindex"] for workload in workloads}, **uplinks}
    places, unplaced = place_devices(carriers.values())
    placed = {interface for interface, ifindex in carriers.items() if ifindex not in unplaced}
    workloads = [workload for workload in workloads if workload["interface"] in placed]
    own_side, other_side = {one["interface"] for one in workloads}, placed & set(uplinks)
    # What the user excludes is told, but is nothing to warn of.
    notes = _uplinks.told(left_out) + _workloads.told([one for one in facts["workloads"] if not one.get("excluded")])
    notes += [f"{one} stays in the kernel's path: {NO_PLACE}" for one in sorted(set(carriers) - placed)]
    notes += _wiring.lacks(facts["workloads"], other_side, peers)
    if not given and prefixes:
        notes += _wiring.strangers(_strangers(others, prefixes))
    return {
        "maps": {
            "ifindex_map": [
                {"key": one["address"], "value": {"ifindex": one["ifindex"], "flags": _flags(one)}} for one in workloads
            ],
            "services": service_entries(services),
            "peers": peer_entries({*here["addresses"], *facts["own_addresses"]}, peers),
            "devices": [{"key": place, "value": ifindex} for place, ifindex in places],
        },
        # Watchers are there before whoever needs them to have seen something; replies before what they answer.
        "attachments": [
            *_attachments(own_side, "egress", "to_workload"),
            *_attachments(other_side, "egress", "to_uplink"),
            *_attachments(own_side, "ingress", "from_workload"),
            *_attachments(other_side, "ingress", "from_uplink"),
        ],
        "uplinks": sorted(other_side),
        "peers": len(others),
        "notes": notes,
        "wiring": _wiring.describe(facts, other_side, left_out, peers, ways),
    }


def _attachments(interfaces: Iterable[str], direction: str, program: str) -> list[dict[str, str]]:
    return [
        {"interface": interface, "direction": direction, "program": f"{PIN_DIR}/{program}"}
        for interface in sorted(interfaces)
    ]


def _flags(workload: Facts) -> int:
    return NEVER_BY_PEER if workload["never_by_peer"] else 0


def _strangers(others: Mapping[str, Facts], prefixes: Sequence[str]) -> list[str]:
    """The nodes with workloads in none of ``prefixes``, of a family of which there are some."""
    there = {":" in prefix for prefix in prefixes}
    owner = {one: name for name, node in others.items() for one in node["workloads"] if (":" in one) in there}
    return sorted({owner[one] for one in not_within(owner, prefixes)})


def _find_uplinks(facts: Facts, ways: Container[str]) -> tuple[dict[str, int], list[Facts]]:
    """Name -> ifindex of the uplinks, ``ways`` included, by which the node reaches its peers; and the links that would
    be uplinks and are left out (``name, reason``)."""
    uplinks = {uplink["name"]: uplink["ifindex"] for uplink in facts["uplinks"]}
    if not facts["uplinks_by_route"]:
        return uplinks, facts["links_left_out"]
    defaults = {route["interface"] for route in facts["routes"] if is_default(route["prefix"])}
    used = [one for one in facts["interfaces"] if one["name"] in ways or one["name"] in defaults]
    uplinks.update({interface["name"]: interface["ifindex"] for interface in used if not interface["unfit"]})
    return uplinks, [{"name": one["name"], "reason": one["unfit"]} for one in used if one["unfit"]]


NO_PLACE = "the map devices has no free place for it"


def place_devices(ifindexes: Iterable[int]) -> tuple[list[tuple[int, int]], list[int]]:
    """``(place in the map devices, ifindex)`` of every interface, where the datapath looks for it; and the interfaces
    that got none, since others have all of their candidates.

    Indexes come in rows or far apart (a node that has started 100,000 workloads), so the candidates of one are
    scattered by multiplication (Knuth, The Art of Computer Programming 3, 6.4).
    """
    places: dict[int, int] = {}
    unplaced = []
    for ifindex in sorted(set(ifindexes)):
        place = next((one for one in candidates(ifindex) if one not in places), None)
        if place is None:
            unplaced.append(ifindex)
        else:
            places[place] = ifindex
    return sorted(places.items()), unplaced


def candidates(ifindex: int) -> Iterator[int]:
    """The places in the map devices at which the datapath looks for an interface, in this order."""
    for number in range(DEVICE_PROBES):
        yield ((ifindex + number * 0x9E3779B9 & 0xFFFFFFFF) * 0x85EBCA6B & 0xFFFFFFFF) >> DEVICE_SHIFT
