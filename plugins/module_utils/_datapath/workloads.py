# SPDX-License-Identifier: GPL-3.0-or-later
"""Workloads of a node, and what on their interfaces stands against the fast path. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._hooks.order import ENDS

from .exclusions import excluded_by
from .layout import OWNER

Facts = Mapping[str, Any]

NEVER_BY_PEER = 1
"""A flag in the map ``ifindex_map``: packets go by way of the interface, so that what sits on its egress sees them."""

# Queues nothing and keeps nothing back.
_PLAIN_QDISCS = ("noqueue", "noop")


def find_workloads(
    interfaces: Sequence[Facts],
    routes: Iterable[Facts],
    neighbours: Mapping[str, str],
    globs: Sequence[str],
    exclude: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Workloads as Calico wires them: a host route without gateway to an interface whose name matches a glob.

    Returns ``address, interface, ifindex, mtu`` (bytes), ``mac`` (None where unknown), and as half a sentence, empty
    where nothing is: ``unfit``, why the datapath cannot work on the interface; ``excluded``, by which entry of
    ``exclude`` the user keeps it, or another address of its interface, in the kernel's path. Sorted by address.
    An address that the node has itself is no workload.
    """
    by_name = {interface["name"]: interface for interface in interfaces if matches(interface["name"], globs)}
    own = {address.split("/")[0] for interface in interfaces for address in interface["addresses"]}
    found: dict[str, tuple[tuple[bool, int], dict[str, Any]]] = {}
    for route in routes:
        interface = by_name.get(route["interface"])
        if interface is None or route["gateway"]:
            continue
        network = ipaddress.ip_network(route["prefix"], strict=False)
        address = str(network.network_address)
        if network.prefixlen != network.max_prefixlen or address in own:
            continue
        rank = route.get("table") is not None, route["metric"]  # the main table first
        if address in found and found[address][0] <= rank:
            continue
        workload = {
            "address": address,
            "interface": interface["name"],
            "ifindex": interface["ifindex"],
            "mtu": interface["mtu"],
            "mac": neighbours.get(address),
            "unfit": without_ethernet(interface),
            "excluded": "",
        }
        found[address] = rank, workload
    workloads = [workload for _address, (_rank, workload) in sorted(found.items())]
    # With all its addresses: the programs leave its interface, and so its open connections leave the fast path.
    excluded = {one["interface"]: entry for one in workloads if (entry := excluded_by(one, exclude))}
    return [{**one, "excluded": excluded.get(one["interface"], "")} for one in workloads]


def without_ethernet(interface: Facts) -> str:
    """Why the datapath cannot read the packets of an interface, as half a sentence; empty where it can."""
    kind = interface["link_type"]
    return "" if kind == "ether" else f"its packets have no Ethernet header (link type {kind or 'unknown'})"


def qualifies(workload: Facts) -> bool:
    """Whether any packet of a workload can take the fast path."""
    return not any(map(workload.get, ("never_admitted", "unfit", "excluded")))


def matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def hindrances(interface: Facts, chains: Iterable[Facts]) -> dict[str, str]:
    """What somebody else has on a workload's interface, each as half a sentence, empty for nothing:

    - ``never_by_peer``: on its egress, which ``bpf_redirect_peer`` skips;
    - ``may_be_taken``: on its ingress, ahead of the overlay; what it takes never reaches the overlay;
    - ``never_admitted``: a netdev chain. What TC ingress redirects meets none, neither there, where it comes later,
      nor on the egress of the other interface (``nf_skip_egress`` in net/core/dev.c).

    ``interface``: as :func:`_hooks.inspect.read_interfaces` returns it; ``chains``: :func:`_kernel.ip.netdev_chains`.
    """
    here = [one for one in chains if fnmatchcase(interface["name"], one["interface"])]
    netdev = {one["direction"]: f"the netdev chain {one['chain']}" for one in reversed(here)}
    shaping = [
        f"the qdisc {qdisc['kind']}"
        for qdisc in interface["qdiscs"]
        if qdisc["parent"] == "root" and qdisc["kind"] not in _PLAIN_QDISCS
    ]
    foreign = {
        direction: [one for one in interface[direction] if one["owner"] != OWNER] for direction in ("ingress", "egress")
    }
    egress = shaping + [_label(one) for one in foreign["egress"]]
    taking = [_label(one) for one in foreign["ingress"] if _may_take(one)]
    return {
        "never_by_peer": next(iter(egress), ""),
        "may_be_taken": next(iter(taking), ""),
        "never_admitted": netdev.get("ingress") or netdev.get("egress", ""),
    }


def _may_take(entry: Facts) -> bool:
    """Whether a packet's way on the hook can end with this program or filter."""
    if entry["kind"] != "bpf" or entry["return_codes"] is None:
        return True
    if not entry["direct_action"]:
        return any(code != 0 for code in entry["return_codes"])  # not 0: it matches
    return any(code in ENDS[entry["mechanism"]] for code in entry["return_codes"])


def _label(entry: Facts) -> str:
    name = entry["name"] or entry["program_name"]
    named = f" {name}" if name else ""
    if entry["mechanism"] == "tcx":
        return f"the TCX program{named}"
    return f"the {entry['kind']} filter{named} of priority {entry['priority']}"


_NEVER = {
    "excluded": "overlay_exclude names {what}",
    "unfit": "{what}",
    "never_admitted": "the fast one would skip {what}",
}
_PARTLY = {
    "may_be_taken": "the kernel's path for whatever {what} takes from {who}",
    "never_by_peer": "no redirect_peer for {who}: it would skip {what}",
}


def in_kernels_path(workloads: Iterable[Facts]) -> list[dict[str, str]]:
    """The workloads that can never take the fast path: ``address, interface, reason``."""
    found = []
    for workload in workloads:
        key = next((key for key in _NEVER if workload.get(key)), None)
        if key:
            reason = _NEVER[key].format(what=workload[key])
            found.append({"address": workload["address"], "interface": workload["interface"], "reason": reason})
    return found


def told(workloads: Sequence[Facts]) -> list[str]:
    """One sentence for each thing that keeps workloads from the fast path, or slows them down there."""
    found: dict[tuple[str, str], list[str]] = {}
    for key in (*_NEVER, *_PARTLY):
        for workload in workloads:
            if workload.get(key):
                found.setdefault((key, workload[key]), []).append(workload["address"])
    sentences = {**{key: f"the kernel's path for {{who}}: {reason}" for key, reason in _NEVER.items()}, **_PARTLY}
    return [sentences[key].format(who=some(addresses), what=what) for (key, what), addresses in found.items()]


def some(addresses: Sequence[str]) -> str:
    """``10.0.0.1, 10.0.0.2, 10.0.0.3 and 5 others``"""
    rest = len(addresses) - 3
    return ", ".join(addresses[:3]) + (f" and {rest} others" if rest > 0 else "")
