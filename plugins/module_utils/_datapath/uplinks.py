# SPDX-License-Identifier: GPL-3.0-or-later
"""Which links of a node carry the packets of its workloads to other nodes, and why others cannot. Pure."""

from __future__ import annotations

import functools
import ipaddress
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError

from .peers import is_address
from .workloads import without_ethernet

Facts = Mapping[str, Any]


def why_unfit(interface: Facts, workload_globs: Sequence[str], chains: Iterable[Facts] = ()) -> str:
    """Why the datapath cannot work on a link, as half a sentence; empty where it can.

    ``interface``: as :func:`_kernel.ip.interfaces` returns it; ``chains``: as :func:`_kernel.ip.netdev_chains` does.
    """
    name = interface["name"]
    if interface["loopback"]:
        return "it is the loopback"
    if any(fnmatchcase(name, glob) for glob in workload_globs):
        return "it is the interface of a workload"
    if without_ethernet(interface):
        return without_ethernet(interface)
    if interface["external"]:
        return "the tunnel of each packet is chosen outside of its header (external)"
    if interface["kind"] == "vrf":
        return "its packets leave by the members of the VRF"
    if interface["master"] and interface["member_of"] != "vrf":
        return f"it is a port of {interface['master']}, which carries the packets"
    # Of either direction: what TC ingress redirects skips those of the egress too (nf_skip_egress in net/core/dev.c).
    missed = [one["chain"] for one in chains if fnmatchcase(name, one["interface"])]
    if missed:
        return f"packets of the fast path would miss the netdev chain {missed[0]}"
    return ""


def find_uplinks(
    interfaces: Sequence[Facts], routes: Iterable[Facts], globs: Sequence[str]
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """The links that match ``globs``, without globs those of the default routes; and the links left out.

    Uplinks: ``name, ifindex, mac, mtu`` (bytes), ``addresses`` (with prefix length), ``primary, gateways``. Left out
    are links that other machines are reached by and that are unfit: ``name, reason``. Both are sorted by name.
    Raises :class:`OverlayError` for a name in ``globs`` that is no interface.
    """
    there = {interface["name"] for interface in interfaces}
    for name in globs:
        if not is_glob(name) and name not in there:
            raise OverlayError(
                "find the uplinks", name, "there is no such interface", "Correct overlay_uplinks for this node."
            )
    routes = [route for route in routes if route["interface"]]
    defaults = [route for route in routes if is_default(route["prefix"])]
    default_names = {route["interface"] for route in defaults}
    # Routes that lead to others, not to the neighbourhood of a link.
    leading = {route["interface"] for route in routes if route["gateway"]} | default_names
    found, left_out = [], []
    for interface in sorted(interfaces, key=lambda one: str(one["name"])):
        name = interface["name"]
        wanted = any(fnmatchcase(name, glob) for glob in globs) if globs else name in default_names
        if interface["unfit"]:
            if name in globs or (not globs and name in leading):
                left_out.append({"name": name, "reason": interface["unfit"]})
        elif wanted:
            gateways = {route["gateway"] for route in defaults if route["interface"] == name and route["gateway"]}
            kept = {key: interface[key] for key in ("name", "ifindex", "mac", "mtu", "addresses", "primary")}
            found.append({**kept, "gateways": sorted(gateways)})
    return found, left_out


def told(left_out: Iterable[Facts]) -> list[str]:
    """A sentence for each link that is left out."""
    return [f"link {one['name']} is no uplink: {one['reason']}" for one in left_out]


def own_addresses(interfaces: Sequence[Facts], routes: Iterable[Facts]) -> list[str]:
    """The addresses by which other machines know this one, without those that move between machines.

    Addresses of services are kept on dummies (kube-ipvs0), and on the loopback the same one may be on all nodes; there
    only the address counts that a default route names as its source, or a route by way of a gateway, as routing daemons
    write them on nodes whose address is on the loopback. Only the main table is asked: in others, routes of an address
    that moves name it too.
    """
    routes = [route for route in routes if route.get("table") is None]
    looped = {address.split("/")[0] for one in interfaces if one["loopback"] for address in one["addresses"]}
    defaults = [route for route in routes if is_default(route["prefix"])]
    found = {route["source"] for route in defaults if route["source"]}
    found |= looped & {route["source"] for route in routes if route["gateway"]}
    used = {route["interface"] for route in defaults}
    for interface in interfaces:
        shared = interface["loopback"] or interface["kind"] in ("dummy", "macvlan", "ipvlan")
        if not shared or interface["name"] in used:
            found.update(interface["primary"])
    return sorted(found)


def ways_to(routes: Sequence[Facts], peers: Iterable[str]) -> dict[str, dict[str, int]]:
    """The interfaces by which a node reaches ``peers``, by all next hops, in each table to which rules lead: by the
    route to all of a prefix, and by those to its parts. Name -> how many ``addresses`` and ``prefixes`` of peers."""
    table = RouteTables(route for route in routes if route["interface"])
    found: dict[str, dict[str, int]] = {}
    for peer in peers:
        kind = "addresses" if is_address(peer) else "prefixes"
        for name in {route["interface"] for route in table.within(peer)}:
            found.setdefault(name, {"addresses": 0, "prefixes": 0})[kind] += 1
    return found


@functools.lru_cache(maxsize=16384)
def _parsed(prefix: str) -> tuple[int, int, int, int]:
    """Version, first address, bits of an address, prefix length. Nodes share most of their routes and peers."""
    network = ipaddress.ip_network(prefix, strict=False)
    return network.version, int(network.network_address), network.max_prefixlen, network.prefixlen


class RouteTables:
    """Longest prefix first, then the lowest metric, as the kernel looks up a route; in each table by itself."""

    def __init__(self, routes: Iterable[Facts]) -> None:
        self._tables: dict[tuple[Any, int, int], dict[int, list[Facts]]] = {}
        for route in routes:
            version, first, _bits, length = _parsed(route["prefix"])
            table = self._tables.setdefault((route.get("table"), version, length), {})
            known = table.setdefault(first, [])
            if known and route["metric"] < known[0]["metric"]:
                known.clear()
            if not known or route["metric"] == known[0]["metric"]:
                known.append(route)
        self._lengths = sorted(self._tables, key=lambda one: -one[2])
        ordered = sorted(
            ((version, start, length, str(table)), hops)
            for (table, version, length), starts in self._tables.items()
            for start, hops in starts.items()
        )
        self._places = [place for place, _hops in ordered]
        self._hops = [hops for _place, hops in ordered]

    def find(self, address: str) -> list[Facts]:
        """The route to ``address``: one entry for each of its next hops, from each table; none where there is no
        route."""
        wanted = ipaddress.ip_address(address)
        return self._find(wanted.version, int(wanted), wanted.max_prefixlen, wanted.max_prefixlen)

    def _find(self, version: int, address: int, bits: int, longest: int) -> list[Facts]:
        found: dict[Any, list[Facts]] = {}
        for table, family, length in self._lengths:
            if family == version and length <= longest and table not in found:
                rest = bits - length
                hops = self._tables[table, family, length].get(address >> rest << rest)
                if hops:
                    found[table] = hops
        return [hop for hops in found.values() for hop in hops]

    def within(self, peer: str) -> list[Facts]:
        """The routes by which packets to an address, or to any of a prefix, may go: of each table, the one that holds
        all of it, and those to its parts."""
        version, first, bits, length = _parsed(peer)
        whole = self._find(version, first, bits, length)
        start = bisect_left(self._places, (version, first, length))
        end = bisect_left(self._places, (version, first + (1 << bits - length), 0))
        return [*whole, *(hop for hops in self._hops[start:end] for hop in hops)]


def is_glob(name: str) -> bool:
    return any(character in name for character in "*?[")


def is_default(prefix: str) -> bool:
    return prefix.endswith("/0")
