# SPDX-License-Identifier: GPL-3.0-or-later
"""The paths: what each attaches to the node, and how one sees that the packets took it. Runs in the guest."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.tc import TrafficControl

from .. import objects, topology
from ..objects import BenchError, Loaded
from . import choice, datapath

MANY = 500
# (side, direction) -> file descriptor of a program.
Hooks = Mapping[tuple[str, str], int]
Share = tuple[float, float]

ALL: Share = (0.95, 1.01)
NONE: Share = (0.0, 0.01)
DEFERRED = 0.1
_INGRESS = (("uplink", "ingress"), ("workload", "ingress"))
_TCX = {"ingress": bpf.ATTACH_TCX_INGRESS, "egress": bpf.ATTACH_TCX_EGRESS}

# What an administrator writes to have the kernel's own shortcut.
FLOWTABLE = f"""
    table inet shortcut {{
        flowtable flows {{ hook ingress priority filter; devices = {{ {topology.UPLINK}, {topology.HOST_SIDE} }}; }}
        chain forward {{
            type filter hook forward priority filter; policy accept;
            meta l4proto tcp flow add @flows
        }}
    }}"""


@dataclass(frozen=True)
class Contender:
    """``hooks``: makes the programs. ``filtered``: kind -> the share of the packets that the packet filter must see.

    ``counted``: kind -> the share that the overlay must have redirected; empty where there is no overlay.
    ``tracked``: whether conntrack must know the connection; ``offloaded``: whether its flow table must.
    """

    filtered: Mapping[str, Share]
    tracked: bool
    hooks: Callable[[], Hooks] = dict
    tcx: bool = False
    rules: int = 0
    offloaded: bool = False
    mode: str = ""
    counted: Mapping[str, Share] = field(default_factory=dict)
    address: str = topology.WORKLOAD_IPV4
    device: str = "eth0"
    """The client's, which all packets pass."""


def _every_kind(share: Share) -> dict[str, Share]:
    return dict.fromkeys(choice.KINDS, share)


@functools.lru_cache(None)
def overlay() -> Loaded:
    """Loaded once, since a build takes some time here."""
    return datapath.load()


@functools.lru_cache(None)
def _empty() -> Hooks:
    return dict.fromkeys(datapath.HOOKS, objects.empty().programs["empty"])


@functools.lru_cache(None)
def _original() -> Hooks:
    loaded = objects.original()
    topology.fill_original(loaded)
    return {hook: loaded.programs[name] for hook, name in zip(_INGRESS, ("request", "reply"))}


@functools.lru_cache(None)
def _blind() -> Hooks:
    loaded = objects.blind(*topology.ifindexes(), topology.CLIENT_IPV4)
    return {hook: loaded.programs[name] for hook, name in zip(_INGRESS, ("blind_request", "blind_reply"))}


@functools.lru_cache(None)
def _studies() -> Loaded:
    uplink, host_side = topology.ifindexes()
    defines = {
        "UPLINK": uplink, "HOST_SIDE": host_side,
        "CLIENT": int(ipaddress.IPv4Address(topology.CLIENT_IPV4)),
        "WORKLOAD": int(ipaddress.IPv4Address(topology.WORKLOAD_IPV4)),
        "CLIENT_MAC": _mac(topology.CLIENT), "WORKLOAD_MAC": _mac(topology.WORKLOAD),
        "UPLINK_MAC": _number(topology.UPLINK_MAC), "HOST_SIDE_MAC": _number(topology.HOST_SIDE_MAC),
    }  # fmt: skip
    source = objects.HERE / "exact" / "studies.c"
    return objects.build(source, ("to_peer", "to_neigh", "to_frame", "back_neigh", "back_frame"), **defines)


def _number(mac: str) -> int:
    return int(mac.replace(":", ""), 16)


def _mac(namespace: str) -> int:
    return _number(json.loads(_run(["ip", "-n", namespace, "-j", "link", "show", "dev", "eth0"]))[0]["address"])


def _study(name: str) -> Hooks:
    towards, __, back = name.partition("_")
    return dict(zip(_INGRESS, (_studies().programs[f"to_{towards}"], _studies().programs[f"back_{back}"])))


def _overlay() -> Hooks:
    return {hook: overlay().programs[name] for hook, name in datapath.HOOKS.items()}


def contender(path: str) -> Contender:
    """What the path stands for. Raises KeyError for one that is not known."""
    kernel = Contender(_every_kind(ALL), tracked=True)
    without = Contender(_every_kind(NONE), tracked=False)
    tcx = path.endswith("_tcx") or path == "tcx"
    if path in choice.STUDIES:
        return replace(without, hooks=functools.partial(_study, path))
    return {
        "direct": lambda: replace(without, address=topology.DIRECT_WORKLOAD, device="direct"),
        "kernel": lambda: kernel,
        "kernel_rules": lambda: replace(kernel, rules=MANY),
        # The flow table takes neither the handshake nor what follows the first FIN.
        "flowtable": lambda: replace(kernel, offloaded=True, filtered={**_every_kind(NONE), "connect": (0.3, 0.9)}),
        "original": lambda: replace(without, hooks=_original),
        "blind": lambda: replace(without, hooks=_blind, tcx=tcx),
        "empty": lambda: replace(kernel, hooks=_empty, tcx=tcx),
        "off": lambda: replace(kernel, hooks=_overlay, tcx=tcx, mode="off", counted=_every_kind((0.0, 0.0))),
        "overlay": lambda: Contender(
            datapath.FILTERED, datapath.TRACKED, hooks=_overlay, tcx=tcx, mode="on", counted=datapath.COUNTED
        ),
    }[{"clsact": "overlay", "tcx": "overlay"}.get(path) or path.replace("_tcx", "").replace("_clsact", "")]()


@contextlib.contextmanager
def in_place(one: Contender) -> Iterator[None]:
    """The node as this contender has it."""
    topology.filter_packets(one.rules)
    if one.offloaded:
        _run(["nft", "-f", "-"], FLOWTABLE)
    hooks = one.hooks()
    if one.mode:
        datapath.set_mode(overlay(), one.mode)
    with _attached(hooks, one.tcx):
        yield


@contextlib.contextmanager
def _attached(hooks: Hooks, tcx: bool) -> Iterator[None]:
    interfaces = dict(zip(("uplink", "workload"), topology.ifindexes()))
    if tcx:
        links = [bpf.link_create_tcx(fd, interfaces[side], _TCX[direction]) for (side, direction), fd in hooks.items()]
        try:
            yield
        finally:
            for link in links:
                os.close(link)
        return
    sides = dict.fromkeys(side for side, __ in hooks)
    with TrafficControl() as traffic_control:
        for side in sides:
            traffic_control.add_clsact(interfaces[side])
        for (side, direction), fd in hooks.items():
            traffic_control.add_filter(interfaces[side], direction, datapath.PRIORITY, 1, "bench", fd)
        try:
            yield
        finally:
            for side in sides:
                traffic_control.delete_clsact(interfaces[side])


# -- which way the packets took ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """Packets so far: at the client, in the packet filter's forward chain, redirected by the overlay.

    ``deferred``: how often ksoftirqd has run. Up to Linux 6.4 soft interrupts wait for it while it is awake. Where it
    never gets to sleep, each packet costs a switch to it and back, 3,700 instructions of a round trip, and which
    contender meets that is chance.
    """

    carried: int
    filtered: int
    counted: int
    deferred: int


@functools.lru_cache(None)
def ksoftirqd() -> int:
    """The process id of the only processor's one."""
    (found,) = [
        path for path in Path("/proc").glob("[0-9]*/comm") if path.read_text(encoding="ascii") == "ksoftirqd/0\n"
    ]
    return int(found.parent.name)


def look(one: Contender) -> Seen:
    (link,) = json.loads(_run(["ip", "-n", topology.CLIENT, "-s", "-j", "link", "show", "dev", one.device]))
    rules = json.loads(_run(["nft", "-j", "list", "chain", "inet", "bench", "forward"]))["nftables"]
    expressions = [part for entry in rules for part in entry.get("rule", {}).get("expr", ())]
    return Seen(
        link["stats64"]["rx"]["packets"] + link["stats64"]["tx"]["packets"],
        sum(part["counter"]["packets"] for part in expressions if "counter" in part),
        datapath.redirected(overlay()) if one.mode else 0,
        int(Path(f"/proc/{ksoftirqd()}/schedstat").read_text(encoding="ascii").split()[2]),
    )


def check(one: Contender, kind: str, before: Seen, after: Seen, client_port: int) -> int:
    """Raises BenchError unless the packets of a run went this contender's way; returns how many there were."""
    carried = after.carried - before.carried
    if not carried:
        raise BenchError(f"nothing passed {one.device} of the client")
    wanted = {"the packet filter saw": (after.filtered - before.filtered, one.filtered[kind])}
    if one.counted:
        wanted["the overlay redirected"] = (after.counted - before.counted, one.counted[kind])
    for what, (packets, (least, most)) in wanted.items():
        if not least <= packets / carried <= most:
            raise BenchError(f"{what} {packets} of {carried} packets, {least:.0%} to {most:.0%} expected")
    if (deferred := after.deferred - before.deferred) > carried * DEFERRED:
        raise BenchError(f"ksoftirqd ran {deferred} times for {carried} packets, which are handled at once otherwise")
    # Of many connections each is as the first, and of that nothing is left in the flow table.
    entry = _run(["conntrack", "-L", "-p", "tcp", "--sport", str(client_port)])
    if bool(entry.strip()) != one.tracked:
        raise BenchError(f"conntrack {'does not know' if one.tracked else 'knows'} the connection: {entry.strip()}")
    if one.offloaded and kind != "connect" and "[OFFLOAD]" not in entry:
        raise BenchError(f"the connection is not in the flow table: {entry.strip()}")
    return carried


def _run(command: list[str], text: str = "") -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
