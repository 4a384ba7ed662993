# SPDX-License-Identifier: GPL-3.0-or-later
"""Dry run, roll-out, second run and rollback on nodes that never saw the overlay, beside somebody else's filters.

The tests of this file build on one another, in this order.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from fleet import play, state
from fleet.generation import takes_the_overlay
from lab.api import Lab, Node
from lab.paths import PREFIX

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.layout import PIN_DIR

SITE = "site.yml"
LINKS = f"{PIN_DIR}/links/ebpf_2eoverlay"
PLAN = "Work out what this node must be"
GATHER = "Gather the overlay's facts"


@dataclass
class Story:
    """What earlier tests saw."""

    lab: Lab
    before: dict[str, state.NodeState]
    loaded: dict[str, set[str]]
    predicted: play.Run | None = None
    applied: play.Run | None = None
    programs: dict[str, dict[str, int]] = field(default_factory=dict)


def put_foreign_filters(node: Node) -> None:
    """Somebody else's clsact qdisc with a filter on the uplink, and one without on a workload's interface."""
    workload = node.workloads[1].host_interface
    for interface in (node.uplink, workload):
        node.host_run(["tc", "qdisc", "add", "dev", interface, "clsact"])
    node.host_run(
        ["tc", "filter", "add", "dev", node.uplink, "ingress", "pref", "77", "protocol", "ip", "u32",
         "match", "ip", "dst", "203.0.113.7/32", "flowid", "1:7"]
    )  # fmt: skip


def foreign(seen: state.NodeState) -> list[str]:
    return [line for line in seen.filters if "pref 77" in line]


@pytest.fixture(scope="module")
def story(fresh_lab: Lab) -> Story:
    for node in fresh_lab.nodes.values():
        put_foreign_filters(node)
    before = {node.name: state.observe(node) for node in fresh_lab.nodes.values()}
    return Story(fresh_lab, before, state.loaded())


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"overlay_uplinks": ["eth7"]}, "Cannot find the uplinks: eth7. Reason: there is no such interface. Correct"),
        ({"overlay_services": [{"port": 70000}]}, "overlay_services[0].port. Reason: 70000 is no port. Give a port"),
    ],
    ids=["interface that does not exist", "value that does not fit"],
)
def test_bad_input_is_refused_and_changes_nothing(story: Story, variables: dict[str, Any], words: str) -> None:
    done = play.playbook(SITE, variables=variables)
    assert done.code != 0
    assert done.changes == set()
    assert words in " ".join(done.output.split())
    for node in story.lab.nodes.values():
        assert state.observe(node) == story.before[node.name]


@pytest.mark.usefixtures("story")
def test_workloads_that_are_not_there_are_a_warning() -> None:
    done = play.playbook(SITE, "--check", variables={"overlay_workload_interfaces": ["nothing*"]}).succeeded()
    told = " ".join(done.output.split())
    assert "No workload found: no host route leads to an interface that matches nothing*" in told


def test_dry_run_on_pristine_nodes_changes_nothing(story: Story) -> None:
    assert not takes_the_overlay(story.lab.nodes[2], story.lab.nodes[1])
    story.predicted = play.playbook(SITE, "--check", "--diff").succeeded()
    for node in story.lab.nodes.values():
        assert state.observe(node) == story.before[node.name]
    assert not {kind: ids - story.loaded[kind] for kind, ids in state.loaded().items() if ids - story.loaded[kind]}


def test_real_run_changes_what_the_dry_run_predicted(story: Story) -> None:
    assert story.predicted is not None
    story.applied = play.playbook(SITE).succeeded()
    assert story.applied.changes == story.predicted.changes
    assert len(story.applied.changes) >= 3 * 7


def test_the_flow_is_counted_by_the_overlay_and_by_nobody_else(story: Story) -> None:
    assert takes_the_overlay(story.lab.nodes[2], story.lab.nodes[1])
    stats = play.module(f"{PREFIX}n2", "ebpf.overlay.bpf_map_info", {"map": "/sys/fs/bpf/ebpf-overlay/stats"}).result
    counted = {entry["key"]: entry["value"]["packets"] for entry in stats["entries"]}
    assert counted["uplink.to_workload"] >= 4
    assert counted["workload.to_uplink"] >= 3


def test_second_run_changes_nothing_and_compiles_nothing(story: Story) -> None:
    programs = {node.name: state.program_ids(node) for node in story.lab.nodes.values()}
    assert all(len(found) >= 2 for found in programs.values())
    again = play.playbook(SITE).succeeded()
    assert again.changes == set()
    assert again.visits == {(node.name, GATHER) for node in story.lab.nodes.values()}
    assert "nothing to do (looked at " in again.output
    # Its variables are checked, its facts gathered and compared: no process more for a node with nothing to do.
    assert len([one for one in again.results if one.host == f"{PREFIX}n2"]) == 3
    assert {node.name: state.program_ids(node) for node in story.lab.nodes.values()} == programs


def test_a_node_that_somebody_changed_is_the_only_one_that_is_asked_again(story: Story) -> None:
    node = story.lab.nodes[2]
    carried = node.run(["ls", LINKS]).stdout.split()
    node.run(["rm", f"{LINKS}/{carried[0]}"])
    predicted = play.playbook(SITE, "--check", "--diff").succeeded()
    assert {host for host, _task in predicted.changes} == {node.name}
    assert {host for host, task in predicted.visits if task != GATHER} == {node.name}
    # It is the canary: the batches are of nodes that change.
    assert {one.host for one in predicted.of(PLAN)} == {node.name}
    assert play.playbook(SITE).succeeded().changes == predicted.changes
    assert node.run(["ls", LINKS]).stdout.split() == carried
    assert play.playbook(SITE, "--check", "--diff").succeeded().changes == set()


def test_foreign_filters_are_untouched_while_the_overlay_is_on(story: Story) -> None:
    for node in story.lab.nodes.values():
        seen = state.observe(node)
        assert foreign(seen) == foreign(story.before[node.name])
        assert set(story.before[node.name].qdiscs) <= set(seen.qdiscs)


@pytest.mark.usefixtures("story")
def test_status_lists_what_runs_where() -> None:
    shown = play.playbook("playbooks/status.yml").succeeded()
    assert shown.changes == set()
    for word in (f"{PREFIX}n1", f"{PREFIX}n3", "overlaid", "from_uplink", "from_workload", "on"):
        assert word in shown.output


def test_dry_run_of_the_rollback_changes_nothing_and_predicts_it(story: Story) -> None:
    seen = {node.name: state.observe(node) for node in story.lab.nodes.values()}
    story.predicted = play.playbook("rollback.yml", "--check", "--diff").succeeded()
    for node in story.lab.nodes.values():
        assert state.observe(node) == seen[node.name]


def test_rollback_leaves_what_was_there_before_and_nothing_else(story: Story) -> None:
    assert story.predicted is not None
    applied = play.playbook("rollback.yml").succeeded()
    assert applied.changes == story.predicted.changes
    for node in story.lab.nodes.values():
        after, before = state.observe(node), story.before[node.name]
        assert (after.qdiscs, after.filters, after.pins) == (before.qdiscs, before.filters, before.pins)
        ours = [line for line in after.files if "ebpf-overlay" in line]
        assert ours == []
    wait_for_unload(story.loaded)
    assert not takes_the_overlay(story.lab.nodes[2], story.lab.nodes[1])


@pytest.mark.usefixtures("story")
def test_rolling_back_once_more_is_harmless_and_says_that_there_is_no_history() -> None:
    done = play.playbook("rollback.yml")
    assert (done.code != 0, done.changes) == (True, set())
    assert "no history" in done.output


def wait_for_unload(loaded: dict[str, set[str]]) -> None:
    """The kernel frees programs and maps a moment after their last user is gone."""
    deadline = time.monotonic() + 5
    while not (left := {kind: ids - loaded[kind] for kind, ids in state.loaded().items()}) or any(left.values()):
        assert time.monotonic() < deadline, json.dumps({kind: sorted(ids) for kind, ids in left.items()})
        time.sleep(0.1)
