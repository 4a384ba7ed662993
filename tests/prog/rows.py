# SPDX-License-Identifier: GPL-3.0-or-later
"""How a table of rules is written: rows of a preparation, a packet, and what it must be counted under.

Whether the packet was redirected follows from the reason, and that it is what the kernel would have sent is checked.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from prog import packets
from prog.kernel import OTHER_HOP, UPLINK, WORKLOAD, Handling, Node, Trip
from prog.packets import ACK, PSH, SYN, forwarded, with_tos
from prog.passing_time import let_pass
from prog.story import BOTH, Connection, Ends, expect_fast, expect_kernel

FAST = "fast"
Step = Callable[[Connection], Any]
Act = Callable[[Connection], Trip]


@dataclass(frozen=True)
class Row:
    """``reason``: of the kernel's path, or FAST. ``events``: what else is counted, at both hooks."""

    name: str
    reason: str
    act: Act
    prepare: tuple[Step, ...] = ()
    events: tuple[str, ...] = ()
    families: tuple[int, ...] = (4, 6)
    roles: tuple[bool, ...] = (True, False)


def rows(table: Iterable[Row]) -> Any:
    """As parameters of a test."""
    cases = [
        pytest.param(row, ends.but(server=server), id=f"{row.name}-ipv{ends.family}-{'server' if server else 'client'}")
        for row in table
        for ends in BOTH
        for server in row.roles
        if ends.family in row.families
    ]
    return pytest.mark.parametrize(("row", "ends"), cases)


def check(row: Row, node: Node, ends: Ends) -> None:
    one = Connection(node, ends)
    for step in row.prepare:
        step(one)
    trip = row.act(one)
    if row.reason == FAST:
        expect_fast(trip)
    else:
        expect_kernel(trip, row.reason)
    assert sorted(trip.events) == sorted(row.events)
    counted = [*trip.result.counted, *(trip.watched.counted if trip.watched else ())]
    assert all(label.startswith(f"{trip.direction}.") for label in counted)


# -- packets ---------------------------------------------------------------------------------------------------------


def first(**more: Any) -> Act:
    return lambda one: one.send(one.opener, SYN, **more)


def answer(**more: Any) -> Act:
    return lambda one: one.send(one.answerer, SYN | ACK, **more)


def later(flags: int = ACK, payload: bytes = b"", **more: Any) -> Act:
    """From the end that opened the connection."""
    return lambda one: one.send(one.opener, flags, payload, **more)


def reply(flags: int = ACK, payload: bytes = b"", **more: Any) -> Act:
    return lambda one: one.send(one.answerer, flags, payload, **more)


def inbound(flags: int = ACK, payload: bytes = b"", **more: Any) -> Act:
    return lambda one: one.send(UPLINK, flags, payload, **more)


def outbound(flags: int = ACK, payload: bytes = b"", **more: Any) -> Act:
    return lambda one: one.send(WORKLOAD, flags, payload, **more)


def raw(make: Callable[[Connection], bytes], **more: Any) -> Act:
    """An IP packet in the direction in which the flow was opened."""
    return lambda one: one.node.send(one.opener, make(one), **more)


def frame(make: Callable[[Connection], bytes]) -> Act:
    """A whole frame, but for its destination."""

    def act(one: Connection) -> Trip:
        interface = "ens47f1" if one.opener == UPLINK else "cali1"
        address = packets.mac(one.overlay.interfaces[interface].mac)
        return one.node.take_frame(one.opener, address + make(one)[6:], interface)

    return act


def segment(one: Connection, flags: int = ACK, **more: Any) -> bytes:
    more = {"sequence": one.next[one.opener], "acknowledgement": one.next[one.answerer], **more}
    return packets.tcp_segment(*ip_ends(one), *ports(one), flags, **more)


def ip_ends(one: Connection) -> tuple[str, str]:
    ends = one.ends.workload, one.ends.remote
    return ends if one.opener == WORKLOAD else (ends[1], ends[0])


def ports(one: Connection) -> tuple[int, int]:
    return one.ends.ports if one.opener == WORKLOAD else (one.ends.ports[1], one.ends.ports[0])


def ip_with(protocol: int = packets.TCP, flags: int = ACK, **more: Any) -> Act:
    """``more``: of the segment."""
    return raw(lambda one: packets.ip(*ip_ends(one), protocol, segment(one, flags, **more)))


def ipv4_with(**more: Any) -> Act:
    return raw(lambda one: packets.ipv4(*ip_ends(one), packets.TCP, segment(one), **more))


def ipv6_with(extension: int, header: bytes) -> Act:
    """One extension header before TCP."""
    return raw(lambda one: packets.ipv6(*ip_ends(one), extension, bytes([packets.TCP]) + header + segment(one)))


def plain(one: Connection) -> bytes:
    return packets.ip(*ip_ends(one), packets.TCP, segment(one))


def mapped(one: Connection) -> bytes:
    """An IPv6 packet between IPv4 addresses. The kernel drops it (ip6_rcv_core)."""
    source, destination = (f"::ffff:{address}" for address in ip_ends(one))
    return packets.tcp(source, destination, *ports(one), ACK)


def big(one: Connection) -> bytes:
    """A GSO packet whose length does not fit into its field: BIG TCP. (Small here: a test run takes a page at most.)"""
    return packets.tcp(*ip_ends(one), *ports(one), ACK, bytes(2800), length=0,
                       sequence=one.next[one.opener], acknowledgement=one.next[one.answerer])  # fmt: skip


# -- steps -----------------------------------------------------------------------------------------------------------


def opened(one: Connection) -> None:
    one.open()


def answered(one: Connection) -> None:
    one.open()
    one.answer()


def established(one: Connection) -> None:
    one.establish()


def warm(one: Connection) -> None:
    one.warm()


def untried(one: Connection) -> None:
    """Nothing went the short way yet."""
    one.establish(proven=False)


def tries(one: Connection) -> None:
    """Data went the short way and is not acknowledged."""
    one.establish(proven=False)
    assert not one.data(one.opener, bytes(100)).fast  # larger than any before
    expect_fast(one.data(one.opener, bytes(100)))


def sends(direction: str, flags: int = ACK, payload: bytes = b"", **more: Any) -> Step:
    """``direction``: opener or answerer."""
    return lambda one: one.send(getattr(one, direction), flags, payload, **more)


def with_mode(mode: str, **more: Any) -> Step:
    return lambda one: one.overlay.mode(mode, **more)


def after(seconds: float) -> Step:
    return lambda one: let_pass(one.overlay, seconds)


def kernel(**changes: Any) -> Step:
    """From now on the kernel handles the packets of the opening end otherwise."""

    def step(one: Connection) -> None:
        node = one.node
        node.kernel[one.opener] = replace(node.kernel[one.opener], **changes)

    return step


def kernel_elsewhere(one: Connection) -> None:
    """By another uplink, or to the workload by another MAC."""
    if one.opener == WORKLOAD:
        one.node.kernel[WORKLOAD] = Handling("ens48f1", OTHER_HOP)
    else:
        kernel(destination="0e:00:00:00:00:99")(one)


def heartbeat_lost(one: Connection) -> None:
    """A heartbeat of the opening end does not come out."""
    one.take(one.opener)
    let_pass(one.overlay, 0.3)


def tick(_one: Connection) -> None:
    """Long enough for one to pass: in each, a processor looks once whether an interface is there."""
    time.sleep(0.02)


def device_gone(name: str) -> Step:
    """Seen from the next tick on; one takes 10 ms at most."""

    def step(one: Any) -> None:
        one.overlay.remove("devices", one.overlay.place(name))
        time.sleep(0.02)

    return step


def replaced_by(name: str, another: str) -> Step:
    """Another interface took the index's place in the map."""

    def step(one: Any) -> None:
        one.overlay.put("devices", one.overlay.place(name), another)
        time.sleep(0.02)

    return step


def workload_is(ifindex: str | int, flags: int = 0) -> Step:
    return lambda one: one.overlay.put("ifindex_map", one.ends.workload, {"ifindex": ifindex, "flags": flags})


def no_workload(one: Connection) -> None:
    one.overlay.remove("ifindex_map", one.ends.workload)


def between(act: Act, **fields: str) -> Act:
    """The same packet between other ends: ``workload="outside"`` names a field of the connection's ends."""

    def changed(one: Connection) -> Trip:
        ends = one.ends.but(**{name: getattr(one.ends, value) for name, value in fields.items()})
        stranger = Connection(one.node, ends)
        stranger.next, stranger.initial = dict(one.next), one.initial
        return act(stranger)

    return changed


def marked(tos: int) -> Callable[[bytes], bytes]:
    return lambda packet: with_tos(forwarded(packet), tos)


def hops(count: int) -> Callable[[bytes], bytes]:
    def change(packet: bytes) -> bytes:
        for __ in range(count):
            packet = forwarded(packet)
        return packet

    return change


def translated(packet: bytes) -> bytes:
    """Masquerade: the source's last byte is another. (Nobody checks the sum of TCP.)"""
    data = bytearray(forwarded(packet))
    last = 23 if data[0] >> 4 == 6 else 15
    data[last] ^= 1
    if data[0] >> 4 == 4:
        data[10:12] = bytes(2)
        data[10:12] = struct.pack("!H", packets.checksum(bytes(data[:20])))
    return bytes(data)


def translated_port(packet: bytes) -> bytes:
    data = bytearray(forwarded(packet))
    header = 40 if data[0] >> 4 == 6 else 20
    port = header if data[header : header + 2] != struct.pack("!H", 8080) else header + 2
    data[port + 1] ^= 1
    return bytes(data)


def dropped(_packet: bytes) -> None:
    return None


def neighbour(one: Connection) -> Connection:
    """Another connection between the same ends, with numbers as after its handshake."""
    found = Connection(one.node, one.ends.but(port=one.ends.port + 1))
    if found.flow:
        found.next = {direction: number + 1 for direction, number in found.next.items()}
    return found


def between_ports(one: Connection, service: int) -> Trip:
    return Connection(one.node, one.ends.but(service=service)).open()


def again(one: Connection) -> None:
    """What was sent last comes once more."""
    trip = one.data(one.opener, bytes(100), sequence=one.next[one.opener] - 100)
    assert "way_broken" in trip.events


def other_way(one: Connection, **changes: Any) -> None:
    """From now on the kernel handles the packets of the answering end otherwise."""
    node = one.node
    node.kernel[one.answerer] = replace(node.kernel[one.answerer], **changes)


DATA = ACK | PSH
