# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of a flow (rule 2) and the modes on its way (rule 3). What others do to it: test_forgery.py."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from prog.kernel import UPLINK, WORKLOAD, Handling, Node, other
from prog.packets import ACK, FIN, PSH, RST, SYN, forwarded
from prog.passing_time import let_pass
from prog.processors import CPUS, on
from prog.rows import dropped, hops, marked, translated, translated_port
from prog.story import EVERY, NAMES, Connection, Ends, expect_fast, expect_kernel

every = pytest.mark.parametrize("ends", EVERY, ids=NAMES)
REFUSALS = {
    "dropped": {"change": dropped},
    "translated": {"change": translated},
    "translated_port": {"change": translated_port},
    "another_tos": {"change": marked(0x28)},
    "another_ttl": {"change": hops(2)},
    "no_hop": {"change": lambda packet: packet},
}


def goes_on(one: Connection, *, within: int = 2) -> None:
    """Both directions are fast again after so many heartbeats at most."""
    for _ in range(within):
        for direction in (UPLINK, WORKLOAD):
            one.data(direction)
    for direction in (UPLINK, WORKLOAD, UPLINK, WORKLOAD):
        expect_fast(one.data(direction))


def stays_with_the_kernel(one: Connection) -> None:
    for direction in (UPLINK, WORKLOAD):
        for _ in range(3):
            expect_kernel(one.data(direction), "unknown_flow")
    assert one.flow is None


@every
def test_rule_2_from_the_handshake_to_the_end(node: Node, ends: Ends) -> None:
    one = Connection(node, ends).warm()
    assert one.flow["opened_by"] == one.opener
    assert (one.way(UPLINK)["in"], one.way(UPLINK)["out"]) == ("ens47f1", "cali1")
    assert (one.way(WORKLOAD)["in"], one.way(WORKLOAD)["out"]) == ("cali1", "ens47f1")
    assert (node.overlay.size("pending"), node.overlay.size("pending_out"), node.overlay.size("flows")) == (0, 0, 1)
    for _ in range(3):
        expect_fast(one.data(one.opener, b"question"))
        expect_fast(one.data(one.answerer, b"answer"))
    for _ in range(5):
        let_pass(node.overlay, 1)
        for direction in (UPLINK, WORKLOAD):
            assert expect_kernel(one.data(direction), "heartbeat").events == {"renewed": 1}
            expect_fast(one.data(direction))
    assert expect_kernel(one.send(one.opener, FIN | ACK), "ending").events == {"finished": 1}
    for _ in range(3):
        expect_kernel(one.data(one.answerer, b"half closed"), "heartbeat")
        expect_kernel(one.send(one.opener), "heartbeat")
    assert expect_kernel(one.send(one.answerer, FIN | ACK), "ending").events == {"finished": 1}
    expect_kernel(one.send(one.opener), "heartbeat")


@every
@pytest.mark.parametrize("step", ["open", "answer", "confirm"])
@pytest.mark.parametrize("what", REFUSALS)
def test_rule_2_a_handshake_that_the_kernel_changes_is_not_admitted(
    node: Node, ends: Ends, step: str, what: str
) -> None:
    one = Connection(node, ends)
    for name in ("open", "answer", "confirm"):
        direction = one.answerer if name == "answer" else one.opener
        was = node.kernel[direction]
        if name == step:
            node.kernel[direction] = replace(was, **REFUSALS[what])  # type: ignore[arg-type]
        assert "admitted" not in getattr(one, name)().events
        node.kernel[direction] = was
    if step == "confirm":  # data completes the handshake as well, where the ACK is lost
        one.next[one.opener] += 1  # but not other data
    stays_with_the_kernel(one)


@every
def test_rule_2_every_step_may_be_repeated(node: Node, ends: Ends) -> None:
    one = Connection(node, ends)
    one.open()
    expect_kernel(one.open(sequence=1000), "handshake")
    one.answer()
    expect_kernel(one.open(sequence=1000), "handshake")
    expect_kernel(one.answer(sequence=5000), "handshake")
    assert one.confirm().events == {"ack_in": 1, "admitted": 1}
    expect_kernel(one.open(sequence=1000), "handshake")
    if ends.server:  # a workload that sends its SYN once more begins anew
        expect_fast(one.send(one.opener))
        expect_fast(one.send(one.answerer))


@every
def test_rule_2_sequence_numbers_wrap_around(node: Node, ends: Ends) -> None:
    one = Connection(node, ends, (2**32 - 1, 2**32 - 2)).warm()
    assert one.next[one.opener] < 2**31
    for _ in range(3):
        expect_fast(one.data(one.opener))
        expect_fast(one.data(one.answerer))


@every
def test_rule_2_a_syn_lends_nothing_to_a_syn_between_other_ends(node: Node, ends: Ends) -> None:
    """Two handshakes with one port and one sequence number; the kernel lets only one of them pass."""
    strange = ends.but(workload=ends.other) if ends.server else ends.but(remote=ends.peer_node)
    for first, second in ((ends, strange), (strange, ends)):
        refused, wanted = Connection(node, first), Connection(node, second)
        handling = dict(node.kernel)
        way = {name: {"interface": "cali2"} if end is strange and ends.server else {}
               for name, end in (("refused", first), ("wanted", second))}  # fmt: skip
        port = {name: "cali2" if change else "" for name, change in way.items()}

        node.kernel[refused.opener] = Handling("cali1", "0e:00:00:00:00:10", change=dropped)
        refused.open()
        node.kernel.update(handling)
        node.kernel[UPLINK] = replace(handling[UPLINK], **way["wanted"])
        wanted.open()
        node.kernel[UPLINK] = replace(handling[UPLINK], **way["refused"])
        # Who was refused answers all the same, as if the other's SYN had been his.
        inside = {"interface": port["refused"]} if ends.server else {}
        assert "answer_out" not in refused.answer(**inside).events
        assert "admitted" not in refused.confirm().events
        node.kernel.update(handling)
        assert node.overlay.size("flows") == 0
        node.overlay.clear("pending", "pending_out")


@every
def test_rule_2_fast_open_works_and_stays_with_the_kernel(node: Node, ends: Ends) -> None:
    """RFC 7413: a SYN with data, and an answer that acknowledges it."""
    one = Connection(node, ends)
    expect_kernel(one.open(payload=b"early"), "handshake")
    assert "answer_in" not in expect_kernel(one.answer(), "handshake").events
    stays_with_the_kernel(one)


@every
def test_rule_2_fast_open_whose_data_is_not_taken_is_a_handshake(node: Node, ends: Ends) -> None:
    one = Connection(node, ends)
    one.open(payload=b"early")
    one.answer(acknowledgement=1001)
    one.next[one.opener] = 1001
    assert one.confirm(b"early").events == {"ack_in": 1, "admitted": 1}


def test_rule_2_both_ends_open_at_once(node: Node) -> None:
    """RFC 9293 section 3.5; only where both ports are services. All is forwarded, and nothing fast that must not be."""
    one = Connection(node, EVERY[0].but(port=8080))
    for flags, more in ((SYN, {}), (SYN | ACK, {})):
        for direction, sequence in ((UPLINK, 1000), (WORKLOAD, 5000)):
            number = {"acknowledgement": 5001 if direction == UPLINK else 1001} if flags & ACK else {}
            expect_kernel(one.send(direction, flags, sequence=sequence, **number, **more), "handshake")
    one.next = {UPLINK: 1001, WORKLOAD: 5001}
    for _ in range(3):
        for direction in (UPLINK, WORKLOAD):
            assert one.data(direction).out or one.flow


@every
def test_rule_2_ports_used_again_after_the_end(node: Node, ends: Ends) -> None:
    one = Connection(node, ends).warm()
    one.send(one.opener, FIN | ACK)
    one.send(one.answerer, FIN | ACK)
    one.send(one.opener)
    again = Connection(node, ends, (900_000, 700_000))
    assert "admitted" in again.begin().events
    goes_on(again)


@every
def test_rule_2_ports_used_again_while_the_flow_is_known(node: Node, ends: Ends) -> None:
    """The old connection's end is unknown to the datapath, and to the kernel."""
    Connection(node, ends).warm()
    again = Connection(node, ends, (900_000, 700_000))
    for trip in (again.open(), again.answer()):
        expect_kernel(trip, "handshake")
    assert "admitted" in expect_kernel(again.confirm(), "handshake").events
    goes_on(again)


@every
def test_rule_2_ports_used_again_and_refused(node: Node, ends: Ends) -> None:
    """A rule that came meanwhile drops the SYN: nothing of the new connection is fast."""
    Connection(node, ends).warm()
    again = Connection(node, ends, (900_000, 700_000))
    node.kernel[again.opener] = replace(node.kernel[again.opener], change=dropped)
    again.open()
    assert node.overlay.size("flows") == 1
    if not ends.server:
        for direction in (UPLINK, WORKLOAD):
            assert not again.data(direction).fast


@every
def test_rule_2_who_goes_on_after_a_forged_end_is_fast_again(node: Node, ends: Ends) -> None:
    """conntrack is liberal: forged ends may come out."""
    for flags in (FIN | ACK, RST, RST | ACK):
        for direction in (UPLINK, WORKLOAD):
            one = Connection(node, ends)
            one.warm()
            trip = one.send(direction, flags, sequence=one.next[direction] + 77)
            assert sum(trip.events.get(name, 0) for name in ("finished", "reset")) == 1
            goes_on(one)
            node.overlay.clear("flows")


@every
def test_rule_2_after_a_reset_nothing_is_fast(node: Node, ends: Ends) -> None:
    one = Connection(node, ends).warm()
    assert expect_kernel(one.send(one.opener, RST), "ending").events == {"reset": 1}
    for _ in range(4):
        assert not one.data(one.answerer).fast


@every
def test_rule_2_an_eviction_costs_nothing(node: Node, ends: Ends) -> None:
    """Not even while processors remember the flow; from then on the kernel has it."""
    one = Connection(node, ends).warm()
    expect_fast(one.data(one.opener))
    node.overlay.clear("flows")
    let_pass(node.overlay, 1)
    stays_with_the_kernel(one)
    again = Connection(node, ends, (900_000, 700_000))
    again.establish()
    goes_on(again)


@every
def test_rule_2_keepalives_are_fast(node: Node, ends: Ends) -> None:
    """The number before the next, and no data; the answer repeats what was acknowledged."""
    one = Connection(node, ends).warm()
    one.data(one.opener)
    one.data(one.answerer)
    for _ in range(3):
        expect_fast(one.send(one.opener, sequence=one.next[one.opener] - 1))
        expect_fast(one.send(one.answerer))


@every
def test_rule_2_repeated_data_takes_the_kernels_path(node: Node, ends: Ends) -> None:
    """Whatever went wrong, the kernel must know it first. What comes after it is fast."""
    one = Connection(node, ends).warm()
    for direction in (one.opener, one.answerer):
        at = one.next[direction]
        for _ in range(4):
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
        for _ in range(3):
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
    for _ in range(4):
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
    for _ in range(3):
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
    for _ in range(3):
        assert not one.data(one.opener, bytes(1400)).fast


# -- modes -----------------------------------------------------------------------------------------------------------


@every
def test_rule_3_off_and_on_harms_nobody_in_any_direction(node: Node, ends: Ends) -> None:
    one = Connection(node, ends).warm()
    for mode in ("off", "drain", "on", "off", "on"):
        node.overlay.mode(mode)
        for direction in (UPLINK, WORKLOAD):
            trip = one.data(direction)
            assert not trip.fast
            assert trip.result.counted == {} or mode != "off"
            assert one.data(direction).fast == (mode != "off")


@every
def test_rule_3_what_was_opened_while_off_stays_with_the_kernel(node: Node, ends: Ends) -> None:
    for until in ("open", "answer", "confirm"):
        one = Connection(node, ends)
        node.overlay.mode("off")
        for step in ("open", "answer", "confirm"):
            getattr(one, step)()
            if step == until:
                node.overlay.mode("on")
        stays_with_the_kernel(one)


@every
def test_rule_3_drain_admits_nothing_new(node: Node, ends: Ends) -> None:
    node.overlay.mode("drain")
    one = Connection(node, ends)
    expect_kernel(one.open(), "draining")
    one.answer()
    one.confirm()
    stays_with_the_kernel(one)


@every
def test_rule_3_an_activation_is_noticed_by_every_processor(node: Node, ends: Ends) -> None:
    """A change between two activations, which no program saw."""
    one = Connection(node, ends).warm()
    for cpu in CPUS:
        on(cpu)
        expect_fast(one.data(one.opener))
    node.overlay.mode("off")
    node.overlay.mode("on")
    node.kernel[one.opener] = replace(node.kernel[one.opener], change=translated)
    for cpu in CPUS:
        on(cpu)
        for _ in range(3):
            assert not one.data(one.opener).fast


@every
def test_rule_4_a_lease_that_ends_is_off(node: Node, ends: Ends) -> None:
    node.overlay.mode("on", lease=0.3)
    one = Connection(node, ends).warm()
    expect_fast(one.data(one.opener))
    time.sleep(0.31)
    for direction in (UPLINK, WORKLOAD):
        expect_kernel(one.data(direction), "lease_expired")
    expect_kernel(Connection(node, ends.but(port=ends.port + 1)).open(), "lease_expired")
    node.overlay.mode("on")
    goes_on(one)


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


def test_the_kernel_of_these_tests_forwards(node: Node) -> None:
    """And shows it to the hook that the packet comes out at."""
    one = Connection(node, EVERY[0])
    trip = one.open()
    assert trip.out and trip.watched
    assert trip.out.interface == "cali1"
    assert trip.out.frame[14:] == forwarded(trip.result.sent[14:])
    assert other(UPLINK) == WORKLOAD
