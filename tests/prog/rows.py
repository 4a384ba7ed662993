# SPDX-License-Identifier: GPL-3.0-or-later
"""How a table of rules is written: rows of a preparation, a packet, and the reason that it must be counted under.

Whether the packet was redirected and what changed in it follow from the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from prog import packets
from prog.datapath import Datapath, Result
from prog.packets import ACK, SYN
from prog.story import BOTH, Connection, expect_pass, expect_redirect

REDIRECTS = ("to_workload", "to_uplink", "icmp_to_workload")
Step = Callable[[Datapath, Connection], Any]


@dataclass(frozen=True)
class Row:
    """``events``: what else is counted. ``families``: 4, 6 or both. ``role``: server, client, or both."""

    name: str
    reason: str
    act: Callable[[Datapath, Connection], Result]
    prepare: tuple[Step, ...] = ()
    events: tuple[str, ...] = ()
    families: tuple[int, ...] = (4, 6)
    roles: tuple[bool, ...] = (True, False)


def rows(table: Iterable[Row]) -> Any:
    """As parameters of a test."""
    cases = [
        pytest.param(row, one.but(server=server), id=f"{row.name}-ipv{one.family}-{'server' if server else 'client'}")
        for row in table
        for one in BOTH
        for server in row.roles
        if one.family in row.families
    ]
    return pytest.mark.parametrize(("row", "connection"), cases)


def check(row: Row, overlay: Datapath, connection: Connection) -> None:
    for step in row.prepare:
        step(overlay, connection)
    result = row.act(overlay, connection)
    if row.reason in REDIRECTS:
        expect_redirect(result)
        assert result.reason in (row.reason, "to_uplink" if row.reason == "to_workload" else row.reason)
    else:
        expect_pass(result, row.reason)
    assert sorted(result.events) == sorted(row.events)
    assert all(label.startswith(_direction(result)) for label in result.counted)


def _direction(result: Result) -> str:
    return next(label for label, count in result.bytes.items() if count).partition(".")[0]


# -- how rows are written --------------------------------------------------------------------------------------------


def first(**more: Any) -> Callable[[Datapath, Connection], Result]:
    return lambda overlay, one: one.opener(overlay, SYN, **more)


def later(flags: int = ACK, payload: bytes = b"", **more: Any) -> Callable[[Datapath, Connection], Result]:
    return lambda overlay, one: one.opener(overlay, flags, payload, **more)


def reply(flags: int = ACK, payload: bytes = b"", **more: Any) -> Callable[[Datapath, Connection], Result]:
    return lambda overlay, one: one.answerer(overlay, flags, payload, **more)


def both_ways(make: Callable[[Connection, bool], bytes]) -> Callable[[Datapath, Connection], Result]:
    """A raw IP packet in the direction in which the flow is opened; ``make(connection, inbound)``."""

    def act(overlay: Datapath, one: Connection) -> Result:
        packet = make(one, one.server)
        return overlay.uplink(packet) if one.server else overlay.workload(packet)

    return act


def frame(make: Callable[[Connection], bytes]) -> Callable[[Datapath, Connection], Result]:
    """A whole Ethernet frame, likewise."""

    def act(overlay: Datapath, one: Connection) -> Result:
        if one.server:
            return overlay.run("from_uplink", make(one), "ens47f1")
        return overlay.run("from_workload", make(one), "cali1")

    return act


def ends(one: Connection, inbound: bool) -> tuple[str, str, int, int]:
    """(source, destination, source port, destination port)"""
    workload_port, remote_port = one.ports
    if inbound:
        return one.remote, one.workload, remote_port, workload_port
    return one.workload, one.remote, workload_port, remote_port


def ip_with(protocol: int) -> Callable[[Connection, bool], bytes]:
    def make(one: Connection, inbound: bool) -> bytes:
        source, destination, source_port, destination_port = ends(one, inbound)
        body = packets.tcp_segment(source, destination, source_port, destination_port, SYN)
        return packets.ip(source, destination, protocol, body)

    return make


def segment_with(flags: int = SYN, **more: Any) -> Callable[[Connection, bool], bytes]:
    def make(one: Connection, inbound: bool) -> bytes:
        source, destination, source_port, destination_port = ends(one, inbound)
        body = packets.tcp_segment(source, destination, source_port, destination_port, flags, **more)
        return packets.ip(source, destination, packets.TCP, body)

    return make


def ipv4_with(**more: Any) -> Callable[[Connection, bool], bytes]:
    def make(one: Connection, inbound: bool) -> bytes:
        source, destination, source_port, destination_port = ends(one, inbound)
        body = packets.tcp_segment(source, destination, source_port, destination_port, SYN)
        return packets.ipv4(source, destination, packets.TCP, body, **more)

    return make


def ipv6_with(extension: int, header: bytes) -> Callable[[Connection, bool], bytes]:
    """One extension header before TCP."""

    def make(one: Connection, inbound: bool) -> bytes:
        source, destination, source_port, destination_port = ends(one, inbound)
        body = packets.tcp_segment(source, destination, source_port, destination_port, SYN)
        return packets.ipv6(source, destination, extension, bytes([packets.TCP]) + header + body)

    return make


def cut(one: Connection, inbound: bool) -> bytes:
    """The frame ends early. (Still shorter ones are refused by the kernel's test run: see test_real_frames.py.)"""
    return (one.inbound(SYN) if inbound else one.outbound(SYN))[:-1]


def error(**more: Any) -> Callable[[Datapath, Connection], Result]:
    """An ICMP error about a packet that the workload sent."""
    return lambda overlay, one: overlay.uplink(packets.icmp_error(one.peer_node, one.outbound(ACK), **more))


def with_mode(mode: str, **more: Any) -> Step:
    return lambda overlay, _: overlay.mode(mode, **more)


def device_gone(name: str) -> Step:
    return lambda overlay, _: overlay.remove("devices", overlay.interfaces[name].ifindex % 65536)


def replaced_by(name: str, other: str) -> Step:
    """Another interface took the index's place in the map."""
    return lambda overlay, _: overlay.put("devices", overlay.interfaces[name].ifindex % 65536, other)


def workload_is(ifindex: str) -> Step:
    return lambda overlay, one: overlay.put("ifindex_map", one.workload, {"ifindex": ifindex, "mtu": 1500, "flags": 0})


def peer_is(uplink: str = "ens47f1", next_hop: str = "::", mtu: int = 1500, address: str = "remote") -> Step:
    def step(overlay: Datapath, one: Connection) -> None:
        prefix = f"{getattr(one, address)}/{128 if one.family == 6 else 32}"
        overlay.put("peers", prefix, {"uplink": uplink, "mtu": mtu, "next_hop": next_hop})

    return step


def with_remote(name: str) -> Callable[[Datapath, Connection], Result]:
    """A first packet between the workload and another remote end, which is a field of the connection."""
    return lambda overlay, one: one.but(remote=getattr(one, name)).opener(overlay, SYN)


def opened(overlay: Datapath, one: Connection) -> None:
    one.open(overlay)


def answered(overlay: Datapath, one: Connection) -> None:
    one.answer(overlay)


def established(overlay: Datapath, one: Connection) -> None:
    one.establish(overlay)


def closed(overlay: Datapath, one: Connection) -> None:
    one.close(overlay)


def was_silent(overlay: Datapath, one: Connection) -> None:
    again = one.but(port=one.port + 1)
    again.open(overlay)
    expect_pass(again.opener(overlay, SYN), "first_packet_repeated")
