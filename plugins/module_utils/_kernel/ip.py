# SPDX-License-Identifier: GPL-3.0-or-later
"""Interfaces, addresses, routes, neighbours and netdev chains of this network namespace, read with ``ip`` and ``nft``.

iproute2 is on every node from the start, pyroute2 is not: facts must be there before anything is installed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, Callable

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError

# Runs a command, returns (exit code, standard output, standard error).
Run = Callable[[list[str]], tuple[int, str, str]]

# Of a route, as a name, or as the number that `ip -N` prints (RTN_* in include/uapi/linux/rtnetlink.h). A route of any
# other type is no way for packets of others.
_TYPES = {None, "unicast", "1"}
# As Calico keeps the block from which a node's workloads get their addresses: the kernel refuses those that are free.
_REFUSING = {"blackhole", "unreachable", "prohibit", "6", "7", "8"}
# RT_TABLE_* in the same file.
_MAIN, _NEVER_A_WAY = "254", {"253", "255"}  # `default`, which nobody fills, and `local`


def _ip(run: Run, *arguments: str) -> list[dict[str, Any]]:
    command = ["ip", "-json", "-details", *arguments]
    try:
        code, output, message = run(command)
    except OSError as error:
        raise _unreadable(command, error) from None
    if code != 0:
        raise _unreadable(command, message.strip() or f"exit code {code}")
    try:
        # Old versions print nothing, or empty objects, where there is nothing to tell.
        return [entry for entry in json.loads(output or "[]") if entry]
    except ValueError:
        raise _unreadable(command, f"it printed no JSON but {output[:80]!r}") from None


def _unreadable(command: Sequence[str], reason: str | OSError) -> OverlayError:
    return OverlayError(
        "read the network configuration",
        " ".join(command),
        reason,
        "Check that iproute2 is installed on the node and that the command works there.",
    )


def interfaces(run: Run, routed: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """``name, ifindex, mtu`` (bytes), ``mac, kind, loopback, up, addresses`` (global, with prefix length);
    ``primary``: those that tell this machine from others; ``link_type`` (``ether`` with an Ethernet header),
    ``external`` (its tunnel is chosen per packet), ``master`` and ``member_of`` (the kind of that master).
    ``routed``: :func:`routes`."""
    found = []
    links = _ip(run, "address", "show")
    own = {one["local"] for link in links for one in link.get("addr_info", ()) if "local" in one}
    ways = ways_to_others(routed, own)
    for link in links:
        information = link.get("linkinfo", {})
        kept = [one for one in link.get("addr_info", ()) if one.get("scope") == "global" and "local" in one]
        found.append(
            {
                "name": link["ifname"],
                "ifindex": link["ifindex"],
                "mtu": link["mtu"],
                "mac": link.get("address", ""),
                "kind": information.get("info_kind", ""),
                "loopback": link.get("link_type") == "loopback",
                "up": "UP" in link.get("flags", ()),
                "addresses": [f"{one['local']}/{one['prefixlen']}" for one in kept],
                "primary": primary_addresses(kept, ways.get(link["ifname"], ())),
                "link_type": link.get("link_type", ""),
                "external": bool(information.get("info_data", {}).get("external")),
                "master": link.get("master", ""),
                "member_of": information.get("info_slave_kind", ""),
            }
        )
    return found


def ways_to_others(routed: Iterable[Mapping[str, Any]], own: Container[str]) -> dict[str, set[str]]:
    """Interface -> the families (``inet``, ``inet6``) in which a route leads by it to other machines. None is one to
    an address of this machine, which IPv6 has for each, or to the link-local addresses."""
    found: dict[str, set[str]] = {}
    for route in routed:
        prefix = route["prefix"]
        if route["interface"] and prefix not in own and not prefix.startswith(("fe80:", "169.254.")):
            found.setdefault(route["interface"], set()).add("inet6" if ":" in prefix else "inet")
    return found


def primary_addresses(addresses: Sequence[Mapping[str, Any]], led: Container[str]) -> list[str]:
    """Of an interface's global addresses as ``ip`` lists them, at most one per family: the one that is its own.

    The others may be temporary (RFC 8981) or move between machines (keepalived, kube-vip). The kernel lists IPv4
    addresses in the order in which they came, those of IPv6 in the opposite one (net/ipv6/addrconf.c,
    ``ipv6_link_dev_addr``). Addresses that move come later than the machine's own, mostly as host prefixes or without
    a route to their prefix. One of these that is alone on its interface is the machine's own only where it is the
    source of packets to others: ``led``, the families in which a route leads by the interface (clouds hand out /32,
    DHCPv6 /128; those of tunnels are host prefixes too).
    """
    found = []
    for family, full in (("inet", 32), ("inet6", 128)):
        lasting = [
            one
            for one in addresses
            if one.get("family") == family
            and not any(map(one.get, ("temporary", "deprecated", "secondary")))
            and (family in led or not any(_routeless(one, full)))
        ]
        if family == "inet6":
            lasting.reverse()
        lasting.sort(key=lambda one: _routeless(one, full))
        found += [one["local"] for one in lasting[:1]]
    return found


def _routeless(address: Mapping[str, Any], full: int) -> tuple[bool, bool]:
    """Why an address brings no route to a neighbourhood: there is none, or it was asked not to."""
    return address["prefixlen"] == full, bool(address.get("noprefixroute"))


def routes(run: Run) -> list[dict[str, Any]]:
    """Routes of all tables to which rules lead, one for each next hop: ``prefix, interface, gateway`` (None: on link),
    ``metric, source`` (the address that the kernel prefers there, or None), ``table`` (its number; None is the main
    one). A route that refuses its prefix has no interface."""
    found = []
    objects: dict[int, dict[str, Any]] = {}
    for option, everything in (("-4", "0.0.0.0/0"), ("-6", "::/0")):
        tables = {_MAIN, *_other_tables(run, option)}
        chosen = "all" if len(tables) > 1 else _MAIN  # the kernel has an error for a table without routes
        for route in _ip(run, "-N", option, "route", "show", "table", chosen):
            table = str(route.get("table", _MAIN))
            if table not in tables:
                continue
            prefix = everything if route["dst"] == "default" else route["dst"]
            told = {
                "prefix": prefix,
                "metric": route.get("metric", 0),
                "source": route.get("prefsrc"),
                "table": None if table == _MAIN else table,
            }
            if route.get("type") in _REFUSING:
                found.append({**told, "interface": None, "gateway": None})
            if route.get("type") not in _TYPES:
                continue
            hops = [route] if "dev" in route else route.get("nexthops", [])
            if not hops and "nhid" in route:  # net.ipv4.nexthop_compat_mode is 0
                objects = objects or {one["id"]: one for one in _ip(run, "nexthop", "show")}
                hops = list(_members(objects, route["nhid"]))
            for hop in hops:
                via = hop.get("via", {}).get("host") if isinstance(hop.get("via"), dict) else None
                if "dev" in hop:
                    found.append({**told, "interface": hop["dev"], "gateway": hop.get("gateway") or via})
    return found


def _other_tables(run: Run, option: str) -> set[str]:
    """The routing tables but the main one to which a rule leads, whatever it asks of a packet; by numbers. Rules that
    are about the machine's own packets alone are left out: one from its own address, as it comes with one that moves,
    and one for what does not come in by any interface."""
    rules = [rule for rule in _ip(run, "-N", option, "rule", "show") if rule.get("iif") != "lo"]
    if any("src" in rule and rule["src"] != "all" for rule in rules):
        links = _ip(run, "address", "show")
        own = {one.get("local") for link in links for one in link.get("addr_info", ())}
        rules = [rule for rule in rules if rule.get("src") not in own or "srclen" in rule or "not" in rule]
    found = {str(rule["table"]) for rule in rules if "table" in rule}
    if any("l3mdev" in rule for rule in rules):
        links = [link.get("linkinfo", {}) for link in _ip(run, "link", "show")]
        found |= {str(link["info_data"]["table"]) for link in links if link.get("info_kind") == "vrf"}
    return found - {_MAIN} - _NEVER_A_WAY


def _members(objects: Mapping[int, Mapping[str, Any]], number: int) -> Iterator[Mapping[str, Any]]:
    """The next hops behind a next hop object, which may be a group of others (never of groups)."""
    chosen = objects.get(number, {})
    if "group" not in chosen:
        yield chosen
    for member in chosen.get("group", ()):
        yield objects.get(member["id"], {})


def neighbours(run: Run) -> dict[str, str]:
    """Address -> MAC, of the neighbours that have one."""
    return {entry["dst"]: entry["lladdr"] for entry in _ip(run, "neighbour", "show") if entry.get("lladdr")}


def link_to(run: Run, address: str) -> str:
    """The link by which this node reaches an address; empty where it does not."""
    try:
        return str(next((route.get("dev", "") for route in _ip(run, "route", "get", address)), ""))
    except OverlayError:
        return ""


# --- netfilter's hooks on single interfaces ---------------------------------------------------------------------------

_CHAINS = ["nft", "list", "chains"]
_TABLE = re.compile(r"^table (\S+) (\S+) \{")
_CHAIN = re.compile(r"^\s+chain (\S+) \{")
_HOOK = re.compile(r"\bhook (ingress|egress) devices? (?:= \{([^}]*)\}|(\S+))")


def netdev_chains(run: Run) -> tuple[list[dict[str, str]], str]:
    """The nft chains on single interfaces (``interface``, which may end in ``*``; ``direction``; ``chain``), and why
    they are not known (empty: they are). Without nft there are none.

    As text, since nft 1.0.6 leaves the interfaces out of its JSON.
    """
    try:
        code, output, message = run(_CHAINS)
    except OSError:
        return [], ""
    if code == 0:
        return list(_chains_in(output.splitlines())), ""
    # Kernels without nf_tables have no such chains.
    return [], "" if "not supported" in message.lower() or not message.strip() else message.strip().splitlines()[0]


def _chains_in(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    table = chain = ""
    for line in lines:
        if opened := _TABLE.match(line):
            table = f"{opened[1]} {opened[2]}"
        elif opened := _CHAIN.match(line):
            chain = opened[1]
        elif hook := _HOOK.search(line):
            for name in (hook[2] or hook[3]).split(","):
                interface = name.strip().strip('"')
                if interface:
                    yield {"interface": interface, "direction": hook[1], "chain": f"{table} {chain}"}
