# SPDX-License-Identifier: GPL-3.0-or-later
"""Bounded memory: the sweep of idle flows, full tables, floods of first packets, and the sums that hold throughout."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping

import pytest
from prog import datapath
from prog.conftest import SOAK
from prog.datapath import NEIGH, Datapath, Object
from prog.network import Interface
from prog.packets import ACK, FIN, RST, SYN
from prog.story import IPV4, IPV6, Connection, expect_redirect

FLOWS, TRANSIENT = 16, 1024
IDLE = 60  # seconds
EVENTS = ("flow_opened", "flow_established", "flow_renewed", "flow_closed", "flow_reset", "flow_replaced",
          "flow_swept", "transient_removed", "flows_full")  # fmt: skip


@pytest.fixture
def small(build: Callable[..., Object], interfaces: Mapping[str, Interface]) -> Datapath:
    """Sixteen established flows, and idle is what was idle for a minute, which tests let pass by moving its begin."""
    settings = {"OVERLAY_FLOWS": FLOWS, "OVERLAY_TRANSIENT": TRANSIENT, "OVERLAY_IDLE_NS": IDLE * 10**9}
    found = Datapath(build(**settings, OVERLAY_CHECK_MTU=1, OVERLAY_REDIRECT=NEIGH), interfaces)
    datapath.fill(found)
    let_pass(found, 0)
    return found


def numbered(number: int) -> Connection:
    return IPV4.but(port=10000 + number)


def handshake(overlay: Datapath, number: int) -> bool:
    """Whether the flow found a place."""
    one = numbered(number)
    one.answer(overlay)
    expect_redirect(one.opener(overlay, ACK))
    return one.in_flows(overlay) is not None


def push(overlay: Datapath, number: int) -> bool:
    """A flow without a place tries again with every packet of its opening end."""
    one = numbered(number)
    for _ in range(FLOWS):
        if one.in_flows(overlay):
            return True
        expect_redirect(one.opener(overlay, ACK))
    return False


def let_pass(overlay: Datapath, rounds: float) -> None:
    """Time passes; the next flow that needs a place begins a round."""
    began = time.monotonic_ns() - int(rounds * IDLE * 10**9)
    overlay.put("sweep", 0, {**overlay.get("sweep", 0), "round_began": began % 2**64})


def test_rule_2_flows_that_are_active_are_never_displaced(small: Datapath) -> None:
    fill_up(small)
    assert small.size("flows") == FLOWS
    before = small.totals(EVENTS)
    for extra in range(100, 140):
        let_pass(small, 1.1)
        for number in range(FLOWS):
            expect_redirect(numbered(number).answerer(small, ACK))
        assert not handshake(small, extra)
        assert not push(small, extra)
    assert all(numbered(number).in_flows(small) for number in range(FLOWS))
    assert small.size("flows") == FLOWS
    after = small.totals(EVENTS)
    assert after["flow_swept"] == before["flow_swept"]
    assert after["flows_full"] == before["flows_full"] + 40


def test_rule_2_a_flow_without_a_place_is_known_all_the_same(small: Datapath) -> None:
    fill_up(small)
    assert not handshake(small, 500)
    one = numbered(500)
    assert one.in_transient(small)["state"] == "established"
    expect_redirect(one.opener(small, ACK, b"x"))
    expect_redirect(one.answerer(small, ACK, b"x"))
    expect_redirect(numbered(0).opener(small, RST))
    assert push(small, 500), "a place became free"


def fill_up(overlay: Datapath) -> None:
    for number in range(FLOWS):
        assert handshake(overlay, number) or push(overlay, number)


def test_rule_2_idle_flows_are_swept_when_room_is_needed(small: Datapath) -> None:
    fill_up(small)
    # Idle for two whole rounds: one begins with a flow that needs a place, so does the next.
    busy = range(0, FLOWS, 2)
    for extra in (200, 201, 202):
        let_pass(small, 1.1)
        for number in busy:
            expect_redirect(numbered(number).opener(small, ACK))
        handshake(small, extra)
    for extra in (200, 201, 202):
        assert push(small, extra)
    assert small.total("flow_swept") >= 3
    assert all(numbered(number).in_flows(small) for number in busy)
    assert small.size("flows") == FLOWS


def test_rule_2_flows_of_an_earlier_session_make_room_at_once(small: Datapath) -> None:
    fill_up(small)
    small.mode("on", session=2)
    before = small.total("flow_swept")
    for number in range(300, 300 + FLOWS):
        assert handshake(small, number) or push(small, number)
    assert small.total("flow_swept") == before + FLOWS


def test_a_quiet_time_of_many_rounds_counts_as_one(small: Datapath) -> None:
    """A round begins only when a place is needed, so that active flows are one behind at most."""
    fill_up(small)
    let_pass(small, 5)
    assert not handshake(small, 400)
    assert not push(small, 400)
    assert small.size("flows") == FLOWS


@pytest.mark.parametrize("flood", [20_000 if SOAK else 3_000])
def test_a_flood_of_first_packets_leaves_established_flows_alone(small: Datapath, flood: int) -> None:
    established = [numbered(number) for number in range(8)]
    for number in range(8):
        assert handshake(small, number) or push(small, number)
    before = small.totals(EVENTS)
    known = small.size("transient")
    ports = random.Random(1).sample(range(20000, 60000), flood)
    for count, port in enumerate(ports):
        expect_redirect(IPV4.but(port=port).opener(small, SYN))
        if count % 500 == 0:
            for one in established:
                expect_redirect(one.opener(small, ACK))
                expect_redirect(one.answerer(small, ACK))
    after = small.totals(EVENTS)
    assert after["flow_opened"] - before["flow_opened"] == flood
    size = small.size("transient")
    assert size <= TRANSIENT
    assert known + flood - size > 0, "some were evicted"
    assert all(one.in_flows(small) for one in established)
    assert small.totals(("flow_swept", "flow_replaced")) == {
        name: before[name] for name in ("flow_swept", "flow_replaced")
    }


def test_the_sums_hold_whatever_happens(small: Datapath) -> None:
    """docs/datapath.md, "Sums": sizes follow from the counters, evictions too."""
    seed = random.SystemRandom().randrange(2**32) if SOAK else 7
    print(f"seed {seed}")
    dice = random.Random(seed)
    # In the small build `transient` is large enough for these flows, so nothing may be evicted.
    flows, transient = small.size("flows"), small.size("transient")
    before = small.totals(EVENTS)
    for step in range(20_000 if SOAK else 2_000):
        one = (IPV4 if dice.random() < 0.5 else IPV6).but(port=dice.randrange(30000, 30040), server=dice.random() < 0.7)
        if dice.random() < 0.1:
            for act, flags in ((one.opener, SYN), (one.answerer, SYN | ACK), (one.opener, ACK)):
                act(small, flags)
        flags = dice.choice((SYN, SYN | ACK, ACK, ACK, ACK, ACK, FIN | ACK, RST))
        (one.opener if dice.random() < 0.6 else one.answerer)(small, flags)
        if dice.random() < 0.01:
            small.mode(dice.choice(("on", "on", "drain", "off")), session=dice.choice((1, 1, 2)))
        if dice.random() < 0.005:
            small.clear("silent")
        if step % 100 == 0:
            grown = {name: count - before[name] for name, count in small.totals(EVENTS).items()}
            assert small.size("flows") == flows + (
                grown["flow_established"] - grown["flow_closed"] - grown["flow_replaced"] - grown["flow_swept"]
            )
            assert small.size("transient") == transient + (
                grown["flow_opened"] + grown["flow_closed"] - grown["transient_removed"]
            )
            assert small.size("flows") <= FLOWS
    never = [name for name, count in small.totals(EVENTS).items() if count == before[name]]
    assert not never
