# SPDX-License-Identifier: GPL-3.0-or-later
"""From release 1.0.0 to a datapath whose maps have another layout, and back: each generation by its own code.

The tests of this file build on one another, in this order.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fleet import play, state
from fleet.cut import cut_at, mend
from fleet.datapath import TALK_PORT
from fleet.generation import dump, history, pending, recorded, settled, takes_the_overlay
from fleet.traffic import Conversations
from lab.api import Lab, Node
from lab.paths import INVENTORY, PREFIX

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.conntrack import LIBERAL

from .conftest import bring_up, take_down

OLD_COMMIT = "9495a14"  # release 1.0.0: records without a format, a runtime that can only restore
VARIABLES = {
    "overlay_services": [{"port": 8080}, {"port": TALK_PORT}],
    "overlay_batches": ["100%"],
    "overlay_lease": 300,  # no test of this file is about a slow machine
    "overlay_apply_timeout": 600,
}
GRACE = 240  # seconds for a busy machine to compile and restore a generation


@dataclass
class Story:
    """``old``: a clone. ``before``: the nodes without the overlay. ``first``: at the old generation."""

    lab: Lab
    old: Path
    before: dict[str, state.NodeState]
    first: dict[str, Any] = field(default_factory=dict)

    def dump(self) -> dict[str, Any]:
        return {node.name: recorded(dump(node)) for node in self.lab.nodes.values()}

    def told(self) -> list[dict[str, Any]]:
        """What the nodes say of themselves, by the new code."""
        ansible = play.BIN / "ansible", "-i", INVENTORY, "overlay_nodes"
        done = play.run(*ansible, "-m", "ebpf.overlay.overlay_generation_info").succeeded()
        return [dict(result.result) for result in done.results]

    def talk(self, live: Conversations) -> None:
        nodes = list(self.lab.nodes.values())
        for number in range(16):
            node, server = nodes[number % 2], nodes[(number + 1) % 2].workloads[1 + number // 2 % 2]
            live.open(node if number < 8 else node.workloads[1], server, TALK_PORT, family=(4, 6)[number % 4 // 2])

    def liberal(self) -> list[int]:
        """The sysctl on each node. The old release knows nothing of it, and finds it as it was."""
        path = f"/proc/sys/{LIBERAL.replace('.', '/')}"
        return [int(node.run(["cat", path]).stdout) for node in self.lab.nodes.values()]

    def carried(self) -> bool:
        nodes = self.lab.nodes
        return all(takes_the_overlay(node, nodes[number % len(nodes) + 1]) for number, node in nodes.items())


def pins(node: Node) -> set[str]:
    return set(node.run(["ls", "/sys/fs/bpf/ebpf-overlay"]).stdout.split())


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    old = tmp_path_factory.mktemp("old")
    archive = subprocess.run(["git", "archive", OLD_COMMIT], cwd=play.ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", old], input=archive, check=True)
    lab = bring_up("ready", nodes=2)
    yield Story(lab, old, {node.name: state.observe(node) for node in lab.nodes.values()})
    for node in lab.nodes.values():
        mend(node)
    take_down()


def unharmed(live: Conversations) -> None:
    report = live.report(grace=5)
    print(report)
    assert report.messages > 0
    assert not report.dead, report
    assert not report.waiting, report


def test_new_release_takes_over_from_the_old_one_without_a_hand(story: Story) -> None:
    play.playbook("site.yml", variables=VARIABLES, root=story.old).succeeded()
    story.first = story.dump()
    assert {told["history"]["number"] for told in story.first.values()} == {1}
    with Conversations() as live:
        story.talk(live)
        predicted = play.playbook("site.yml", "--check", "--diff", variables=VARIABLES).succeeded()
        assert story.dump() == story.first
        begun = play.playbook("site.yml", variables=VARIABLES).succeeded()
        unharmed(live)
    assert begun.changes == predicted.changes
    for result in begun.of("Compare with what the node is, and begin a generation if it differs"):
        assert {"flows", "ifindex_map", "peers", "stats"} <= set(result.result["replaced"])
    for node in story.lab.nodes.values():
        assert "beats" in pins(node)
        assert "silent" not in pins(node)
    assert [(told["number"], told["mode"], told["drift"]) for told in story.told()] == [(2, "on", [])] * 2
    assert story.carried()
    assert story.liberal() == [1, 1]
    assert play.playbook("site.yml", variables=VARIABLES).succeeded().changes == set()


def test_rollback_goes_back_to_the_old_generation_by_its_own_code(story: Story) -> None:
    with Conversations() as live:
        story.talk(live)
        predicted = play.playbook("rollback.yml", "--check", "--diff", variables=VARIABLES).succeeded()
        assert [told["number"] for told in story.told()] == [2, 2]
        done = play.playbook("rollback.yml", variables=VARIABLES).succeeded()
        unharmed(live)
    assert done.changes == predicted.changes
    assert story.dump() == story.first
    assert story.carried()
    assert story.liberal() == [0, 0]
    assert [told["drift"] for told in story.told()] == [[], []]
    for node in story.lab.nodes.values():
        node.run(["overlayctl", "log"])  # it belongs to the node, not to a generation
    # And the old release goes on from there.
    assert play.playbook("site.yml", variables=VARIABLES, root=story.old).succeeded().changes == set()


def test_upgrade_that_fails_goes_back_to_the_old_generation(story: Story, tmp_path: Path) -> None:
    probe = tmp_path / "probe.yml"
    probe.write_text(
        f"- name: Fail\n  ansible.builtin.assert: {{that: inventory_hostname == '{PREFIX}n1'}}\n", encoding="utf-8"
    )
    variables = {**VARIABLES, "overlay_probe_tasks": str(probe)}
    with Conversations() as live:
        story.talk(live)
        done = play.playbook("site.yml", variables=variables)
        unharmed(live)
    print(done.output)
    assert done.code != 0
    assert f"{PREFIX}n2: FAILED at 'Fail'" in done.output
    assert not any(pending(node) for node in story.lab.nodes.values())
    assert story.dump() == story.first
    assert story.liberal() == [0, 0]


def test_node_that_is_cut_off_during_the_upgrade_goes_back_by_itself(story: Story) -> None:
    node = story.lab.nodes[1]
    times = {"overlay_lease": 10, "overlay_apply_timeout": 60}
    with cut_at(node, "Attach the programs, the reply side first") as begun:
        done = play.playbook("site.yml", variables={**VARIABLES, **times}, begun=begun)
        settled(story.lab, GRACE)
    assert done.code != 0
    assert story.dump() == story.first
    assert story.carried()
    assert story.liberal() == [0, 0]


def test_nothing_is_left_at_generation_0(story: Story) -> None:
    play.playbook("site.yml", variables=VARIABLES).succeeded()
    with Conversations() as live:
        story.talk(live)
        play.playbook("rollback.yml", variables={**VARIABLES, "overlay_rollback_to": "0"}).succeeded()
        unharmed(live)
    assert story.liberal() == [0, 0]
    for node in story.lab.nodes.values():
        assert history(node)["number"] == 0
        after, before = state.observe(node), story.before[node.name]
        assert (after.qdiscs, after.filters, after.pins) == (before.qdiscs, before.filters, before.pins)
        assert [line for line in after.files if "ebpf-overlay" in line] == []
