# SPDX-License-Identifier: GPL-3.0-or-later
"""Modes and the lease under flows that live (rules 3 and 4)."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from prog.kernel import UPLINK, WORKLOAD, Node
from prog.processors import CPUS, on
from prog.rows import translated
from prog.story import EVERY, NAMES, Connection, Ends, expect_fast, expect_kernel, goes_on, stays_with_the_kernel

every = pytest.mark.parametrize("ends", EVERY, ids=NAMES)


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
        for __ in range(3):
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
