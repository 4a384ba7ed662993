# SPDX-License-Identifier: GPL-3.0-or-later
"""Nanoseconds per run of a program on one packet, above an empty program, by BPF_PROG_TEST_RUN."""

from __future__ import annotations

import random
import socket
import statistics
import struct
from dataclasses import dataclass

from ansible_collections.ebpf.overlay.plugins.module_utils import _bpf_syscall as bpf

from . import topology
from .objects import BenchError, Loaded
from .packets import ACK, SYN, tcp, udp

# All rounds of one call work on the same packet, whose TTL goes down from 255: so a call is short, and there are many.
REPEAT = 200
CALLS = 50
TC_ACT_UNSPEC, TC_ACT_REDIRECT = 0xFFFFFFFF, 7
CLIENT_PORT = 40000


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


def _requests(flags: int, ipv6: bool = False) -> bytes:
    ends = (topology.CLIENT_IPV6, topology.WORKLOAD_IPV6) if ipv6 else (topology.CLIENT_IPV4, topology.WORKLOAD_IPV4)
    return tcp(ends[0], CLIENT_PORT, ends[1], topology.PORT, flags)


def _replies(flags: int, ipv6: bool = False) -> bytes:
    ends = (topology.CLIENT_IPV6, topology.WORKLOAD_IPV6) if ipv6 else (topology.CLIENT_IPV4, topology.WORKLOAD_IPV4)
    return tcp(ends[1], topology.PORT, ends[0], CLIENT_PORT, flags)


def _open_flows(loaded: Loaded) -> None:
    """The handshake, so that what follows belongs to an established flow."""
    uplink, host_side = topology.ifindexes()
    for ipv6 in (False, True):
        for program, packet, ifindex in (
            ("from_uplink", _requests(SYN, ipv6), uplink),
            ("from_workload", _replies(SYN | ACK, ipv6), host_side),
            ("from_uplink", _requests(ACK, ipv6), uplink),
        ):
            step = f"handshake, {'IPv6' if ipv6 else 'IPv4'}, {program}"
            try:
                _run(Case("", step, loaded.programs[program], packet, ifindex, TC_ACT_REDIRECT), 1)
            except BenchError as error:
                counted = {label: count for label, count in loaded.counters().items() if count}
                raise BenchError(f"{error}; the counters say {counted}") from None


def _overlay_cases(name: str, loaded: Loaded) -> list[Case]:
    uplink, host_side = topology.ifindexes()
    sides = (("in", "from_uplink", uplink, _requests), ("out", "from_workload", host_side, _replies))
    cases = []
    for side, program, ifindex, packet in sides:
        fd = loaded.programs[program]
        hit = [(f"{name}.hit.{side}", packet(ACK)), (f"{name}.hit6.{side}", packet(ACK, True))]
        cases += [Case(key, f"{name} {key}", fd, data, ifindex, TC_ACT_REDIRECT) for key, data in hit]
    return cases


def _miss_cases(loaded: Loaded) -> list[Case]:
    uplink, host_side = topology.ifindexes()
    ends = topology.CLIENT_IPV4, topology.WORKLOAD_IPV4
    ends6 = topology.CLIENT_IPV6, topology.WORKLOAD_IPV6
    cases = []
    for side, program, ifindex in (("in", "from_uplink", uplink), ("out", "from_workload", host_side)):
        for kind, packet in (
            ("udp", udp(ends[0], CLIENT_PORT, ends[1], 53)),
            ("tcp", tcp(ends[0], CLIENT_PORT, ends[1], 443, ACK)),
            ("udp6", udp(ends6[0], CLIENT_PORT, ends6[1], 53)),
            ("tcp6", tcp(ends6[0], CLIENT_PORT, ends6[1], 443, ACK)),
        ):
            name = f"miss.{kind}.{side}"
            cases.append(Case(name, name, loaded.programs[program], packet, ifindex, TC_ACT_UNSPEC))
    return cases


def cases(empty: Loaded, original: Loaded, neigh: Loaded, peer: Loaded) -> list[Case]:
    uplink, host_side = topology.ifindexes()
    for loaded in (neigh, peer):
        topology.set_mode(loaded, "on")
        _open_flows(loaded)
    return [
        Case("empty", "empty", empty.programs["empty"], _requests(ACK), uplink, TC_ACT_UNSPEC),
        Case("original.in", "original, in", original.programs["request"], _requests(ACK), uplink, TC_ACT_REDIRECT),
        Case("original.out", "original, out", original.programs["reply"], _replies(ACK), host_side, TC_ACT_REDIRECT),
        *_overlay_cases("neigh", neigh),
        *_overlay_cases("peer", peer),
        *_miss_cases(peer),
    ]


def _turn(case: Case) -> float:
    """One turn: many calls on end, so that caches are as warm as they get; the middle half of them counts."""
    took = sorted(_run(case, REPEAT) for _ in range(CALLS))
    return statistics.fmean(took[CALLS // 4 : CALLS - CALLS // 4])


def measure(everyone: list[Case], rounds: int) -> dict[str, list[float]]:
    """Case -> ns per run in every round; the empty program is not yet taken off."""
    found: dict[str, list[float]] = {case.name: [] for case in everyone}
    for case in everyone:
        _turn(case)
    for _ in range(rounds):
        for case in random.sample(everyone, len(everyone)):
            found[case.name].append(_turn(case))
    return found
