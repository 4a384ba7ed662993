# SPDX-License-Identifier: GPL-3.0-or-later
"""Clusters wired the way real ones are: all traffic goes on as without the overlay, and what can be fast is fast.

The tests of this file build on one another, in this order, for each wiring.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from fleet import play, state
from fleet.datapath import AT_ONCE, Cluster, full
from fleet.exchanges import Outcome, carry_out, servers
from lab import wirings
from lab.api import Lab

from .conftest import bring_up, take_down

FAMILIES = (4, 6)
# Of the times that a node could take a connection to the fast path, how many it must.
SHARES = {"direct": 1.0, "vxlan": 1.0, "ecmp": 0.95, "bridge": 1.0, "ptp": 1.0, "bgp": 1.0, "tunnel": 0.0}
# What a dry run says of what stays in the kernel's path.
TOLD = {"tunnel": "link tunl0 is no uplink: its packets have no Ethernet header"}


@dataclass
class Story:
    """What earlier tests saw."""

    name: str
    lab: Lab
    before: dict[str, state.NodeState] = field(default_factory=dict)
    without: Outcome | None = None


@pytest.fixture(scope="module", params=wirings.NAMES)
def story(request: pytest.FixtureRequest) -> Iterator[Story]:
    lab = bring_up("ready", full(3, 2), 2, "--wiring", request.param)
    with servers(lab):
        yield Story(request.param, lab)
    take_down()


def traffic(story: Story, cluster: Cluster | None = None) -> Outcome:
    outcome = carry_out(story.lab, FAMILIES, full(50, 10), full(20, 3), cluster)
    print(f"{story.name}, overlay {'on' if cluster else 'off'}: {outcome}")
    return outcome


def test_traffic_without_the_overlay(story: Story) -> None:
    story.without = traffic(story)
    assert not story.without.report.dead
    assert not story.without.report.waiting
    assert not story.without.invalid


def test_the_dry_run_says_what_the_run_does(story: Story) -> None:
    story.before = {node.name: state.observe(node) for node in story.lab.nodes.values()}
    predicted = play.playbook("site.yml", "--check", variables=AT_ONCE).succeeded()
    assert {node.name: state.observe(node) for node in story.lab.nodes.values()} == story.before
    applied = play.playbook("site.yml", variables=AT_ONCE).succeeded()
    assert applied.changes == predicted.changes
    assert {host for host, _task in applied.changes} == set(story.before)
    for name in story.before:
        told = " ".join(predicted.output.split())
        assert f"{name}: {TOLD[story.name]}" in told if story.name in TOLD else f"{name}: link" not in told


def test_traffic_with_the_overlay(story: Story) -> None:
    assert story.without is not None
    outcome = traffic(story, Cluster(story.lab))
    assert not outcome.report.dead
    assert not outcome.report.waiting
    assert outcome.report.messages > 0
    assert outcome.retransmitted <= story.without.retransmitted
    assert not outcome.invalid
    # A busy machine is slow without the overlay too.
    assert outcome.report.worst < max(0.2, story.without.report.worst)
    assert outcome.worst < max(0.2, story.without.worst)
    assert outcome.eligible > 0
    assert outcome.share >= SHARES[story.name], "\n".join(outcome.slow)
    assert SHARES[story.name] > 0 or outcome.share == 0


@pytest.mark.usefixtures("story")
def test_the_second_run_changes_nothing() -> None:
    assert play.playbook("site.yml", variables=AT_ONCE).succeeded().changes == set()


def test_the_rollback_leaves_the_nodes_as_they_were(story: Story) -> None:
    play.playbook("rollback.yml", variables={"overlay_rollback_to": 0}).succeeded()
    for node in story.lab.nodes.values():
        state.assert_same(state.observe(node), story.before[node.name])
