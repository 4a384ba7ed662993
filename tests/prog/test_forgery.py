# SPDX-License-Identifier: GPL-3.0-or-later
"""Packets with the right addresses and ports and the wrong numbers, from every hook (rule 6).

The kernel of these tests lets all of them out: conntrack is liberal, and whoever sends them may know its rules. None
makes a flow, none cuts one or keeps it off the short way. ``OVERLAY_SOAK=1`` takes a hundred thousand.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from prog.conftest import SOAK
from prog.kernel import UPLINK, WORKLOAD, Node
from prog.packets import ACK, FIN, PSH, RST, SYN
from prog.passing_time import let_pass
from prog.rows import dropped
from prog.story import EVERY, NAMES, Connection, Ends, expect_fast, expect_kernel

COUNT = 100_000 if SOAK else 800
SEED = random.SystemRandom().randrange(2**32)
HOOKS = ((UPLINK, "ens47f1"), (UPLINK, "ens48f1"), (WORKLOAD, "cali1"), (WORKLOAD, "cali2"))
KINDS = (SYN, SYN | ACK, ACK, ACK | PSH, FIN | ACK, RST, RST | ACK)


def wrong(dice: random.Random, right: int) -> int:
    """Near it, or anywhere."""
    number = right
    while number == right:
        number = (right + dice.choice((-1, 1, 2, dice.randrange(-70_000, 70_000)))) % 2**32
        if dice.random() < 0.5:
            number = dice.randrange(2**32)
    return number


def test_rule_6_forged_packets_change_nothing(node: Node) -> None:
    print(f"seed {SEED}")
    dice = random.Random(SEED)
    lives = [Connection(node, ends).warm() for ends in EVERY]
    admitted = node.overlay.total("admitted")
    for number in range(COUNT):
        one = dice.choice(lives)
        direction, interface = dice.choice(HOOKS)
        flags = dice.choice(KINDS)
        numbers = {"sequence": wrong(dice, one.next[direction]), "acknowledgement": dice.randrange(2**32)}
        trip = one.take(direction, flags, bytes(dice.choice((0, 0, 1, 500))), interface=interface, **numbers)
        assert not trip.fast or flags in (ACK, ACK | PSH)
        if trip.fast and direction == WORKLOAD:
            assert interface == "cali1"
        if dice.random() < 0.8:
            trip.inside()
        if number % 8 == 7 or number == COUNT - 1:
            let_pass(node.overlay, 0.3)
            for live in lives:
                still_fast(live, f"seed {SEED}, packet {number}")
    assert node.overlay.size("flows") == len(lives)
    assert node.overlay.total("admitted") == admitted


def still_fast(one: Connection, said: str) -> None:
    """Both ends go on, and heartbeats bring it back: also where one was forged and never came out."""
    for __ in range(3):
        for direction in (UPLINK, WORKLOAD):
            one.data(direction, b"on")
    for direction in (UPLINK, WORKLOAD):
        assert one.data(direction, b"on").fast, said


def test_rule_6_handshakes_with_a_wrong_number_make_no_flow(node: Node) -> None:
    print(f"seed {SEED}")
    dice = random.Random(SEED)
    before = node.overlay.totals(("admitted", "answer_out"))
    for number in range(COUNT // 4):
        one = Connection(node, dice.choice(EVERY).but(port=dice.randrange(20_000, 20_010)),
                         (dice.randrange(2**32), dice.randrange(2**32)))  # fmt: skip
        first, second = one.initial[one.opener], one.initial[one.answerer]
        right = {"answer": first + 1, "sequence": first + 1, "acknowledgement": second + 1}
        spoilt = dice.sample(sorted(right), dice.randint(1, 3))
        said = {name: wrong(dice, value % 2**32) if name in spoilt else value % 2**32 for name, value in right.items()}
        for again in range(dice.randint(1, 2)):
            one.open(sequence=first)
            one.answer(sequence=second, acknowledgement=said["answer"])
            trip = one.confirm(b"x" * again, sequence=said["sequence"], acknowledgement=said["acknowledgement"])
            assert not trip.fast, (SEED, number)
    assert node.overlay.total("admitted") == before["admitted"], SEED
    assert node.overlay.size("flows") == 0


@pytest.mark.parametrize("ends", EVERY, ids=NAMES)
def test_rule_6_both_ends_together_cannot_open_what_the_kernel_refuses(node: Node, ends: Ends) -> None:
    """A rule drops new connections, and nothing else: SYN-ACK and ACK pass, with the numbers that they must have."""
    one = Connection(node, ends)
    was = node.kernel[one.opener]
    for __ in range(3):
        node.kernel[one.opener] = replace(was, change=dropped)
        one.open(sequence=1000)
        node.kernel[one.opener] = was
        one.answer(sequence=5000, acknowledgement=1001)
        one.next = {one.opener: 1001, one.answerer: 5001}
        assert "admitted" not in one.confirm().events
        for direction in (UPLINK, WORKLOAD):
            expect_kernel(one.data(direction), "unknown_flow")
            one.next = {one.opener: 1001, one.answerer: 5001}


@pytest.mark.parametrize("ends", EVERY, ids=NAMES)
def test_rule_6_another_workload_can_do_nothing_to_a_flow(node: Node, ends: Ends) -> None:
    one = Connection(node, ends).warm()
    before = one.flow
    was = node.kernel[WORKLOAD]
    node.kernel[WORKLOAD] = replace(was, change=dropped)  # as reverse path filtering does
    for flags in KINDS:
        for sequence in (one.next[WORKLOAD], 7, one.initial[WORKLOAD]):
            assert not one.send(WORKLOAD, flags, b"", interface="cali2", sequence=sequence).fast
    assert one.flow == before
    node.kernel[WORKLOAD] = was
    for direction in (UPLINK, WORKLOAD):
        expect_fast(one.data(direction))
