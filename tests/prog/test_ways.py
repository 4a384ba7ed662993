# SPDX-License-Identifier: GPL-3.0-or-later
"""What is fast, and for how long: heartbeats, ways that change, ways that nobody has tried (rule 2)."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from prog.kernel import UPLINK, WORKLOAD, Handling, Node
from prog.packets import ACK, FIN, PSH, forwarded
from prog.passing_time import let_pass
from prog.processors import CPUS, on
from prog.rows import dropped
from prog.story import EVERY, NAMES, Connection, Ends, expect_fast, expect_kernel, goes_on

every = pytest.mark.parametrize("ends", EVERY, ids=NAMES)


@every
def test_rule_2_keepalives_are_fast(node: Node, ends: Ends) -> None:
    """The number before the next, and no data; the answer repeats what was acknowledged."""
    one = Connection(node, ends).warm()
    one.data(one.opener)
    one.data(one.answerer)
    for __ in range(3):
        expect_fast(one.send(one.opener, sequence=one.next[one.opener] - 1))
        expect_fast(one.send(one.answerer))


@every
def test_rule_2_repeated_data_takes_the_kernels_path(node: Node, ends: Ends) -> None:
    """Whatever went wrong, the kernel must know it first. What comes after it is fast."""
    one = Connection(node, ends).warm()
    for direction in (one.opener, one.answerer):
        at = one.next[direction]
        for __ in range(4):
            expect_fast(one.data(direction, bytes(1000)))
        assert not one.data(direction, bytes(1000), sequence=at).fast
        assert not one.data(direction, bytes(1000), sequence=at).fast
        one.data(direction, bytes(1000))
        expect_fast(one.data(direction, bytes(1000)))


@every
def test_rule_2_while_a_heartbeat_waits_all_go_by_the_kernel(node: Node, ends: Ends) -> None:
    """From every processor, and so no packet overtakes it; what goes the short way meanwhile would prove nothing."""
    one = Connection(node, ends).warm()
    for cpu in CPUS:
        on(cpu)
        expect_fast(one.data(one.opener))
    on(CPUS[0])
    let_pass(node.overlay, 1)
    at = one.next[one.opener]
    beat = one.take(one.opener, ACK | PSH, b"beat")
    for cpu in CPUS:
        on(cpu)
        for __ in range(3):
            waiting = one.take(one.opener, ACK | PSH, b"data")
            expect_kernel(waiting, "waiting")
        expect_kernel(one.take(one.opener, ACK | PSH, b"beat", sequence=at), "waiting")
    on(CPUS[0])
    beat.inside()
    assert beat.events == {"renewed": 1}
    for cpu in CPUS:
        on(cpu)
        expect_fast(one.data(one.opener))


@every
def test_rule_2_a_larger_packet_is_waited_for_by_every_processor(node: Node, ends: Ends) -> None:
    """Also where processors remember a way that is good for smaller ones."""
    one = Connection(node, ends).warm()
    for cpu in CPUS:
        on(cpu)
        expect_fast(one.data(one.opener))
    on(CPUS[0])
    large = one.take(one.opener, ACK | PSH, bytes(1800))
    expect_kernel(large, "heartbeat")
    for cpu in CPUS:
        on(cpu)
        expect_kernel(one.take(one.opener, ACK | PSH, b"data"), "waiting")
    large.inside()
    for cpu in CPUS:
        on(cpu)
        expect_fast(one.data(one.opener, bytes(1800)))


@every
def test_rule_2_a_heartbeat_comes_out_on_another_processor(node: Node, ends: Ends) -> None:
    one = Connection(node, ends).warm()
    let_pass(node.overlay, 1)
    for direction in (UPLINK, WORKLOAD):
        beat = one.take(direction, ACK | PSH, b"beat")
        on(CPUS[-1])
        beat.inside()
        assert beat.events == {"renewed": 1}
        expect_fast(one.data(direction))
        on(CPUS[0])
        expect_fast(one.data(direction))


@every
def test_rule_2_every_change_is_followed_by_every_processor(node: Node, ends: Ends) -> None:
    """Another device, frame, mark, priority: from the heartbeat on that met it, and never half of it."""
    one = Connection(node, ends).warm()
    for direction in (UPLINK, WORKLOAD):
        one.data(direction)
        was = node.kernel[direction]
        changes = [Handling(was.interface, "0a:00:00:00:00:01"), replace(was, mark=5, priority=6), was]
        if direction == WORKLOAD:
            changes.insert(0, Handling("ens48f1", "0a:00:00:00:00:02"))
        for handling in changes:
            for cpu in CPUS:
                on(cpu)
                expect_fast(one.data(direction), node.kernel[direction])
            before, node.kernel[direction] = node.kernel[direction], handling
            expect_fast(one.data(direction), before)  # copied until the next heartbeat
            let_pass(node.overlay, 1)
            assert "renewed" in expect_kernel(one.data(direction), "heartbeat").events
            one.prove_way()
            for cpu in reversed(CPUS):
                on(cpu)
                expect_fast(one.data(direction))


@every
def test_rule_2_a_heartbeat_that_comes_out_late_proves_nothing_twice(node: Node, ends: Ends) -> None:
    """The first of two that were awaited: only the second one's numbers are."""
    one = Connection(node, ends).warm()
    let_pass(node.overlay, 1)
    late = one.take(one.opener, ACK | PSH, b"first")
    let_pass(node.overlay, 0.3)
    lost = one.take(one.opener, ACK | PSH, b"second")
    late.inside()
    assert late.events == {}
    assert not one.take(one.opener, ACK | PSH, b"third").fast
    lost.inside()
    assert lost.events == {"renewed": 1}


@every
def test_rule_2_a_suspended_flow_costs_the_other_direction_too(node: Node, ends: Ends) -> None:
    one = Connection(node, ends).warm()
    let_pass(node.overlay, 1)
    for direction in (UPLINK, WORKLOAD):
        one.data(direction)
    was, node.kernel[one.opener] = node.kernel[one.opener], replace(node.kernel[one.opener], change=dropped)
    let_pass(node.overlay, 1)
    one.data(one.answerer)
    expect_fast(one.data(one.answerer))
    suspended = 0
    for __ in range(4):
        suspended += one.data(one.opener).events.get("suspended", 0)
        let_pass(node.overlay, 0.3)
    assert suspended == 1
    assert not one.data(one.answerer).fast
    node.kernel[one.opener] = was
    goes_on(one)


# -- ways that nobody has tried ----------------------------------------------------------------------------------------


def begins_to_try(node: Node, ends: Ends) -> Connection:
    one = Connection(node, ends).establish(proven=False)
    for direction in (UPLINK, WORKLOAD):
        assert not one.data(direction, bytes(1000)).fast  # larger than any before
    return one


@every
def test_rule_2_what_is_acknowledged_proves_a_way_for_all(node: Node, ends: Ends) -> None:
    one = begins_to_try(node, ends)
    second = Connection(node, ends.but(port=ends.port + 1)).establish(proven=False)
    events: dict[str, int] = {}
    expect_fast(one.data(one.opener, bytes(500)))
    expect_kernel(second.send(second.opener), "unproven")
    for direction in (one.answerer, one.opener, one.answerer, one.opener):
        events.update(expect_fast(one.data(direction, bytes(500))).events)
    assert events == {"way_proven": 1}
    expect_fast(second.send(second.opener))
    let_pass(node.overlay, 1)
    expect_kernel(one.send(one.opener), "heartbeat")
    expect_fast(one.send(one.opener))


@every
def test_rule_2_a_broken_way_costs_one_flow_one_retransmission(node: Node, ends: Ends) -> None:
    one = begins_to_try(node, ends)
    others = [Connection(node, ends.but(port=ends.port + number)).establish(proven=False) for number in range(1, 4)]
    at = one.next[one.answerer]
    expect_fast(one.data(one.answerer, bytes(700)))  # lost
    for another in others:
        expect_kernel(another.send(another.answerer), "unproven")
    let_pass(node.overlay, 0.2)
    trip = expect_kernel(one.data(one.answerer, bytes(700), sequence=at), "unproven")
    assert trip.events == {"way_broken": 1}
    for second in range(29):
        for another in (one, *others):
            for direction in (UPLINK, WORKLOAD):
                assert not another.data(direction).fast, second
        let_pass(node.overlay, 1)
    let_pass(node.overlay, 2)
    for another in (one, *others):
        another.data(another.answerer)
    fast = [another.data(another.answerer).fast for another in (one, *others)]
    assert sum(fast) == 1, "one flow at a time tries it again"


@every
def test_rule_2_data_that_the_kernel_had_to_repeat_proves_nothing(node: Node, ends: Ends) -> None:
    """It was lost on the short way and comes again after more than a second, so as a heartbeat."""
    one = begins_to_try(node, ends)
    at = one.next[one.answerer]
    expect_fast(one.data(one.answerer, bytes(700)))  # lost
    let_pass(node.overlay, 1)
    assert not one.data(one.answerer, bytes(700), sequence=at).fast
    events = dict(one.send(one.opener).events)
    for __ in range(3):
        let_pass(node.overlay, 1)
        for direction in (UPLINK, WORKLOAD, UPLINK, WORKLOAD):
            events.update(one.data(direction).events)
    assert "way_proven" not in events


@every
def test_rule_2_a_flow_that_ends_leaves_the_trial_to_another(node: Node, ends: Ends) -> None:
    one = begins_to_try(node, ends)
    expect_fast(one.data(one.opener))
    second = begins_to_try(node, ends.but(port=ends.port + 1))
    expect_kernel(second.data(second.opener), "unproven")
    let_pass(node.overlay, 4)
    second.data(second.opener)
    expect_fast(second.data(second.opener))


@every
def test_rule_2_only_a_flow_that_tried_with_nothing_gives_the_trial_away_when_it_ends(node: Node, ends: Ends) -> None:
    one = begins_to_try(node, ends)
    second = begins_to_try(node, ends.but(port=ends.port + 1))
    expect_fast(one.send(one.opener))
    expect_kernel(second.send(second.opener), "unproven")
    one.send(one.opener, ACK | FIN)
    expect_fast(second.data(second.opener))  # perhaps lost
    second.send(second.opener, ACK | FIN)
    third = begins_to_try(node, ends.but(port=ends.port + 2))
    expect_kernel(third.send(third.opener), "unproven")


@every
def test_rule_2_a_loss_is_told_though_another_flow_tries_by_now(node: Node, ends: Ends) -> None:
    one = begins_to_try(node, ends)
    at = one.next[one.opener]
    expect_fast(one.data(one.opener, bytes(700)))  # lost
    let_pass(node.overlay, 1.1)
    second = begins_to_try(node, ends.but(port=ends.port + 1))
    expect_fast(second.send(second.opener))
    trip = expect_kernel(one.data(one.opener, bytes(700), sequence=at), "heartbeat")
    assert trip.events == {"way_broken": 1, "renewed": 1}
    expect_kernel(second.send(second.opener), "unproven")


@every
def test_rule_2_a_flow_that_lost_data_and_ended_tells_it_too(node: Node, ends: Ends) -> None:
    """Its end is sent with the data that was lost, so the kernel's way, and so is what comes of it after that."""
    one = begins_to_try(node, ends)
    at = one.next[one.opener]
    expect_fast(one.data(one.opener, bytes(700)))  # lost
    one.send(one.opener, ACK | FIN)
    let_pass(node.overlay, 0.3)
    assert expect_kernel(one.data(one.opener, bytes(700), sequence=at), "heartbeat").events["way_broken"] == 1
    second = begins_to_try(node, ends.but(port=ends.port + 1))
    expect_kernel(second.send(second.opener), "unproven")


def test_rule_8_both_families_meet_in_one_table(node: Node) -> None:
    flows = [Connection(node, ends).establish() for ends in EVERY[::2]]
    found = {key["workload"]: value["opened_by"] for key, value in node.overlay.entries("flows")}
    assert found == {one.ends.workload: one.opener for one in flows}
    for one in flows:
        expect_fast(one.send(one.opener))


@every
def test_rule_5_the_largest_packet_is_known_for_a_second_only(node: Node, ends: Ends) -> None:
    """The path became narrower. Heartbeats for another reason (DSCP) prove nothing of large packets."""
    one = Connection(node, ends).warm()

    def narrow(packet: bytes) -> bytes | None:
        return forwarded(packet) if len(packet) <= 1300 else None

    node.kernel[one.opener] = replace(node.kernel[one.opener], change=narrow)
    for tos in (0x28, 0, 0x28, 0):
        let_pass(node.overlay, 0.6)
        one.send(one.opener, ACK | PSH, b"x", tos=tos)
    for __ in range(3):
        assert not one.data(one.opener, bytes(1400)).fast


def test_rule_2_a_second_is_a_second(node: Node) -> None:
    """In real time: with the kernel's own jiffies, of which the datapath is told how many a second has."""
    node.overlay.second = jiffies_in_a_second(node)
    node.overlay.mode("on")
    one = Connection(node, EVERY[0]).warm()
    begun, fast = time.monotonic(), 0
    while expect := one.data(one.opener).fast:
        fast += expect
        time.sleep(0.005)
    spent = time.monotonic() - begun
    assert fast > 20
    assert 0.5 < spent < 1
    expect_fast(one.data(one.opener))


def jiffies_in_a_second(node: Node) -> int:
    """From what admission notes as the time."""

    def now() -> int:
        one = Connection(node, EVERY[0]).establish()
        seen = int(one.flow["seen"])
        node.overlay.clear("flows")
        return seen

    first, begun = now(), time.monotonic()
    time.sleep(0.5)
    last, ended = now(), time.monotonic()
    return min((100, 250, 300, 1000), key=lambda rate: abs(rate - (last - first) / (ended - begun)))
