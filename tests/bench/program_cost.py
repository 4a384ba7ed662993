# SPDX-License-Identifier: GPL-3.0-or-later
"""Nanoseconds per run of a program on one packet, above an empty program, by BPF_PROG_TEST_RUN."""

from __future__ import annotations

import random
import statistics
import struct
from dataclasses import dataclass
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf

from . import topology
from .objects import BenchError, Loaded
from .pace import Pace, best, chosen
from .packets import ACK, SYN, forwarded, tcp, udp

# All rounds of one call work on the same packet, whose TTL goes down from 255: so a call is short, and there are many.
REPEAT = 200
CALLS = 50
TC_ACT_UNSPEC, TC_ACT_REDIRECT = 0xFFFFFFFF, 7
CLIENT_PORT, OTHER_PORT = 40000, 443

# Case -> (pace, ns per run) of every turn.
Samples = dict[str, list[tuple[float, float]]]


@dataclass(frozen=True)
class Case:
    name: str
    title: str
    program: int
    packet: bytes
    ifindex: int
    verdict: int


def _context(ifindex: int) -> bytes:
    """``struct __sk_buff`` with nothing but its ``ifindex`` (offset 40): the device that the packet comes from."""
    return struct.pack("=40xI148x", ifindex)


def _run(case: Case, repeat: int) -> int:
    verdict, _packet, took = bpf.prog_test_run(case.program, case.packet, repeat, _context(case.ifindex))
    if verdict != case.verdict:
        raise BenchError(f"{case.title}: verdict {verdict}, {case.verdict} expected")
    return took


def _ends(ipv6: bool, port: int = topology.PORT) -> tuple[tuple[str, int], tuple[str, int]]:
    """Client and workload."""
    if ipv6:
        return (topology.CLIENT_IPV6, CLIENT_PORT), (topology.WORKLOAD_IPV6, port)
    return (topology.CLIENT_IPV4, CLIENT_PORT), (topology.WORKLOAD_IPV4, port)


def _request(flags: int, ipv6: bool = False, **more: Any) -> bytes:
    client, workload = _ends(ipv6)
    return tcp(topology.UPLINK_MAC, client, workload, flags, **more)


def _reply(flags: int, ipv6: bool = False, **more: Any) -> bytes:
    client, workload = _ends(ipv6)
    return tcp(topology.HOST_SIDE_MAC, workload, client, flags, **more)


def _open_flows(loaded: Loaded) -> None:
    """Handshakes that go in and come out, and data each way that is acknowledged: a proven way."""
    uplink, host_side = topology.ifindexes()
    into, back = ("from_uplink", uplink, "to_workload", host_side), ("from_workload", host_side, "to_uplink", uplink)
    for ipv6 in (False, True):
        for hooks, packet, verdict in (
            (into, _request(SYN, ipv6, sequence=1, acknowledgement=0), TC_ACT_UNSPEC),
            (back, _reply(SYN | ACK, ipv6, sequence=1), TC_ACT_UNSPEC),
            (into, _request(ACK, ipv6, data=b"as large as it gets"), TC_ACT_UNSPEC),
            (back, _reply(ACK, ipv6, data=b"as large as it gets", acknowledgement=21), TC_ACT_UNSPEC),
            (into, _request(ACK, ipv6, data=b"x", sequence=21, acknowledgement=21), TC_ACT_REDIRECT),
            (back, _reply(ACK, ipv6, data=b"x", sequence=21, acknowledgement=22), TC_ACT_REDIRECT),
            (into, _request(ACK, ipv6, sequence=22, acknowledgement=22), TC_ACT_REDIRECT),
            (back, _reply(ACK, ipv6, sequence=22, acknowledgement=22), TC_ACT_REDIRECT),
        ):
            program, ifindex, watcher, out = hooks
            step = f"opening a flow, {'IPv6' if ipv6 else 'IPv4'}, {program}"
            try:
                _run(Case("", step, loaded.programs[program], packet, ifindex, verdict), 1)
                # What is redirected passes that hook too, where it must be told apart.
                _run(Case("", step, loaded.programs[watcher], forwarded(packet), out, TC_ACT_UNSPEC), 1)
            except BenchError as error:
                counted = {label: count for label, count in loaded.counters().items() if count}
                raise BenchError(f"{error}; the counters say {counted}") from None


def _overlay_cases(name: str, loaded: Loaded) -> list[Case]:
    uplink, host_side = topology.ifindexes()
    sides = (("in", "from_uplink", uplink, _request), ("out", "from_workload", host_side, _reply))
    cases = []
    for side, program, ifindex, packet in sides:
        fd = loaded.programs[program]
        hit = [
            (f"{name}.hit{'6' * ipv6}.{side}", packet(ACK, ipv6, sequence=22, acknowledgement=22))
            for ipv6 in (False, True)
        ]
        cases += [Case(key, f"{name} {key}", fd, data, ifindex, TC_ACT_REDIRECT) for key, data in hit]
    return cases


def _miss_cases(loaded: Loaded) -> list[Case]:
    uplink, host_side = topology.ifindexes()
    cases = []
    for side, program, ifindex, mac in (
        ("in", "from_uplink", uplink, topology.UPLINK_MAC),
        ("out", "from_workload", host_side, topology.HOST_SIDE_MAC),
    ):
        for ipv6 in (False, True):
            source, destination = _ends(ipv6, OTHER_PORT)[:: 1 if side == "in" else -1]
            for kind, packet in (("udp", udp(mac, source, destination)), ("tcp", tcp(mac, source, destination, ACK))):
                name = f"miss.{kind}{'6' * ipv6}.{side}"
                cases.append(Case(name, name, loaded.programs[program], packet, ifindex, TC_ACT_UNSPEC))
    return cases


def _watch_cases(loaded: Loaded) -> list[Case]:
    """At the egress hooks: a packet that is neither a handshake nor awaited, of a listed service and of another."""
    uplink, host_side = topology.ifindexes()
    cases = []
    for side, program, ifindex, packet in (
        ("in", "to_workload", host_side, _request(ACK, sequence=77)),
        ("out", "to_uplink", uplink, _reply(ACK, sequence=77)),
    ):
        cases.append(Case(f"watch.{side}", f"watch, {side}", loaded.programs[program], packet, ifindex, TC_ACT_UNSPEC))
    return cases


def cases(empty: Loaded, original: Loaded, neigh: Loaded, peer: Loaded) -> list[Case]:
    uplink, host_side = topology.ifindexes()
    for loaded in (neigh, peer):
        topology.set_mode(loaded, "on", 1 << 30)  # no heartbeat
        _open_flows(loaded)
    return [
        Case("empty", "empty", empty.programs["empty"], _request(ACK), uplink, TC_ACT_UNSPEC),
        Case("original.in", "original, in", original.programs["request"], _request(ACK), uplink, TC_ACT_REDIRECT),
        Case("original.out", "original, out", original.programs["reply"], _reply(ACK), host_side, TC_ACT_REDIRECT),
        *_overlay_cases("neigh", neigh),
        *_overlay_cases("peer", peer),
        *_miss_cases(peer),
        *_watch_cases(peer),
    ]


def _turn(case: Case) -> float:
    """ns per run: many calls on end, so that caches are as warm as they get; the middle half of them counts."""
    took = sorted(_run(case, REPEAT) for __ in range(CALLS))
    return statistics.fmean(took[CALLS // 4 : CALLS - CALLS // 4])


def measure(everyone: list[Case], pace: Pace, rounds: int) -> Samples:
    found: Samples = {case.name: [] for case in everyone}
    for case in everyone:
        _turn(case)
    for __ in range(rounds):
        for case in random.sample(everyone, len(everyone)):
            before, took = pace.now(), _turn(case)
            found[case.name].append((max(before, pace.now()), took))
    return found


def figures(found: Samples) -> dict[str, float]:
    """Nanoseconds above the empty program, from undisturbed turns."""
    pace = best(pace for samples in found.values() for pace, __ in samples)
    took = {name: statistics.median(chosen(samples, pace, 5)) for name, samples in found.items()}
    net = {name: value - took["empty"] for name, value in took.items() if name != "empty"}
    result = {f"prog.{name}_ns": value for name, value in net.items()}
    result["prog.empty_ns"] = took["empty"]
    # The dearer direction, and the dearest packet that is not ours.
    result["prog.hit_ns"] = max(net["peer.hit.in"], net["peer.hit.out"])
    result["prog.hit6_ns"] = max(net["peer.hit6.in"], net["peer.hit6.out"])
    result["prog.hit_over_original"] = max(net[f"peer.hit.{side}"] / net[f"original.{side}"] for side in ("in", "out"))
    result["prog.watch_ns"] = max(net["watch.in"], net["watch.out"])
    result["prog.miss_ns"] = max(value for name, value in net.items() if name.startswith("miss."))
    return result
