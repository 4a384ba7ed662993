# SPDX-License-Identifier: GPL-3.0-or-later
"""Packets and stories that nobody thought of: the datapath does nothing that the oracle does not allow.

The normal run takes some hundreds, ``OVERLAY_SOAK=1`` ten thousands. A failure prints its seed and what happened.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from prog import packets
from prog.conftest import DEFAULT, SOAK
from prog.datapath import Datapath, Object, fill
from prog.kernel import OTHER_HOP, UPLINK, WORKLOAD, Handling, Node, Trip, other
from prog.network import Interface
from prog.oracle import Oracle, read
from prog.packets import ACK, ETHERNET, FIN, PSH, RST, SYN
from prog.passing_time import let_pass
from prog.processors import CPUS, on
from prog.rows import dropped, hops, marked, translated
from prog.story import BOTH, EVERY, Connection, Ends

COUNT = 20_000 if SOAK else 400
STORIES = 3_000 if SOAK else 60
LENGTH = 60
SEED = int(os.environ.get("OVERLAY_SEED") or random.SystemRandom().randrange(2**32))


class Watched:
    """A node whose every packet the oracle sees."""

    def __init__(self, overlay: Datapath) -> None:
        fill(overlay)
        self.node = Node(overlay)
        self.oracle = Oracle()
        self.log: list[str] = []

    def take(self, direction: str, frame: bytes, interface: str, gso_size: int = 0) -> Trip:
        """``inside()`` lets it out, for the oracle too."""
        node, oracle = self.node, self.oracle
        frame = packets.mac(node.overlay.interfaces[interface].mac) + frame[6:]
        allowed = oracle.judge(direction, interface, frame, gso_size)
        trip = node.take_frame(direction, frame, interface, gso_size=gso_size)
        said = f"seed {SEED}: {direction} {interface} {frame.hex()} gso {gso_size}\n" + "\n".join(self.log[-40:])
        if oracle.mode == "off":
            assert not trip.result.counted, said
            assert not trip.fast, said
        else:
            assert trip.reason in allowed, f"{trip.reason} is none of {allowed}; {said}"
        self.log.append(f"  {trip.result.counted}")
        if trip.fast:
            self._is_a_copy(trip, frame, interface, gso_size, said)
            return trip
        packet = oracle.goes_in(direction, interface, frame, gso_size)
        let_out = trip.inside

        def come_out() -> None:
            let_out()
            out = trip.out
            self.log.append(f"  out: {packet} {trip.watched and trip.watched.counted}")
            if packet and out:
                oracle.comes_out(packet, out.interface, out.frame, out.mark, out.priority, gso_size)

        trip.inside = come_out
        return trip

    def _is_a_copy(self, trip: Trip, frame: bytes, interface: str, gso_size: int, said: str) -> None:
        packet = read(trip.direction, interface, frame, gso_size)
        head, body = trip.result.data[:12], trip.result.data[12:]
        assert body == frame[12:14] + packets.forwarded(packets.trimmed(frame[ETHERNET:])), said
        copies = [(one.interface, one.header, one.mark, one.priority) for one in self.oracle.copies(packet)]
        assert (trip.interface, head, trip.result.mark, trip.result.priority) in copies, said


class Talk(Connection):
    """A connection on a watched node."""

    def __init__(self, watched: Watched, ends: Ends, initial: tuple[int, int]) -> None:
        super().__init__(watched.node, ends, initial)
        self.watched = watched

    def take(self, direction: str, flags: int = ACK, payload: bytes = b"", **more: Any) -> Trip:
        interface = more.pop("interface", "") or ("ens47f1" if direction == UPLINK else "cali1")
        gso_size = more.pop("gso_size", 0)
        sequence = more.pop("sequence", self.next[direction])
        acknowledgement = more.pop("acknowledgement", self.next[other(direction)] if flags & ACK else 0)
        if sequence == self.next[direction]:
            self.next[direction] = (sequence + len(payload) + bool(flags & (SYN | FIN))) % 2**32
        packet = self.ends.packet(direction, flags, payload, sequence=sequence, acknowledgement=acknowledgement, **more)
        self.watched.log.append(
            f"{self.watched.oracle.now:.2f} {direction} {interface} {self.ends.port} {flags:#x} {sequence} "
            f"{acknowledgement} {len(payload)} {more}"
        )
        return self.watched.take(direction, packets.frame(packet), interface, gso_size)


@pytest.fixture(scope="module")
def overlay(build: Callable[..., Object], interfaces: Mapping[str, Interface]) -> Datapath:
    return Datapath(build(**DEFAULT), interfaces)


# -- single packets ----------------------------------------------------------------------------------------------------

flag_bits = st.one_of(st.sampled_from((SYN, SYN | ACK, ACK, ACK, ACK, FIN | ACK, RST)), st.integers(0, 255))
# Mostly ports that flows have: (workload's, remote end's).
ports = st.one_of(
    *[st.tuples(st.just(8080), st.integers(40000, 40001)), st.tuples(st.integers(40000, 40001), st.just(8080))] * 3,
    st.tuples(st.integers(0, 65535), st.integers(0, 65535)),
)
workload_ends = st.sampled_from(("workload",) * 6 + ("other", "node", "outside"))
remote_ends = st.sampled_from(("remote",) * 6 + ("other", "node", "peer_node", "outside"))
# What may happen to a frame on its way: cut it, overwrite a byte, or append some.
damages = st.lists(
    st.tuples(st.sampled_from(("cut", "byte", "byte", "bit", "append")), st.integers(1, 110), st.integers(0, 255)),
    max_size=3,
)


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


@pytest.fixture(scope="module")
def busy(overlay: Datapath) -> Watched:
    watched = Watched(overlay)
    for ends in EVERY:
        one = Talk(watched, ends, (1000, 5000))
        one.open()
        one.answer()
        one.confirm()
        one.prove_way()
        for direction in (UPLINK, WORKLOAD):
            one.data(direction, bytes(200))
    return watched


@seeded(SEED)
@settings(max_examples=COUNT, deadline=None, database=None)
@given(
    one=st.sampled_from(BOTH), workload=workload_ends, remote=remote_ends, pair=ports, inbound=st.booleans(),
    flags=flag_bits, what=damages, wrong_interface=st.sampled_from((False, False, True)), size=st.integers(0, 300),
    ttl=st.sampled_from((64, 64, 64, 1, 2)), gso_size=st.sampled_from((0, 0, 100)),
)  # fmt: skip
def test_rule_1_nothing_is_redirected_that_the_oracle_would_not(
    busy: Watched, one: Ends, workload: str, remote: str, pair: tuple[int, int], inbound: bool, flags: int,
    what: list[tuple[str, int, int]], wrong_interface: bool, size: int, ttl: int, gso_size: int,
) -> None:  # fmt: skip
    here, there = (getattr(one, workload), pair[0]), (getattr(one, remote), pair[1])
    source, destination = (there, here) if inbound else (here, there)
    packet = packets.tcp(source[0], destination[0], source[1], destination[1], flags, bytes(size), ttl=ttl)
    interfaces = ("ens47f1", "ens48f1") if inbound else ("cali1", "cali2")
    direction = UPLINK if inbound else WORKLOAD
    frame = damaged(packets.frame(packet), what)
    trip = busy.take(direction, frame, interfaces[wrong_interface], gso_size if size > gso_size else 0)
    event(trip.reason)


# -- stories -----------------------------------------------------------------------------------------------------------


class Story:
    """Up to three connections, and a kernel whose mind changes."""

    def __init__(self, overlay: Datapath, dice: random.Random) -> None:
        self.watched = Watched(overlay)
        self.overlay = overlay
        self.dice = dice
        ends = dice.sample(EVERY, 2)
        self.talks = [self._begin(one) for one in (*ends, ends[0].but(port=40001))]
        self.held: list[Trip] = []
        self.usual = dict(self.watched.node.kernel)
        self.fast = 0

    def _begin(self, ends: Ends) -> Talk:
        return Talk(self.watched, ends, (self.dice.randrange(2**32), self.dice.randrange(2**32)))

    def step(self) -> None:
        dice = self.dice
        kind = dice.choices(
            (self.packet, self.handshake, self.oddity, self.time, self.change, self.usually, self.mode, self.evict,
             self.processor, self.release),
            (40, 6, 6, 8, 4, 4, 1, 1, 3, 4),
        )[0]  # fmt: skip
        kind()

    def finish(self, trip: Trip) -> None:
        self.fast += trip.fast
        if self.dice.random() < 0.08 and not trip.fast:
            self.held.append(trip)
        else:
            trip.inside()

    def packet(self) -> None:
        dice, one = self.dice, self.dice.choice(self.talks)
        direction = dice.choice((UPLINK, WORKLOAD))
        more: dict[str, Any] = {}
        if dice.random() < 0.1:
            more["tos"] = dice.choice((0x28, 2, 3))
        if dice.random() < 0.1:
            more["interface"] = dice.choice(("ens47f1", "ens48f1") if direction == UPLINK else ("cali1", "cali2"))
        if dice.random() < 0.1:
            more["sequence"] = (one.next[direction] - dice.choice((1, 100))) % 2**32
        size = dice.choice((0, 0, 10, 150, 1000))
        if dice.random() < 0.1 and size > 100:
            more["gso_size"] = 100
        if dice.random() < 0.05:
            more["ttl"] = dice.choice((1, 2, 255))
        self.finish(one.take(direction, ACK | PSH, bytes(size), **more))

    def handshake(self) -> None:
        """All of it, or some steps."""
        number = self.dice.randrange(len(self.talks))
        if self.dice.random() < 0.5:
            self.talks[number] = self._begin(self.talks[number].ends)
        one = self.talks[number]
        for direction, flags in ((one.opener, SYN), (one.answerer, SYN | ACK), (one.opener, ACK)):
            if self.dice.random() < 0.95:
                self.finish(one.take(direction, flags))
        if one.flow and self.dice.random() < 0.8:
            one.prove_way()

    def oddity(self) -> None:
        dice, one = self.dice, self.dice.choice(self.talks)
        direction = dice.choice((UPLINK, WORKLOAD))
        flags = dice.choice((FIN | ACK, RST, SYN, SYN | ACK, ACK))
        more: dict[str, Any] = {} if dice.random() < 0.3 else {"sequence": dice.randrange(2**32)}
        interface = dice.choice(("ens47f1", "ens48f1") if direction == UPLINK else ("cali1", "cali2"))
        self.finish(one.take(direction, flags, interface=interface, **more))

    def time(self) -> None:
        seconds = self.dice.choice((0.1, 0.3, 0.5, 0.8, 1.0, 3.0))
        let_pass(self.overlay, seconds)
        self.watched.oracle.let_pass(seconds)
        self.watched.log.append(f"{seconds} s pass")

    def change(self) -> None:
        direction = self.dice.choice((UPLINK, WORKLOAD))
        was = self.usual[direction]
        choice = self.dice.choice((
            replace(was, change=dropped), replace(was, change=translated), replace(was, change=hops(2)),
            replace(was, change=marked(0x28)), replace(was, mark=7, priority=2), replace(was, destination=OTHER_HOP),
            Handling("ens48f1", OTHER_HOP) if direction == WORKLOAD else replace(was, interface="cali2"),
            replace(was, change=marked(1)),
        ))  # fmt: skip
        self.watched.node.kernel[direction] = choice
        self.watched.log.append(f"the kernel: {direction} {choice}")

    def usually(self) -> None:
        self.watched.node.kernel.update(self.usual)
        self.watched.log.append("the kernel as usual")

    def mode(self) -> None:
        mode = self.dice.choice(("on", "on", "drain", "off"))
        self.overlay.mode(mode)
        self.watched.oracle.set_mode(mode)
        self.watched.log.append(mode)

    def evict(self) -> None:
        self.overlay.clear(*self.dice.sample(("flows", "pending", "pending_out", "trials"), 2))
        self.watched.log.append("eviction")

    def processor(self) -> None:
        on(self.dice.choice(CPUS))

    def release(self) -> None:
        self.dice.shuffle(self.held)
        while self.held:
            self.held.pop().inside()

    def ends_well(self) -> None:
        """A kernel as usual again, new connections: all that can be is fast."""
        self.release()
        self.usually()
        self.overlay.mode("on")
        self.watched.oracle.set_mode("on")
        for talk in self.talks:
            one = self._begin(talk.ends)
            one.begin()
            assert one.flow, "\n".join(self.watched.log[-20:])
            one.prove_way()
            for __ in range(3):
                for direction in (UPLINK, WORKLOAD):
                    one.data(direction)
            for direction in (UPLINK, WORKLOAD):
                assert one.data(direction).fast, f"seed {SEED}\n" + "\n".join(self.watched.log[-40:])


def test_rule_2_stories_that_the_oracle_allows(overlay: Datapath) -> None:
    print(f"seed {SEED}")
    fast = 0
    for number in range(STORIES):
        story = Story(overlay, random.Random(SEED + number))
        for __ in range(3):
            story.handshake()
        for __ in range(LENGTH):
            story.step()
        fast += story.fast
        story.ends_well()
    print(f"{fast} of some {STORIES * LENGTH} packets were fast")
    assert fast > STORIES * LENGTH / 20, "the stories are not about the short way"
