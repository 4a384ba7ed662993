# SPDX-License-Identifier: GPL-3.0-or-later
"""Interfaces, addresses, routes and neighbours of this network namespace, read with ``ip -json``.

iproute2 is on every node from the start, pyroute2 is not: facts must be there before anything is installed.
"""

from __future__ import annotations

import json
from typing import Any, Callable

from ansible_collections.ebpf.overlay.plugins.module_utils._errors import OverlayError

# Runs a command, returns (exit code, standard output, standard error).
Run = Callable[[list[str]], tuple[int, str, str]]

# A route that any of these says something about is no way for packets of others.
_TYPES = {None, "unicast"}


def _ip(run: Run, *arguments: str) -> list[dict[str, Any]]:
    command = ["ip", "-json", "-details", *arguments]
    code, output, message = run(command)
    if code != 0:
        raise OverlayError(
            "read the network configuration",
            " ".join(command),
            message.strip() or f"exit code {code}",
            "Check that iproute2 is installed on the node and that the command works there.",
        )
    # Old versions print nothing, or empty objects, where there is nothing to tell.
    return [entry for entry in json.loads(output or "[]") if entry]


def interfaces(run: Run) -> list[dict[str, Any]]:
    """``name, ifindex, mtu`` (bytes), ``mac, kind, loopback, up, addresses`` (global, with prefix length)."""
    found = []
    for link in _ip(run, "address", "show"):
        found.append(
            {
                "name": link["ifname"],
                "ifindex": link["ifindex"],
                "mtu": link["mtu"],
                "mac": link.get("address", ""),
                "kind": link.get("linkinfo", {}).get("info_kind", ""),
                "loopback": link.get("link_type") == "loopback",
                "up": "UP" in link.get("flags", ()),
                "addresses": [
                    f"{address['local']}/{address['prefixlen']}"
                    for address in link.get("addr_info", ())
                    if address.get("scope") == "global" and "local" in address
                ],
            }
        )
    return found


def routes(run: Run) -> list[dict[str, Any]]:
    """Unicast routes of the main table: ``prefix, interface, gateway`` (None: on link), ``metric``."""
    found = []
    for option, everything in (("-4", "0.0.0.0/0"), ("-6", "::/0")):
        for route in _ip(run, option, "route", "show", "table", "main"):
            if route.get("type") not in _TYPES:
                continue
            prefix = everything if route["dst"] == "default" else route["dst"]
            # Of several next hops the kernel picks one per flow; the first stands for all, and the datapath
            # compares with the kernel's choice before it makes a flow.
            hop = route if "dev" in route else (route.get("nexthops") or [{}])[0]
            if "dev" not in hop:
                continue
            via = hop.get("via", {}).get("host") if isinstance(hop.get("via"), dict) else None
            found.append(
                {
                    "prefix": prefix,
                    "interface": hop["dev"],
                    "gateway": hop.get("gateway") or via,
                    "metric": route.get("metric", 0),
                }
            )
    return found


def neighbours(run: Run) -> dict[str, str]:
    """Address -> MAC, of the neighbours that have one."""
    return {entry["dst"]: entry["lladdr"] for entry in _ip(run, "neighbour", "show") if entry.get("lladdr")}
