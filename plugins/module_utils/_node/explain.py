# SPDX-License-Identifier: GPL-3.0-or-later
"""One connection, new or live: what the maps of the loaded datapath say of it."""

from __future__ import annotations

import ipaddress
import time
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.control import jiffies_per_second, read_control
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
    if text.startswith("["):
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
    found = walk(_look(client, server, port, client_port), client, server, port)
    found["meaning"] = _OTHERS.get(found["decides"]) or _MEANING[found["decides"]]
    return {**found, "flows": _flows(client, server, port, client_port)}


def _look(client: str, server: str, port: int, client_port: int | None) -> Seen:
    control = read_control(PIN_DIR)
    if control is None:
        return Seen(None)
    protocols = [0 if number is None else _entry("services", number) or 0 for number in (port, client_port)]
    interfaces = [_entry("ifindex_map", address) for address in (client, server)]
    names = [None if value is None else str(value["ifindex"]) for value in interfaces]
    other = server if names[0] else client
    peer = _entry("peers", f"{other}/{ipaddress.ip_address(other).max_prefixlen}")
    workload = interfaces[0] or interfaces[1]
    return Seen(
        control.mode,
        bool(control.deadline) and time.monotonic_ns() >= control.deadline,
        (bool(protocols[0] & PROTOCOLS["tcp"]), bool(protocols[1] & PROTOCOLS["tcp"])),
        names[0],
        names[1],
        peer,
        workload is None or _carried(workload["ifindex"]),
        _ways(workload["ifindex"]) if workload else (),
    )


def _entry(name: str, key: Any) -> Any:
    return live.read(name, lambda known: known.lookup(key))


def _carried(interface: Any) -> bool:
    def ask(devices: live.Map) -> bool:
        number = int.from_bytes(devices.value.encode(interface), "little")
        return any(devices.lookup(place) == interface for place in candidates(number))

    return bool(live.read("devices", ask, False))


def _ways(interface: Any) -> tuple[str, ...]:
    def ask(trials: live.Map) -> tuple[str, ...]:
        matching = trials.entries(lambda key: key["workload"] == interface)
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
