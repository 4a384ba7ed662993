# SPDX-License-Identifier: GPL-3.0-or-later
"""A connection that lives: both ends' sequence numbers, and where its packets go."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from prog import packets
from prog.kernel import UPLINK, WORKLOAD, Handling, Node, Trip, other
from prog.packets import ACK, FIN, PSH, SYN, tcp

FULL = 1500
"""The largest packet that warm() shows to the datapath, bytes."""


@dataclass(frozen=True)
class Ends:
    """``server``: the workload serves, the remote end opens. ``other``: another workload of this node."""

    workload: str
    remote: str
    other: str
    node: str
    """An address of the node itself."""
    peer_node: str
    outside: str
    """Nobody's: no workload, no peer."""
    server: bool = True
    service: int = 8080
    port: int = 40000
    """Of the end that opens."""

    @property
    def family(self) -> int:
        return 6 if ":" in self.workload else 4

    @property
    def ports(self) -> tuple[int, int]:
        """(workload's, remote's)"""
        return (self.service, self.port) if self.server else (self.port, self.service)

    @property
    def opener(self) -> str:
        """Where the SYN comes from."""
        return UPLINK if self.server else WORKLOAD

    @property
    def key(self) -> dict[str, Any]:
        return {"workload": self.workload, "remote": self.remote, "workload_port": self.ports[0],
                "remote_port": self.ports[1], "protocol": 6}  # fmt: skip

    def packet(self, direction: str, flags: int, payload: bytes = b"", **more: Any) -> bytes:
        workload_port, remote_port = self.ports
        if direction == UPLINK:
            return tcp(self.remote, self.workload, remote_port, workload_port, flags, payload, **more)
        return tcp(self.workload, self.remote, workload_port, remote_port, flags, payload, **more)

    def but(self, **changes: Any) -> Ends:
        return replace(self, **changes)


IPV4 = Ends("10.244.1.10", "10.244.2.10", "10.244.1.11", "198.18.0.11", "198.18.0.12", "203.0.113.7")
IPV6 = Ends(
    "fd00:10:244:1::10", "fd00:10:244:2::10", "fd00:10:244:1::11", "fd00:198:18::11", "fd00:198:18::12", "2001:db8::7"
)
BOTH = (IPV4, IPV6)
EVERY = tuple(one.but(server=server) for one in BOTH for server in (True, False))
NAMES = tuple(f"ipv{one.family}-{'server' if one.server else 'client'}" for one in EVERY)


class Connection:
    """``initial``: the sequence numbers of SYN and SYN-ACK."""

    def __init__(self, node: Node, ends: Ends, initial: tuple[int, int] = (1000, 5000)) -> None:
        self.node = node
        self.overlay = node.overlay
        self.ends = ends
        self.opener, self.answerer = ends.opener, other(ends.opener)
        self.next = {self.opener: initial[0], self.answerer: initial[1]}
        self.initial = dict(self.next)

    # -- packets ---------------------------------------------------------------------------------------------------

    def take(
        self, direction: str, flags: int = ACK, payload: bytes = b"", *, sequence: int | None = None,
        acknowledgement: int | None = None, interface: str = "", gso_size: int = 0, mark: int = 0, **more: Any,
    ) -> Trip:  # fmt: skip
        """The next packet of a direction goes in. It acknowledges all that the other end sent."""
        new = sequence is None
        sequence = self.next[direction] if sequence is None else sequence
        if acknowledgement is None:
            acknowledgement = self.next[other(direction)] if flags & ACK else 0
        packet = self.ends.packet(direction, flags, payload, sequence=sequence, acknowledgement=acknowledgement, **more)
        if new:
            self.next[direction] = (sequence + len(payload) + bool(flags & SYN) + bool(flags & FIN)) % 2**32
        return self.node.take(direction, packet, interface, gso_size=gso_size, mark=mark)

    def send(self, direction: str, flags: int = ACK, payload: bytes = b"", **more: Any) -> Trip:
        trip = self.take(direction, flags, payload, **more)
        trip.inside()
        return trip

    def data(self, direction: str, payload: bytes = b"data", **more: Any) -> Trip:
        return self.send(direction, ACK | PSH, payload, **more)

    # -- its life --------------------------------------------------------------------------------------------------

    def open(self, **more: Any) -> Trip:
        return self.send(self.opener, SYN, **more)

    def answer(self, **more: Any) -> Trip:
        return self.send(self.answerer, SYN | ACK, **more)

    def confirm(self, payload: bytes = b"", **more: Any) -> Trip:
        return self.send(self.opener, ACK, payload, **more)

    def begin(self) -> Trip:
        """The handshake, whatever comes of it."""
        self.open()
        self.answer()
        return self.confirm()

    def establish(self, proven: bool = True) -> Connection:
        """``proven``: another flow has shown a moment ago that its way is good."""
        trips = self.open(), self.answer(), self.confirm()
        assert [trip.reason for trip in trips] == ["handshake"] * 3
        assert [trip.events for trip in trips] == [
            {"syn_in": 1, "syn_out": 1}, {"answer_in": 1, "answer_out": 1}, {"ack_in": 1, "admitted": 1},
        ]  # fmt: skip
        if proven:
            self.prove_way()
        return self

    def prove_way(self, state: str = "proven", tag: int = 0) -> None:
        self.overlay.put("trials", self.trial, {"since": self.flow["seen"], "tag": tag, "state": state})

    @property
    def trial(self) -> dict[str, Any]:
        ways = self.flow["ways[0]"], self.flow["ways[1]"]
        return {"workload": ways[0]["out"], "uplink": ways[1]["out"],
                "next_hop": bytes.fromhex(ways[1]["header"])[:6].hex(":")}  # fmt: skip

    def warm(self) -> Connection:
        """Established, and packets of full size were seen to come out."""
        self.establish()
        for direction in (UPLINK, WORKLOAD):
            trip = self.data(direction, bytes(FULL - self.headers))
            assert (trip.reason, trip.events) == ("heartbeat", {"renewed": 1})
            expect_fast(self.send(direction))
        return self

    @property
    def headers(self) -> int:
        return 60 if self.ends.family == 6 else 40

    # -- what the datapath knows -------------------------------------------------------------------------------------

    @property
    def flow(self) -> Any:
        return self.overlay.get("flows", self.ends.key)

    def way(self, direction: str) -> Any:
        return self.flow[f"ways[{int(direction == WORKLOAD)}]"]

    def change(self, direction: str, **changes: Any) -> None:
        """Written into the flow, and no processor remembers it."""
        name = f"ways[{int(direction == WORKLOAD)}]"
        flow = self.flow
        self.overlay.put("flows", self.ends.key, {**flow, name: {**flow[name], **changes}})


def expect_fast(trip: Trip, handling: Handling | None = None) -> Trip:
    """Redirected, as what the kernel would have sent; ``handling``: that of the kernel now, unless given."""
    assert trip.fast, trip.result.counted
    assert trip.reason == ("to_workload" if trip.direction == UPLINK else "to_uplink")
    handling = handling or trip.node.kernel[trip.direction]
    would = trip.node.does(handling, trip.result.sent[packets.ETHERNET :])
    assert would
    assert trip.result.data == would.frame
    if not trip.straight:
        assert (trip.interface, trip.result.mark, trip.result.priority) == (would.interface, would.mark, would.priority)
    return trip


def expect_kernel(trip: Trip, reason: str) -> Trip:
    assert not trip.fast, trip.result.counted
    assert trip.reason == reason
    return trip


def goes_on(one: Connection, *, within: int = 2) -> None:
    """Both directions are fast again after so many heartbeats at most."""
    for __ in range(within):
        for direction in (UPLINK, WORKLOAD):
            one.data(direction)
    for direction in (UPLINK, WORKLOAD, UPLINK, WORKLOAD):
        expect_fast(one.data(direction))


def stays_with_the_kernel(one: Connection) -> None:
    for direction in (UPLINK, WORKLOAD):
        for __ in range(3):
            expect_kernel(one.data(direction), "unknown_flow")
    assert one.flow is None
