# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may be the other end of a connection: a list of prefixes, and how it follows from the nodes' routes. Pure."""

from __future__ import annotations

import ipaddress
import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Union

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError

Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

PEER, OWN = 1, 0
"""Values of the map ``peers``: a machine that may be the other end; an address of this very node, which never is."""

# No node has more addresses for its workloads. Wider prefixes by way of a node are routes to somewhere else.
_WIDEST = {4: 16, 6: 48}
_EVERYTHING = ("0.0.0.0/0", "::/0")


def parse_peers(wanted: Any) -> list[str]:
    """``overlay_peers`` as the user gives it (a list, or text: JSON or separated by commas) -> prefixes; empty where
    the nodes are the peers. Raises :class:`OverlayError` for what is neither a prefix nor ``any``."""
    if isinstance(wanted, str):
        text = wanted.strip()
        try:
            wanted = json.loads(text) if text.startswith("[") else [one for one in text.split(",") if one.strip()]
        except ValueError:
            raise _refusal("overlay_peers", wanted) from None
    if wanted is None:
        return []
    if not isinstance(wanted, Sequence):
        raise _refusal("overlay_peers", wanted)
    found: list[str] = []
    for number, one in enumerate(wanted):
        if not isinstance(one, str):
            raise _refusal(f"overlay_peers[{number}]", one)
        try:
            prefixes = _EVERYTHING if one.strip().lower() == "any" else (str(ipaddress.ip_network(one.strip())),)
        except ValueError as error:
            raise _refusal(f"overlay_peers[{number}]", one, str(error)) from None
        found += [prefix for prefix in prefixes if prefix not in found]
    return found


def _refusal(target: str, value: Any, reason: str = "it is not text") -> OverlayError:
    return OverlayError(
        "accept a peer",
        target,
        f"{value!r} is no prefix: {reason}",
        "Give a list of prefixes such as 10.0.0.0/8 (all bits behind the length are 0), or any.",
    )


def workload_prefixes(
    addresses: Mapping[str, Sequence[str]], kept: Mapping[str, Iterable[str]], routed: Iterable[tuple[str, str]]
) -> dict[str, list[str]]:
    """Node -> the prefixes of its workloads, sorted.

    ``addresses``: of each node. ``kept``: the prefixes that a node refuses as a whole (a route of type blackhole), as
    Calico does with a node's block; a prefix that several nodes keep is nobody's. ``routed``: (prefix, gateway) of
    routes, on any node, by way of a node's address.

    None is wider than a node's workloads can be, or holds an address of another node: it would be a route to the rest
    of the world that happens to go by that node.
    """
    owner_of = {address: name for name, listed in addresses.items() for address in listed}
    owners: dict[str, set[str]] = {}
    for name, prefixes in kept.items():
        for prefix in prefixes:
            owners.setdefault(prefix, set()).add(name)
    owners = {prefix: names for prefix, names in owners.items() if len(names) == 1}
    for prefix, gateway in routed:
        if gateway in owner_of:
            owners.setdefault(prefix, set()).add(owner_of[gateway])

    taken: dict[int, list[tuple[int, str]]] = {4: [], 6: []}
    for address, name in owner_of.items():
        parsed = ipaddress.ip_address(address)
        taken[parsed.version].append((int(parsed), name))
    for listed in taken.values():
        listed.sort()

    found: dict[str, set[Network]] = {name: set() for name in addresses}
    for prefix, names in owners.items():
        network = ipaddress.ip_network(prefix, strict=False)
        if network.prefixlen < _WIDEST[network.version]:
            continue
        listed = taken[network.version]
        start = bisect_left(listed, (int(network.network_address), ""))
        end = bisect_left(listed, (int(network.broadcast_address) + 1, ""))
        if {name for _address, name in listed[start:end]} <= names:
            for name in names:
                found[name].add(network)
    return {name: [str(network) for network in _sorted(networks)] for name, networks in found.items()}


def without_covered(prefixes: Iterable[str]) -> list[str]:
    """The same addresses by fewer prefixes: those within another of the list are left out. Sorted."""
    found: list[Network] = []
    for network in _sorted({ipaddress.ip_network(prefix, strict=False) for prefix in prefixes}):
        last = found[-1] if found else None
        if last is None or last.version != network.version or not network.subnet_of(last):  # type: ignore[arg-type]
            found.append(network)
    return [str(network) for network in found]


def _sorted(networks: Iterable[Network]) -> list[Network]:
    return sorted(networks, key=lambda one: (one.version, int(one.network_address), one.prefixlen))


def is_address(peer: str) -> bool:
    """Whether a peer is one address and no prefix of several."""
    length = peer.partition("/")[2]
    return not length or int(length) == (128 if ":" in peer else 32)


def not_within(addresses: Iterable[str], prefixes: Sequence[str]) -> list[str]:
    """Those of ``addresses`` that are in none of ``prefixes``, which :func:`without_covered` returned."""
    networks = [ipaddress.ip_network(prefix) for prefix in prefixes]
    starts = [(one.version, int(one.network_address)) for one in networks]
    found = []
    for address in addresses:
        parsed = ipaddress.ip_address(address)
        place = bisect_right(starts, (parsed.version, int(parsed))) - 1
        if place < 0 or parsed not in networks[place]:
            found.append(address)
    return found


def peer_entries(own: Iterable[str], peers: Iterable[str]) -> list[dict[str, Any]]:
    """Entries of the map ``peers``: every prefix in ``peers``, but none of the node's ``own`` addresses."""
    kinds = {str(ipaddress.ip_network(prefix, strict=False)): PEER for prefix in peers}
    kinds.update({str(ipaddress.ip_network(address)): OWN for address in own})
    return [{"key": prefix, "value": kind} for prefix, kind in sorted(kinds.items())]
