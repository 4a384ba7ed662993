# SPDX-License-Identifier: GPL-3.0-or-later
"""Rolling back from generation 2 to 1 and to 0 under live connections; disable.yml; no history.

The tests of this file build on one another, in this order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from fleet import play, state
from fleet.cut import cut, mend
from fleet.datapath import AT_ONCE, TALK_PORT, Cluster, full
from fleet.generation import dump, history, recorded, takes_the_overlay
from fleet.traffic import Conversations
from lab.api import Endpoint, Lab
from lab.paths import PREFIX

from .conftest import bring_up, take_down

SITE, ROLLBACK, DISABLE, ENABLE = "site.yml", "rollback.yml", "playbooks/disable.yml", "playbooks/enable.yml"
CONVERSATIONS = full(200, 20)
ONE = {"overlay_services": [{"port": 8080}, {"port": TALK_PORT}], **AT_ONCE}
TWO = {**ONE, "overlay_services": [{"port": 8080}, {"port": TALK_PORT}, {"port": 7070}]}


@dataclass
class Story:
    """What earlier tests saw, by node."""

    lab: Lab
    before: dict[str, state.NodeState]
    seen: dict[int, dict[str, Any]] = field(default_factory=dict)

    def dump(self) -> dict[str, Any]:
        return {node.name: recorded(dump(node)) for node in self.lab.nodes.values()}

    def pairs(self) -> list[tuple[Endpoint, Endpoint]]:
        """Client and server: a node and a workload of the next, workloads of both, in either direction."""
        nodes = list(self.lab.nodes.values())
        found: list[tuple[Endpoint, Endpoint]] = []
        for one, other in zip(nodes, nodes[1:] + nodes[:1]):
            found += [(one, other.workloads[1]), (one.workloads[1], other.workloads[2])]
        return found

    def talk(self, live: Conversations) -> None:
        pairs = self.pairs()
        for number in range(CONVERSATIONS):
            client, server = pairs[number % len(pairs)]
            live.open(client, server, TALK_PORT, family=(4, 6)[number // len(pairs) % 2])


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    lab = bring_up("ready", nodes=full(20, 3))
    yield Story(lab, {node.name: state.observe(node) for node in lab.nodes.values()})
    for node in lab.nodes.values():
        mend(node)
    take_down()


def unharmed(live: Conversations) -> None:
    report = live.report(grace=5)
    print(report)
    assert report.messages > 0
    assert not report.dead, report
    assert not report.waiting, report


def test_rollback_without_history_is_an_error_that_says_so(story: Story) -> None:
    done = play.playbook(ROLLBACK)
    assert done.code != 0
    assert "no history" in done.output
    assert done.changes == set()
    for node in story.lab.nodes.values():
        assert state.observe(node) == story.before[node.name]


def test_rollback_to_the_previous_generation_under_live_connections(story: Story) -> None:
    play.playbook(SITE, variables=ONE).succeeded()
    story.seen[1] = story.dump()
    predicted = play.playbook(SITE, "--check", "--diff", variables=TWO).succeeded()
    assert story.dump() == story.seen[1]
    assert play.playbook(SITE, variables=TWO).succeeded().changes == predicted.changes
    story.seen[2] = story.dump()
    assert story.seen[1] != story.seen[2]
    with Conversations() as live, Cluster(story.lab).nothing_invalid():
        story.talk(live)
        predicted = play.playbook(ROLLBACK, "--check", "--diff").succeeded()
        assert story.dump() == story.seen[2]
        done = play.playbook(ROLLBACK).succeeded()
        unharmed(live)
    assert done.changes == predicted.changes
    assert story.dump() == story.seen[1]
    assert f"{PREFIX}n1: rolled back from generation 2; now: generation 1" in done.output


def restore(node: str, number: int) -> None:
    arguments = {"state": "restored", "to": str(number)}
    assert play.module(node, "ebpf.overlay.overlay_generation", arguments).changed


def test_live_connections_outlast_going_back_and_forth_between_generations(story: Story) -> None:
    with Conversations() as live, Cluster(story.lab).nothing_invalid():
        for __ in range(full(5, 1)):
            story.talk(live)
            restore("overlay_nodes", 2)
            story.talk(live)
            restore("overlay_nodes", 1)
            unharmed(live)
    assert story.dump() == story.seen[1]


def test_dry_runs_are_true_on_a_half_upgraded_fleet(story: Story) -> None:
    restore(f"{PREFIX}n2", 2)
    half = story.dump()
    assert [told["history"]["number"] for told in half.values()][:3] == [1, 2, 1]
    predicted = play.playbook(SITE, "--check", "--diff", variables=TWO).succeeded()
    predicted_back = play.playbook(ROLLBACK, "--check", "--diff", variables={"overlay_rollback_to": "1"}).succeeded()
    assert story.dump() == half
    applied = play.playbook(SITE, variables=TWO).succeeded()
    assert applied.changes == predicted.changes
    assert {host for host, _task in applied.changes} == set(half) - {f"{PREFIX}n2"}
    restore("overlay_nodes", 1)
    restore(f"{PREFIX}n2", 2)
    assert story.dump() == half
    done = play.playbook(ROLLBACK, variables={"overlay_rollback_to": "1"}).succeeded()
    assert done.changes == predicted_back.changes
    assert {host for host, _task in done.changes} == {f"{PREFIX}n2"}
    assert story.dump() == story.seen[1]


def test_rolling_back_one_node_and_then_all_of_them_twice_is_harmless(story: Story) -> None:
    """``--limit`` takes back whom it names. The run may be repeated for the others, and takes nobody further."""
    restore("overlay_nodes", 2)
    expected = story.dump()
    everybody = set(expected)
    for limit, changed in ((f"{PREFIX}n2", {f"{PREFIX}n2"}), ("all", everybody - {f"{PREFIX}n2"}), ("all", set())):
        done = play.playbook(ROLLBACK, "--limit", limit).succeeded()
        assert {host for host, _task in done.changes} == changed
        expected.update({name: story.seen[1][name] for name in changed})
        assert story.dump() == expected
    assert expected == story.seen[1]


def test_generation_that_is_not_kept_is_an_error_that_says_so(story: Story) -> None:
    done = play.playbook(ROLLBACK, variables={"overlay_rollback_to": "7"})
    assert done.code != 0
    assert "no history" in done.output
    assert done.changes == set()
    assert story.dump() == story.seen[1]


def test_disable_switches_off_and_touches_nothing_else_and_enable_switches_on_again(story: Story) -> None:
    def off(seen: dict[str, Any]) -> dict[str, Any]:
        return {name: {**told, "control": ("off", *told["control"][1:])} for name, told in seen.items()}

    with Conversations() as live, Cluster(story.lab).nothing_invalid():
        story.talk(live)
        done = play.playbook(DISABLE).succeeded()
        assert {host for host, _task in done.changes} == set(story.seen[1])
        assert story.dump() == off(story.seen[1])
        assert play.playbook(DISABLE).succeeded().changes == set()
        predicted = play.playbook(ENABLE, "--check", "--diff", variables=ONE).succeeded()
        assert story.dump() == off(story.seen[1])
        applied = play.playbook(ENABLE, variables=ONE).succeeded()
        unharmed(live)
    assert applied.changes == predicted.changes
    assert {host for host, _task in applied.changes} == set(story.seen[1])
    assert story.dump() == story.seen[1]
    nodes = story.lab.nodes
    assert takes_the_overlay(nodes[1], nodes[2])


def test_rollback_names_the_node_that_it_could_not_reach_and_may_be_repeated(story: Story) -> None:
    lost = story.lab.nodes[3]
    cut(lost)
    with Conversations() as live, Cluster(story.lab).nothing_invalid():
        story.talk(live)
        done = play.playbook(ROLLBACK, variables={"overlay_rollback_to": "0"})
        unharmed(live)
        assert done.code != 0
        assert f"{PREFIX}n3: FAILED" in done.output
        assert "could not be reached" in done.output
        assert [history(node)["number"] for node in story.lab.nodes.values()][:3] == [0, 0, 1]
        mend(lost)
        again = play.playbook(ROLLBACK, variables={"overlay_rollback_to": "0"}).succeeded()
        unharmed(live)
    assert {host for host, _task in again.changes} == {f"{PREFIX}n3"}
    for node in story.lab.nodes.values():
        after, before = state.observe(node), story.before[node.name]
        assert (after.qdiscs, after.filters, after.pins) == (before.qdiscs, before.filters, before.pins)
        assert [line for line in after.files if "ebpf-overlay" in line] == []
