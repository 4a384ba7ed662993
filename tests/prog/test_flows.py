# SPDX-License-Identifier: GPL-3.0-or-later
"""How flows begin and end (rule 2). What others do to them: test_forgery.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from prog.kernel import UPLINK, WORKLOAD, Handling, Node
from prog.packets import ACK, FIN, RST, SYN, forwarded
from prog.passing_time import let_pass
from prog.processors import CPUS, on
from prog.rows import dropped, hops, marked, translated, translated_port
from prog.story import EVERY, NAMES, Connection, Ends, expect_fast, expect_kernel, goes_on, stays_with_the_kernel

every = pytest.mark.parametrize("ends", EVERY, ids=NAMES)
REFUSALS = {
    "dropped": {"change": dropped},
    "translated": {"change": translated},
    "translated_port": {"change": translated_port},
    "another_tos": {"change": marked(0x28)},
    "another_ttl": {"change": hops(2)},
    "no_hop": {"change": lambda packet: packet},
}


@every
def test_rule_2_from_the_handshake_to_the_end(node: Node, ends: Ends) -> None:
    one = Connection(node, ends).warm()
    assert one.flow["opened_by"] == one.opener
    assert (one.way(UPLINK)["in"], one.way(UPLINK)["out"]) == ("ens47f1", "cali1")
    assert (one.way(WORKLOAD)["in"], one.way(WORKLOAD)["out"]) == ("cali1", "ens47f1")
    assert (node.overlay.size("pending"), node.overlay.size("pending_out"), node.overlay.size("flows")) == (0, 0, 1)
    for __ in range(3):
        expect_fast(one.data(one.opener, b"question"))
        expect_fast(one.data(one.answerer, b"answer"))
    for __ in range(5):
        let_pass(node.overlay, 1)
        for direction in (UPLINK, WORKLOAD):
            assert expect_kernel(one.data(direction), "heartbeat").events == {"renewed": 1}
            expect_fast(one.data(direction))
    assert expect_kernel(one.send(one.opener, FIN | ACK), "ending").events == {"finished": 1}
    for __ in range(3):
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
    for __ in range(3):
        expect_fast(one.data(one.opener))
        expect_fast(one.data(one.answerer))


@every
def test_rule_2_a_syn_lends_nothing_to_a_syn_between_other_ends(node: Node, ends: Ends) -> None:
    """Two handshakes with one port and one sequence number; the kernel lets only one of them pass."""
    strange = ends.but(workload=ends.other) if ends.server else ends.but(remote=ends.peer_node)
    for first, second in ((ends, strange), (strange, ends)):
        refused, wanted = Connection(node, first), Connection(node, second)
        handling = dict(node.kernel)
        way: dict[str, dict[str, Any]] = {
            name: {"interface": "cali2"} if end is strange and ends.server else {}
            for name, end in (("refused", first), ("wanted", second))
        }
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
    for flags in (SYN, SYN | ACK):
        for direction, sequence in ((UPLINK, 1000), (WORKLOAD, 5000)):
            number = 0 if flags == SYN else 5001 if direction == UPLINK else 1001
            expect_kernel(one.send(direction, flags, sequence=sequence, acknowledgement=number), "handshake")
    one.next = {UPLINK: 1001, WORKLOAD: 5001}
    for __ in range(3):
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
    for __ in range(4):
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


def test_the_kernel_of_these_tests_forwards(node: Node) -> None:
    """And shows it to the hook that the packet comes out at."""
    one = Connection(node, EVERY[0])
    trip = one.open()
    assert trip.out
    assert trip.watched
    assert trip.out.interface == "cali1"
    assert trip.out.frame[14:] == forwarded(trip.result.sent[14:])


@every
def test_rule_2_an_evicted_flow_that_ends_is_forgotten_by_every_processor(node: Node, ends: Ends) -> None:
    for flags in (FIN | ACK, RST) if ends.server else (FIN | ACK, RST, SYN):
        one = Connection(node, ends).warm()
        for cpu in CPUS:
            on(cpu)
            expect_fast(one.data(WORKLOAD))
            expect_fast(one.data(UPLINK))
        node.overlay.clear("flows")
        one.send(WORKLOAD, flags, sequence=one.next[WORKLOAD])
        for cpu in CPUS:
            on(cpu)
            for direction in (WORKLOAD,) if flags == SYN else (WORKLOAD, UPLINK):
                assert not one.data(direction).fast
        on(CPUS[0])
        node.overlay.forget()
