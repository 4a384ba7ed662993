# SPDX-License-Identifier: GPL-3.0-or-later
"""From the facts of all nodes to what one node's maps must hold. Pure.

Facts of a node are what the module ``overlay_facts`` returns. The picture of the cluster is built once from all of
them and says what nodes must know about each other; everything else a node knows itself.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Union

from ansible_collections.ebpf.overlay.plugins.module_utils._errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import OLDEST
from ansible_collections.ebpf.overlay.plugins.module_utils._layout import (
    DEVICE_PROBES,
    DEVICES,
    PIN_DIR,
    PROTOCOLS,
)

Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]
Facts = Mapping[str, Any]


# --- one node's own facts ---------------------------------------------------------------------------------------------


def find_workloads(
    interfaces: Sequence[Facts], routes: Iterable[Facts], neighbours: Mapping[str, str], globs: Sequence[str]
) -> list[dict[str, Any]]:
    """Workloads as Calico wires them: a host route without gateway to an interface whose name matches a glob.

    Returns ``address, interface, ifindex, mtu`` (bytes), ``mac`` (None where unknown), sorted by address.
    """
    by_name = {interface["name"]: interface for interface in interfaces}
    found = []
    for route in routes:
        interface = by_name.get(route["interface"])
        network = ipaddress.ip_network(route["prefix"], strict=False)
        if interface is None or route["gateway"] or network.prefixlen != network.max_prefixlen:
            continue
        if not any(fnmatchcase(interface["name"], glob) for glob in globs):
            continue
        address = str(network.network_address)
        found.append(
            {
                "address": address,
                "interface": interface["name"],
                "ifindex": interface["ifindex"],
                "mtu": interface["mtu"],
                "mac": neighbours.get(address),
            }
        )
    return sorted(found, key=lambda workload: (workload["address"], workload["interface"]))


def find_uplinks(
    interfaces: Sequence[Facts], routes: Iterable[Facts], globs: Sequence[str], workload_globs: Sequence[str]
) -> list[dict[str, Any]]:
    """The interfaces that match ``globs``; without globs, those of the default routes.

    Returns ``name, ifindex, mac, mtu`` (bytes), ``addresses`` (with prefix length), ``gateways``, sorted by name.
    Raises :class:`OverlayError` for a name in ``globs`` that is no interface.
    """
    there = {interface["name"] for interface in interfaces}
    for name in globs:
        if not any(character in name for character in "*?[") and name not in there:
            raise OverlayError(
                "find the uplinks", name, "there is no such interface", "Correct overlay_uplinks for this node."
            )
    defaults = [route for route in routes if ipaddress.ip_network(route["prefix"], strict=False).prefixlen == 0]
    names = {route["interface"] for route in defaults}
    found = []
    for interface in interfaces:
        name = interface["name"]
        if interface["loopback"] or any(fnmatchcase(name, glob) for glob in workload_globs):
            continue
        if any(fnmatchcase(name, glob) for glob in globs) if globs else name in names:
            found.append(
                {
                    **{key: interface[key] for key in ("name", "ifindex", "mac", "mtu", "addresses")},
                    "gateways": sorted({r["gateway"] for r in defaults if r["interface"] == name and r["gateway"]}),
                }
            )
    return sorted(found, key=lambda uplink: uplink["name"])


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
    """What nodes must know of each other: ``nodes`` (name -> ``addresses`` without prefix length), and ``missing``, the
    nodes that it does not know (name -> why).

    ``facts``: by node name, None where there are none. ``fresh``: the nodes whose facts this run gathered; all others
    come from a cache and must not be older than ``max_age`` seconds at ``now`` (seconds since the epoch).
    Raises :class:`OverlayError` when two nodes are one machine or claim one address, one has the controller's
    facts, or one has a kernel that is too old.
    """
    nodes: dict[str, dict[str, Any]] = {}
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
        addresses = sorted(_bare(address) for uplink in node["uplinks"] for address in uplink["addresses"])
        claims: dict[Any, str] = {address: f"both have the address {address}" for address in addresses}
        identity = tuple(node["identity"].values())
        dialled = controller.dialled.get(name)
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
        nodes[name] = {"addresses": addresses}
    return {"nodes": nodes, "missing": missing}


def _why_not(node: Facts | None, fresh: bool, now: float, max_age: float) -> str:
    if node is None:
        return "no facts"
    if fresh:  # the node's clock is trusted only where nothing else is known
        return ""
    age = now - node["gathered_at"]
    return "" if age <= max_age else f"facts are {age / 3600:.1f} h old"


# --- one node's maps --------------------------------------------------------------------------------------------------


def plan_node(name: str, facts: Facts, picture: Mapping[str, Facts], services: Sequence[Facts]) -> dict[str, Any]:
    """What node ``name`` must be: ``maps`` (name -> entries for the module ``bpf_map_sync``), ``attachments`` (for
    ``tc_bpf_attach``, reply side first) and the number of ``peers``.

    While the picture misses nodes, the peers that the node knows already stay: some of them may be theirs.
    Raises :class:`OverlayError` for a service that cannot be accelerated.
    """
    nodes = picture["nodes"]
    peers, used = _find_peers(name, facts, nodes)
    if picture["missing"]:
        there = {interface["ifindex"]: interface for interface in facts["interfaces"]}
        for entry in facts["known_peers"]:
            uplink = there.get(entry["value"]["uplink"])
            if uplink and (uplink["name"] in used or facts["uplinks_by_route"]):
                used.setdefault(uplink["name"], uplink)
                peers.setdefault(entry["key"], dict(entry["value"]))
    for address in facts["addresses"]:
        peers[_prefix(address)] = {"uplink": 0, "mtu": 0, "next_hop": "::"}

    workloads = facts["workloads"]
    carriers = {workload["interface"]: workload["ifindex"] for workload in workloads}
    carriers.update({uplink: used[uplink]["ifindex"] for uplink in used})
    return {
        "maps": {
            "ifindex_map": [
                {
                    "key": workload["address"],
                    "value": {"ifindex": workload["ifindex"], "mtu": workload["mtu"], "flags": 0},
                }
                for workload in workloads
            ],
            "services": service_entries(services),
            "peers": [{"key": prefix, "value": value} for prefix, value in sorted(peers.items())],
            "devices": [{"key": place, "value": ifindex} for place, ifindex in place_devices(carriers.values())],
        },
        "attachments": [
            {"interface": interface, "direction": "ingress", "program": f"{PIN_DIR}/from_workload"}
            for interface in sorted({workload["interface"] for workload in workloads})
        ]
        + [
            {"interface": uplink, "direction": "ingress", "program": f"{PIN_DIR}/from_uplink"}
            for uplink in sorted(used)
        ],
        "uplinks": sorted(used),
        "peers": len(nodes) - (name in nodes),
    }


def _find_peers(
    name: str, facts: Facts, nodes: Mapping[str, Facts]
) -> tuple[dict[str, dict[str, Any]], dict[str, Facts]]:
    """Entries of the map ``peers`` by prefix, and the uplinks by name.

    A peer is the address of another node, and every prefix that this node routes through such an address.
    """
    table = RouteTable(facts["routes"])
    addresses = [address for other, node in nodes.items() if other != name for address in node["addresses"]]
    gateways = set(addresses)
    ways = [(address, table.find(address)) for address in addresses]
    ways += [(route["prefix"], route) for route in facts["routes"] if route["gateway"] in gateways]

    interfaces = {interface["name"]: interface for interface in facts["interfaces"]}
    uplinks: dict[str, Facts] = {uplink["name"]: uplink for uplink in facts["uplinks"]}
    peers = {}
    for prefix, route in ways:
        uplink = interfaces.get(route["interface"]) if route else None
        if route is None or uplink is None or (uplink["name"] not in uplinks and not facts["uplinks_by_route"]):
            continue
        uplinks.setdefault(uplink["name"], uplink)
        peers[_prefix(prefix)] = {
            "uplink": uplink["ifindex"],
            "mtu": uplink["mtu"],
            "next_hop": route["gateway"] or "::",
        }
    return peers, uplinks


def place_devices(ifindexes: Iterable[int]) -> list[tuple[int, int]]:
    """``(place in the map devices, ifindex)`` of every interface, where the datapath looks for it.

    Raises :class:`OverlayError` where more interfaces want the same few places than there are (DEVICE_PROBES).
    """
    places: dict[int, int] = {}
    for ifindex in sorted(set(ifindexes)):
        candidates = (((ifindex + probe * 0x9E3779B9) * 0x85EBCA6B & 0xFFFFFFFF) >> 19 for probe in range(DEVICE_PROBES))
        place = next((place for place in candidates if place not in places), None)
        if place is not None:
            places[place] = ifindex
    return sorted(places.items())


def service_entries(services: Sequence[Facts]) -> list[dict[str, Any]]:
    """``[{"protocol": "tcp", "port": 8080}]`` -> entries of the map ``services``."""
    ports: dict[int, int] = {}
    for number, service in enumerate(services):
        protocol, port = str(service.get("protocol", "tcp")).lower(), service.get("port")
        target = f"overlay_services[{number}]"
        if protocol not in PROTOCOLS:
            raise OverlayError(
                "accept a service",
                f"{target}.protocol",
                f"{protocol!r} is none of {', '.join(PROTOCOLS)}",
                "The overlay follows TCP connections only; take the service out of the list.",
            )
        try:
            number_of_port = int(str(port))
        except ValueError:
            number_of_port = 0
        if not 0 < number_of_port < 65536:
            raise OverlayError("accept a service", f"{target}.port", f"{port!r} is no port", "Give a port: 1 to 65535.")
        ports[number_of_port] = ports.get(number_of_port, 0) | PROTOCOLS[protocol]
    return [{"key": port, "value": protocols} for port, protocols in sorted(ports.items())]


class RouteTable:
    """Longest prefix first, then the lowest metric, as the kernel looks up a route."""

    def __init__(self, routes: Iterable[Facts]) -> None:
        self._tables: dict[tuple[int, int], dict[int, Facts]] = {}
        for route in routes:
            network = ipaddress.ip_network(route["prefix"], strict=False)
            table = self._tables.setdefault((network.version, network.prefixlen), {})
            known = table.get(int(network.network_address))
            if known is None or route["metric"] < known["metric"]:
                table[int(network.network_address)] = route
        self._lengths = sorted(self._tables, reverse=True)

    def find(self, address: str) -> Facts | None:
        """The route to ``address``, or None."""
        wanted = ipaddress.ip_address(address)
        for version, length in self._lengths:
            if version == wanted.version:
                rest = wanted.max_prefixlen - length
                route = self._tables[version, length].get(int(wanted) >> rest << rest)
                if route is not None:
                    return route
        return None


def _bare(address: str) -> str:
    return str(ipaddress.ip_interface(address).ip)


def _prefix(text: str) -> str:
    return str(ipaddress.ip_network(text, strict=False))
