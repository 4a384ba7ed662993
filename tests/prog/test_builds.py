# SPDX-License-Identifier: GPL-3.0-or-later
"""What a build can choose: the kind of redirect, the mark that keeps a packet with the kernel, room for flows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from prog import datapath
from prog.conftest import DEFAULT
from prog.datapath import PEER, Datapath, Object
from prog.kernel import UPLINK, WORKLOAD, Node
from prog.network import Interface
from prog.packets import ACK, SYN
from prog.passing_time import let_pass
from prog.story import EVERY, NAMES, Connection, Ends, expect_fast, expect_kernel

every = pytest.mark.parametrize("ends", EVERY, ids=NAMES)
MARK = 0x30
TICK = 0.02  # longer than one
TRIES = 50  # a tick may change between any two packets


def straight_behind_a_heartbeat(one: Connection) -> bool:
    let_pass(one.overlay, 1)
    assert not one.send(UPLINK).fast
    return expect_fast(one.send(UPLINK)).straight


@pytest.fixture
def built(build: Callable[..., Object], interfaces: Mapping[str, Interface]) -> Callable[..., Node]:
    def one(**defines: Any) -> Node:
        overlay = Datapath(build(**{**DEFAULT, **defines}), interfaces)
        datapath.fill(overlay)
        return Node(overlay)

    return one


@every
def test_rule_9_straight_to_the_workload_but_never_past_a_packet_that_waits(
    built: Callable[..., Node], ends: Ends
) -> None:
    """What the kernel sent waits in the veth's backlog: until the tick changes, others go by way of the interface."""
    node = built(OVERLAY_REDIRECT=PEER)
    one = Connection(node, ends).warm()
    time.sleep(TICK)
    one.data(UPLINK)
    time.sleep(TICK)
    assert expect_fast(one.data(UPLINK)).straight
    assert not expect_fast(one.data(WORKLOAD)).straight
    assert not all(straight_behind_a_heartbeat(one) for __ in range(TRIES))
    time.sleep(TICK)
    assert expect_fast(one.send(UPLINK)).straight


@every
def test_rule_9_a_workload_that_is_never_reached_directly(built: Callable[..., Node], ends: Ends) -> None:
    node = built(OVERLAY_REDIRECT=PEER)
    node.overlay.put("ifindex_map", ends.workload, {"ifindex": "cali1", "flags": 1})
    one = Connection(node, ends).warm()
    time.sleep(TICK)
    for __ in range(3):
        assert not expect_fast(one.data(UPLINK)).straight


@every
def test_rule_9_while_a_way_is_tried_nothing_overtakes_either(built: Callable[..., Node], ends: Ends) -> None:
    node = built(OVERLAY_REDIRECT=PEER)
    one = Connection(node, ends).establish(proven=False)
    assert not all(straight_behind_a_heartbeat(one) for __ in range(TRIES))
    time.sleep(TICK)
    assert expect_fast(one.send(UPLINK)).straight


@every
@pytest.mark.parametrize("step", ["open", "answer", "confirm"])
def test_rule_2_a_mark_keeps_a_flow_off(built: Callable[..., Node], ends: Ends, step: str) -> None:
    """Set before our hook, or by the kernel on the packet's way."""
    for where in ("in", "out"):
        node = built(OVERLAY_EXEMPT_MARK=MARK)
        one = Connection(node, ends)
        for name in ("open", "answer", "confirm"):
            direction = one.answerer if name == "answer" else one.opener
            was = node.kernel[direction]
            if name == step and where == "out":
                node.kernel[direction] = replace(was, mark=MARK | 0x100)
            trip = getattr(one, name)(mark=MARK | 0x100 if name == step and where == "in" else 0)
            node.kernel[direction] = was
            assert "admitted" not in trip.events
            assert (trip.reason == "exempt") == (name == step and where == "in")
        assert one.flow is None


@every
def test_rule_2_a_mark_takes_a_flow_off_within_a_second(built: Callable[..., Node], ends: Ends) -> None:
    node = built(OVERLAY_EXEMPT_MARK=MARK)
    one = Connection(node, ends).warm()
    expect_kernel(one.data(one.opener, mark=MARK), "exempt")
    expect_fast(one.data(one.opener, mark=0x10))  # not all of its bits
    node.kernel[one.opener] = replace(node.kernel[one.opener], mark=MARK)
    let_pass(node.overlay, 1)
    for __ in range(5):
        assert not one.data(one.opener).fast


def test_rule_2_a_flood_of_first_packets_displaces_no_flow_and_no_handshake_of_the_other_side(
    built: Callable[..., Node],
) -> None:
    node = built(OVERLAY_PENDING=64)
    server, client = (Connection(node, ends) for ends in EVERY[:2])
    server.warm()
    client.open()
    for port in range(20_000, 21_000):
        node.take(UPLINK, EVERY[0].but(port=port).packet(UPLINK, SYN, sequence=port))
    assert node.overlay.size("pending") <= 64
    assert node.overlay.size("pending_out") == 1
    client.answer()
    assert "admitted" in client.confirm().events
    for direction in (UPLINK, WORKLOAD):
        expect_fast(server.data(direction))


def test_rule_2_a_full_table_harms_nobody(built: Callable[..., Node]) -> None:
    node = built(OVERLAY_FLOWS=64)
    flows = [Connection(node, EVERY[0].but(port=20_000 + number)) for number in range(300)]
    for one in flows:
        one.begin()
    for one in flows:
        for __ in range(3):
            for direction in (UPLINK, WORKLOAD):
                trip = one.send(direction, ACK)
                assert trip.fast or trip.out
    assert node.overlay.size("flows") <= 64


@every
def test_rule_2_flows_that_share_their_places_in_memory(built: Callable[..., Node], ends: Ends) -> None:
    """Two places for fifty flows: each packet is one of the right flow, or the kernel's."""
    node = built(OVERLAY_RECENT=2)
    flows = [Connection(node, ends.but(port=20_000 + number)).establish() for number in range(50)]
    fast = 0
    for __ in range(3):
        for one in flows:
            for direction in (UPLINK, WORKLOAD):
                trip = one.send(direction)
                fast += trip.fast
                if trip.fast:
                    expect_fast(trip)
    assert fast == 3 * 2 * 50
