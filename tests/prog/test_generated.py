# SPDX-License-Identifier: GPL-3.0-or-later
"""Packets that nobody thought of: the datapath and an oracle in Python must agree on each, counter for counter.

The normal run takes some hundreds, ``OVERLAY_SOAK=1`` ten thousands. A failure prints its seed and the packet.
"""

from __future__ import annotations

import ipaddress
import random
import time
from collections.abc import Callable, Mapping

import pytest
from hypothesis import event, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from prog import packets
from prog.conftest import DEFAULT, SOAK
from prog.datapath import Datapath, Object, fill
from prog.network import Interface
from prog.oracle import Known, Tuple, judge
from prog.packets import ACK, ETHERNET, FIN, RST, SYN
from prog.story import BOTH, Connection, forwarded

COUNT = 20_000 if SOAK else 600
GUARDS = 10_000 if SOAK else 400
SEED = random.SystemRandom().randrange(2**32)
REDIRECTS = ("to_workload", "to_uplink", "icmp_to_workload")

flag_bits = st.one_of(st.sampled_from((SYN, SYN, SYN | ACK, ACK, ACK, FIN | ACK, RST)), st.integers(0, 255))
# Mostly ports that flows have: (workload's, remote end's).
ports = st.one_of(
    *[st.tuples(st.just(8080), st.integers(40000, 40003)), st.tuples(st.integers(40000, 40003), st.just(8080))] * 3,
    st.tuples(st.integers(0, 65535), st.integers(0, 65535)),
)
workload_ends = st.sampled_from(("workload",) * 6 + ("other", "node", "outside"))
remote_ends = st.sampled_from(("remote",) * 6 + ("other", "node", "peer_node", "outside"))
# What may happen to a frame on its way: cut it, overwrite a byte, or append some.
damages = st.lists(
    st.tuples(st.sampled_from(("cut", "byte", "byte", "bit", "append")), st.integers(1, 110), st.integers(0, 255)),
    max_size=3,
)


class Node:
    """A node with flows in every state, and what the oracle must know of them. Made anew after a packet changed it."""

    def __init__(self, overlay: Datapath) -> None:
        self.overlay = overlay
        self.known: dict[Tuple, Known] = {}
        self.made = 0.0

    def flows(self) -> dict[Tuple, Known]:
        # A first packet is a repeated one for 30 s only.
        if time.monotonic() - self.made > 10:
            self._make()
        return self.known

    def _make(self) -> None:
        fill(self.overlay)
        for one in BOTH:
            for server in (True, False):
                one.but(server=server, port=40000).establish(self.overlay)
                one.but(server=server, port=40001).answer(self.overlay)
                one.but(server=server, port=40002).close(self.overlay)
        self.known = {}
        for name in ("flows", "transient"):
            for key, value in self.overlay.entries(name):
                ends = (ipaddress.ip_address(key["workload"]), ipaddress.ip_address(key["remote"]))
                flow = Tuple(*ends, key["workload_port"], key["remote_port"])
                self.known[flow] = Known(value["ifindex"], value["state"], value["opened_by"])
        self.made = time.monotonic()

    def agree(self, direction: str, interface: str, frame: bytes) -> str:
        """The reason, which datapath and oracle agree on."""
        flows = self.flows()
        frame = packets.mac(self.overlay.interfaces[interface].mac) + frame[6:]
        expected = judge(direction, interface, frame, flows)
        result = self.overlay.run(f"from_{direction}", frame, interface)
        if result.events:
            self.made = 0.0
        said = f"seed {SEED}, {direction} {interface}, {frame.hex()}"
        assert result.reason == expected, said
        assert result.redirected == (expected in REDIRECTS), said
        assert result.data == (forwarded(frame) if result.redirected else frame), said
        return expected


@pytest.fixture(scope="module")
def node(build: Callable[..., Object], interfaces: Mapping[str, Interface]) -> Node:
    return Node(Datapath(build(**DEFAULT), interfaces))


def damaged(frame: bytes, what: list[tuple[str, int, int]]) -> bytes:
    data = bytearray(frame)
    for kind, place, number in what:
        if kind == "cut":
            del data[-min(place, len(data) - ETHERNET) :]
        elif kind == "append":
            data += bytes(place)
        elif 12 <= place < len(data):
            data[place] = number if kind == "byte" else data[place] ^ 1 << number % 8
    # The kernel refuses to test programs on frames that are shorter than the IP header that they announce.
    return bytes(data.ljust(ETHERNET + 40, b"\0"))


@seeded(SEED)
@settings(max_examples=COUNT, deadline=None, database=None)
@given(
    one=st.sampled_from(BOTH), workload=workload_ends, remote=remote_ends, pair=ports, inbound=st.booleans(),
    flags=flag_bits, error=st.sampled_from((False, False, True)), what=damages,
    wrong_interface=st.sampled_from((False, False, True)), ttl=st.sampled_from((64, 64, 64, 1, 2)),
)  # fmt: skip
def test_rule_1_nothing_is_redirected_that_the_oracle_would_not(
    node: Node, one: Connection, workload: str, remote: str, pair: tuple[int, int], inbound: bool, flags: int,
    error: bool, what: list[tuple[str, int, int]], wrong_interface: bool, ttl: int,
) -> None:  # fmt: skip
    here, there = (getattr(one, workload), pair[0]), (getattr(one, remote), pair[1])
    source, destination = (there, here) if inbound else (here, there)
    packet = packets.tcp(source[0], destination[0], source[1], destination[1], flags, ttl=ttl)
    if error:
        quoted = packets.tcp(destination[0], source[0], destination[1], source[1], flags)
        packet = packets.icmp_error(one.peer_node, quoted, ttl=ttl, quote=20)
    interfaces = ("ens47f1", "ens48f1") if inbound else ("cali1", "cali2")
    direction = "uplink" if inbound else "workload"
    event(node.agree(direction, interfaces[wrong_interface], damaged(packets.frame(packet), what)))


def forgeries(dice: random.Random, one: Connection) -> tuple[str, str, bytes]:
    """(direction, interface, frame): something that must never be redirected."""
    flags = dice.choice((SYN, SYN | ACK, ACK, FIN | ACK, RST))
    here, there = one.ports
    kind = dice.choice(("other workload", "node", "peer", "outside", "fragment", "options", "vlan", "cut", "unlisted"))
    make = {
        "other workload": lambda: ("workload", "cali2", packets.frame(one.outbound(flags))),
        "node": lambda: ("workload", "cali1", packets.frame(one.but(workload=one.node).outbound(flags))),
        "peer": lambda: ("workload", "cali1", packets.frame(one.but(workload=one.peer_node).outbound(flags))),
        "outside": lambda: ("workload", "cali1", packets.frame(one.but(workload=one.outside).outbound(flags))),
        "unlisted": lambda: ("uplink", "ens47f1", packets.frame(one.but(remote=one.outside).inbound(flags))),
        "vlan": lambda: ("uplink", "ens47f1", packets.ethernet(dice.randbytes(4) + one.inbound(flags), 0x8100)),
    }
    if kind in make:
        return make[kind]()
    segment = packets.tcp_segment(one.remote, one.workload, there, here, flags)
    if kind == "cut":
        return "uplink", "ens47f1", packets.frame(one.inbound(flags))[: -dice.randint(1, 20)]
    if one.family == 4 and kind == "fragment":
        part = dice.choice((0x2000, dice.randrange(1, 0x2000), 0x2000 | dice.randrange(0x2000)))
        packet = packets.ipv4(one.remote, one.workload, packets.TCP, segment, fragment=part)
    elif one.family == 4:
        options = dice.randbytes(4 * dice.randint(1, 10))
        packet = packets.ipv4(one.remote, one.workload, packets.TCP, segment, options=options)
    else:
        extension = 44 if kind == "fragment" else dice.choice((0, 43, 51, 60, 135))
        packet = packets.ipv6(one.remote, one.workload, extension, b"\x06\0" + dice.randbytes(6) + segment)
    return "uplink", "ens47f1", packets.frame(packet)


def test_rule_6_forged_and_odd_packets_are_never_redirected(node: Node) -> None:
    print(f"seed {SEED}")
    dice = random.Random(SEED)
    for _ in range(GUARDS):
        one = dice.choice(BOTH).but(server=dice.random() < 0.5, port=dice.randrange(40000, 40004))
        direction, interface, frame = forgeries(dice, one)
        assert node.agree(direction, interface, frame) not in REDIRECTS, (SEED, frame.hex())
    assert node.overlay.size("flows") == 4, "not one of them touched a flow"
