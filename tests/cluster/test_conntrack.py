# SPDX-License-Identifier: GPL-3.0-or-later
"""Conntrack of the nodes: refused where it may not be changed, made liberal by a roll-out, watched, restored.

The tests of this file build on one another, in this order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fleet import play, state
from fleet.datapath import AT_ONCE
from lab.api import Lab, Node
from lab.paths import PREFIX

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.conntrack import DEFAULTS, FILE, LIBERAL, NAMES

from .conftest import bring_up, take_down

SITE, ROLLBACK, STATUS = "site.yml", "rollback.yml", "playbooks/status.yml"
TO_ZERO = {"overlay_rollback_to": "0"}


@dataclass
class Story:
    lab: Lab
    before: dict[str, state.NodeState]


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    lab = bring_up("ready", nodes=2)
    yield Story(lab, {node.name: state.observe(node) for node in lab.nodes.values()})
    take_down()


def sysctls(node: Node) -> dict[str, int]:
    told = node.run(["cat", *(f"/proc/sys/{name.replace('.', '/')}" for name in NAMES)]).stdout.split()
    return dict(zip(NAMES, map(int, told)))


def strict() -> dict[str, int]:
    return {name: DEFAULTS[name] for name in NAMES}


def set_liberal(node: Node, value: int) -> None:
    node.run(["sh", "-c", f"echo {value} >/proc/sys/{LIBERAL.replace('.', '/')}"])


def refused(story: Story, *options: str, variables: dict[str, Any] | None = None) -> str:
    """Nothing is changed on any node; what was said, in one line."""
    done = play.playbook(SITE, *options, variables=variables or {})
    assert (done.code != 0, done.changes) == (True, set())
    for node in story.lab.nodes.values():
        assert state.observe(node) == story.before[node.name]
        assert sysctls(node)[NAMES[1]] == 0
    return " ".join(done.output.split())


@pytest.mark.parametrize("options", [(), ("--check",)], ids=["real run", "dry run"])
def test_who_forbids_it_is_refused_with_the_sysctl_and_the_nodes(story: Story, options: tuple[str, ...]) -> None:
    set_liberal(story.lab.nodes[1], 1)
    # As text: a boolean in an inventory is easy.
    told = refused(story, *options, "-e", "overlay_conntrack_liberal=false")
    assert f"{PREFIX}n2: {LIBERAL} is not 1" in told
    assert f"{PREFIX}n1: {LIBERAL}" not in told


def test_who_forbids_it_and_has_it_already_keeps_what_is_there(story: Story) -> None:
    nodes = story.lab.nodes.values()
    for node in nodes:
        set_liberal(node, 1)
    play.playbook(SITE, variables={**AT_ONCE, "overlay_conntrack_liberal": False}).succeeded()
    own = {**strict(), LIBERAL: 1}
    assert [sysctls(node) for node in nodes] == [own, own]
    assert all(FILE not in "".join(state.observe(node).files) for node in nodes)
    # Drift where the user's own setting goes.
    set_liberal(story.lab.nodes[1], 0)
    assert f"{LIBERAL} is 0" in " ".join(play.playbook(STATUS).succeeded().output.split())
    set_liberal(story.lab.nodes[1], 1)
    play.playbook(ROLLBACK, variables=TO_ZERO).succeeded()
    assert [sysctls(node) for node in nodes] == [own, own]
    for node in nodes:
        set_liberal(node, 0)


def test_roll_out_makes_it_liberal_as_the_dry_run_foretold(story: Story) -> None:
    predicted = play.playbook(SITE, "--check", "--diff", variables=AT_ONCE).succeeded()
    (step, _other) = predicted.of("Make conntrack liberal")
    assert f"{LIBERAL} = 1" in step.result["diff"]["after"]
    assert sysctls(story.lab.nodes[1]) == strict()
    applied = play.playbook(SITE, variables=AT_ONCE).succeeded()
    assert applied.changes == predicted.changes
    for node in story.lab.nodes.values():
        established = int(node.run(["cat", "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established"]).stdout)
        assert sysctls(node) == dict(zip(NAMES, (1, 1, established, established)))
        assert f"{LIBERAL} = 1\n" in node.run(["cat", FILE]).stdout
    assert play.playbook(SITE, variables=AT_ONCE).succeeded().changes == set()


def test_what_others_reset_is_drift_and_put_right_by_the_next_run(story: Story) -> None:
    node = story.lab.nodes[1]
    set_liberal(node, 0)
    node.run(["rm", FILE])
    told = " ".join(play.playbook(STATUS).succeeded().output.split())
    assert LIBERAL in told
    assert f"{FILE}: {LIBERAL}" in told
    predicted = play.playbook(SITE, "--check", variables=AT_ONCE).succeeded()
    applied = play.playbook(SITE, variables=AT_ONCE).succeeded()
    assert applied.changes == predicted.changes
    assert (f"{PREFIX}n1", "Make conntrack liberal") in applied.changes
    assert {host for host, _task in applied.changes} == {f"{PREFIX}n1"}
    assert (sysctls(node)[LIBERAL], node.run(["cat", FILE]).stdout.count(LIBERAL)) == (1, 1)


def test_disable_leaves_it_and_generation_0_restores_it(story: Story) -> None:
    nodes = story.lab.nodes.values()
    play.playbook("playbooks/disable.yml").succeeded()
    assert [sysctls(node)[LIBERAL] for node in nodes] == [1, 1]
    predicted = play.playbook(ROLLBACK, "--check", "--diff", variables=TO_ZERO).succeeded()
    assert [sysctls(node)[LIBERAL] for node in nodes] == [1, 1]
    assert play.playbook(ROLLBACK, variables=TO_ZERO).succeeded().changes == predicted.changes
    for node in nodes:
        assert sysctls(node) == strict()
        assert state.observe(node).files == story.before[node.name].files


def test_roll_out_that_fails_restores_it(story: Story, tmp_path: Path) -> None:
    probe = tmp_path / "probe.yml"
    probe.write_text(json.dumps([{"name": "Find it wanting", "ansible.builtin.fail": {"msg": "no"}}]))
    done = play.playbook(SITE, variables={**AT_ONCE, "overlay_probe_tasks": str(probe)})
    assert done.code != 0
    assert (f"{PREFIX}n1", "Make conntrack liberal") in done.changes
    for node in story.lab.nodes.values():
        assert sysctls(node) == strict()
        assert FILE not in "".join(state.observe(node).files)
