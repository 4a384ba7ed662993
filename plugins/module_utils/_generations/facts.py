# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node says of itself: its network, its kernel, and where it is."""

from __future__ import annotations

import os
import platform
import shutil
import time
from dataclasses import asdict
from typing import Any, Callable

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.resource import Params, Warn
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import topology
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import uplinks as _uplinks
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import workloads as _workloads
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.conntrack import LIBERAL, is_liberal
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.control import known_control
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.exclusions import parse_exclude
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.layout import BPFFS, PIN_DIR
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.peers import PEER
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.sysctls import read_values
from ansible_collections.ebpf.overlay.plugins.module_utils._hooks.inspect import read_interfaces
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import features, ip
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.helper_ports import find_helper_ports
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.machine import identity, running_since
from ansible_collections.ebpf.overlay.plugins.module_utils._objects.headers import SYSTEM

from . import command as _command
from . import model
from .runtime import is_as_confirmed
from .store import Store

SPEC: dict[str, Any] = {
    "uplinks": {"type": "list", "elements": "str", "default": []},
    "workload_interfaces": {"type": "list", "elements": "str", "default": ["cali*"]},
    "exclude": {"type": "list", "elements": "str", "default": []},
    "known_peers": {"type": "bool", "default": False},
    "compare": {"type": "bool", "default": False},
    "code": {"type": "str"},
}

PACKAGE_MANAGERS = {"apt": "apt-get", "dnf": "dnf"}
HEADER = f"{SYSTEM}/linux/if_packet.h"  # one of the UAPI headers, which are in one package


def known_peers(interfaces: list[dict[str, Any]]) -> list[str]:
    """The prefixes of the confirmed generation's peers, without the node's own addresses."""
    history = Store().read()
    if history.confirmed not in history.generations:
        return []
    ifindexes = {interface["name"]: interface["ifindex"] for interface in interfaces}
    calls = model.calls_to(history, history.confirmed, ifindexes)
    filled = {call["arguments"].get("map"): call["arguments"].get("entries", []) for call in calls}
    found = []
    for entry in filled.get(f"{PIN_DIR}/peers", []):
        value = entry["value"]
        # Release 1.0.0 noted the way to a peer instead.
        if value["uplink"] if isinstance(value, dict) else value == PEER:
            found.append(entry["key"])
    return found


def confirmed_generation(code: str | None) -> dict[str, Any]:
    """Where the node is, and whether it is known to be what that says."""
    store = Store()
    history = store.read(mending=True)
    return {
        "number": history.confirmed,
        "digest": history.digest,
        "switched_off": history.switched_off,
        "as_confirmed": bool(code) and is_as_confirmed(store, history, str(code)),
        "overlayctl": bool(code) and _command.as_wanted(str(code)),
    }


def look_at_workloads(workloads: list[dict[str, Any]], chains: list[dict[str, str]]) -> None:
    """Add to each workload what somebody else has on its interface."""
    interfaces = {workload["interface"]: workload["ifindex"] for workload in workloads}
    try:
        found = {one["name"]: one for one in read_interfaces(interfaces, BPFFS)}
    except OSError as error:
        raise OverlayError(
            "read what hangs on the interfaces of workloads",
            ", ".join(sorted(interfaces)[:3]),
            error,
            "Check that the module runs as root (become), then run again.",
        ) from None
    for workload in workloads:
        workload.update(_workloads.hindrances(found[workload["interface"]], chains))


def gather(params: Params, command: ip.Run, available: Callable[[str], bool], warn: Warn) -> dict[str, Any]:
    """``command`` raises OSError for a program that is not there. ``available``: whether a library can be had."""
    globs, workload_globs = params["uplinks"], params["workload_interfaces"]
    chains, unknown = ip.netdev_chains(command)
    if unknown:
        warn(f"Whether nft has chains on single interfaces is not known: {unknown}")
    routes = ip.routes(command)
    interfaces = ip.interfaces(command, [route for route in routes if route["table"] is None])
    for interface in interfaces:
        interface["unfit"] = _uplinks.why_unfit(interface, workload_globs, chains)
    exclude = parse_exclude(params["exclude"])
    workloads = _workloads.find_workloads(interfaces, routes, ip.neighbours(command), workload_globs, exclude)
    look_at_workloads(workloads, chains)
    uplinks, left_out = _uplinks.find_uplinks(interfaces, routes, globs)
    if not workloads:
        warn(
            f"No workload found: no host route leads to an interface that matches {', '.join(workload_globs)}. "
            "That is right for a node without workloads; otherwise correct workload_interfaces."
        )
    carriers = {one["name"] for one in interfaces if _workloads.matches(one["name"], workload_globs)}
    others = [interface for interface in interfaces if interface["name"] not in carriers]
    control = known_control(PIN_DIR)
    conntrack = read_values()
    version = features.stable_version(platform.release(), platform.version())
    return {
        "format": topology.FORMAT,
        "uplinks": uplinks,
        "uplinks_by_route": not globs,
        "links_left_out": left_out,
        "workloads": workloads,
        "workload_prefixes": sorted({route["prefix"] for route in routes if route["interface"] is None}),
        "interfaces": [interface for interface in others if not interface["loopback"]],
        "addresses": sorted(address.split("/")[0] for interface in interfaces for address in interface["addresses"]),
        "own_addresses": _uplinks.own_addresses(others, routes),
        "routes": [route for route in routes if route["interface"] and route["interface"] not in carriers],
        "kernel": {"release": platform.release(), "version": ".".join(map(str, version))},
        "capabilities": {**features.capabilities(version), "btf": os.path.exists("/sys/kernel/btf/vmlinux")},
        "package_manager": next((name for name, tool in PACKAGE_MANAGERS.items() if shutil.which(tool)), ""),
        "libraries": {**{name: available(name) for name in ("bcc", "pyroute2")}, "headers": os.path.exists(HEADER)},
        "identity": identity(),
        "running_since": running_since(),
        "gathered_at": int(time.time()),
        "generation": confirmed_generation(params["code"]) if params["compare"] else None,
        "known_peers": known_peers(interfaces) if params["known_peers"] else [],
        "control": asdict(control) if control else None,
        "conntrack": {
            "loaded": LIBERAL in conntrack,
            "liberal": is_liberal(conntrack),
            "settings": conntrack,
            "helpers": find_helper_ports(command, warn),
        },
    }
