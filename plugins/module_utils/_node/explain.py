# SPDX-License-Identifier: GPL-3.0-or-later
"""One connection, new or live: what the maps of the loaded datapath say of it."""

from __future__ import annotations

import ipaddress
import socket
import time
from dataclasses import replace
from typing import Any, Callable

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.control import jiffies_per_second
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.flows import COUNTED, read_flows
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.layout import PIN_DIR, PROTOCOLS
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.reasons import REASONS
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.topology import candidates

from . import live
from .admission import Seen, walk
from .flow_states import MEANINGS, Selection, told

_MEANING = dict(REASONS.values())
_OTHERS = {"absent": "no datapath is loaded", "off": "the mode is off"}


def parse_end(text: str) -> tuple[str, int | None]:
    """``10.0.0.1``, ``10.0.0.1:40312``, ``fd00::1`` or ``[fd00::1]:40312`` -> address, port. Raises OverlayError."""
    address, port = text, ""
    if text.startswith("[") and "]" in text:
        address, _bracket, port = text[1:].partition("]")
        port = port[1:]
    elif text.count(":") == 1:
        address, _colon, port = text.partition(":")
    try:
        return str(ipaddress.ip_address(address)), int(port) if port else None
    except ValueError as error:
        advice = "Give an address, or an address and a port as 10.0.0.1:40312 or [fd00::1]:40312."
        raise OverlayError("find a connection", text, error, advice) from error


def explain(client: str, server: str, port: int, client_port: int | None) -> dict[str, Any]:
    """The rule that decides about a new connection, and the live ones between these ends. Raises OverlayError."""
    seen = look(_entry, client, server, port, client_port, time.monotonic_ns())
    interface = seen.client or seen.server
    if interface:
        seen = replace(seen, ways=_ways(interface))
    found = walk(seen, client, server, port)
    found["meaning"] = _OTHERS.get(found["decides"]) or _MEANING[found["decides"]]
    return {**found, "flows": _flows(client, server, port, client_port)}


Entry = Callable[[str, Any], Any]
"""Name of a map, key -> value; None where no datapath is loaded, or it has no such entry."""


def look(entry: Entry, client: str, server: str, port: int, client_port: int | None, now: int) -> Seen:
    """What the maps say of a new connection, but for the trials. ``now``: ns of CLOCK_MONOTONIC."""
    control = entry("control", 0)
    if control is None:
        return Seen(None)
    protocols = [0 if number is None else entry("services", number) or 0 for number in (port, client_port)]
    workloads = [entry("ifindex_map", address) for address in (client, server)]
    interfaces = [None if value is None else value["ifindex"] for value in workloads]
    names = [None if interface is None else str(interface) for interface in interfaces]
    other = ipaddress.ip_address(client if interfaces[0] is None else server)
    here = next((interface for interface in interfaces if interface is not None), None)
    return Seen(
        control["mode"],
        bool(control["deadline"]) and now >= control["deadline"],
        (bool(protocols[0] & PROTOCOLS["tcp"]), bool(protocols[1] & PROTOCOLS["tcp"])),
        names[0],
        names[1],
        entry("peers", f"{other}/{other.max_prefixlen}"),
        here is None or any(entry("devices", place) == here for place in candidates(_number(here))),
    )


def _number(interface: str | int) -> int:
    """Of an interface that is gone, the codec knows the number alone."""
    return interface if isinstance(interface, int) else socket.if_nametoindex(interface)


def _entry(name: str, key: Any) -> Any:
    return live.read(name, lambda known: known.lookup(key))


def _ways(interface: str) -> tuple[str, ...]:
    def ask(trials: live.Map) -> tuple[str, ...]:
        matching = trials.entries(lambda key: str(key["workload"]) == interface)
        return tuple(f"by {key['uplink']} to {key['next_hop']}: {value['state']}" for _raw, key, value in matching)

    found: tuple[str, ...] = live.read("trials", ask, ())
    return found


def _flows(client: str, server: str, port: int, client_port: int | None) -> list[dict[str, Any]]:
    def between(flow: Any) -> bool:
        known = [(flow[end], flow[f"{end}_port"]) for end in ("workload", "remote")]
        return any(
            here == (server, port) and there[0] == client and client_port in (None, there[1])
            for here, there in (known, known[::-1])
        )

    now, second = live.jiffies(), jiffies_per_second()
    found = [told(flow, now, second) for _raw, flow in live.flows(Selection()) if between(flow)]
    for flow, counts in zip(found, read_flows(PIN_DIR, [_ends(flow) for flow in found])):
        flow.update({name: counts[name] for name in COUNTED}, meaning=MEANINGS[flow["state"]])
    return found


def _ends(flow: dict[str, Any]) -> dict[str, Any]:
    return {name: flow[name] for name in ("workload", "workload_port", "remote", "remote_port")}
