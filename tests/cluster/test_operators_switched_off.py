# SPDX-License-Identifier: GPL-3.0-or-later
"""What somebody has switched off stays off; a run undoes what it began itself, and nothing else.

The tests of this file build on one another, in this order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fleet import play
from fleet.datapath import AT_ONCE, Datapath
from fleet.generation import history, settled, takes_the_overlay
from lab.api import Lab
from lab.paths import PREFIX

SITE, ENABLE, DISABLE, ROLLBACK = "site.yml", "playbooks/enable.yml", "playbooks/disable.yml", "rollback.yml"
LOCK = "/run/ebpf-overlay-generation.lock"
OFF = "switched off: playbooks/enable.yml switches it on"

WAITING = """
- name: Wait for the other
  ansible.builtin.wait_for: {{path: {file}, timeout: 600}}
  delegate_to: localhost
  vars: {{ansible_connection: local, ansible_python_interpreter: "{{{{ ansible_playbook_python }}}}"}}
"""


def services(*ports: int) -> dict[str, Any]:
    return {**AT_ONCE, "overlay_services": [{"port": port} for port in (8080, *ports)]}


def said(done: play.Run) -> str:
    return " ".join(done.output.split()).replace("''", "'")


def modes(lab: Lab) -> set[tuple[str, int]]:
    """Mode and deadline of every node."""
    return {(control.mode, control.deadline) for node in lab.nodes.values() if (control := Datapath(node).control)}


def numbers(lab: Lab) -> set[int]:
    return {history(node)["number"] for node in lab.nodes.values()}


@pytest.fixture(scope="module")
def lab(ready_lab: Lab) -> Lab:
    play.playbook(SITE, variables=services()).succeeded()
    return ready_lab


def test_failed_run_leaves_off_what_somebody_switched_off(lab: Lab) -> None:
    play.playbook(DISABLE).succeeded()
    assert modes(lab) == {("off", 0)}
    assert play.playbook(DISABLE, "--check").succeeded().changes == set()
    done = play.playbook(SITE, variables=services(99999))
    assert done.code != 0
    assert "99999 is no port" in said(done)
    assert done.changes == set()
    holder = lab.nodes[1].popen(["flock", LOCK, "sleep", "60"])
    try:
        done = play.playbook(SITE, variables={**services(9090), "overlay_batches": [1, "100%"]})
    finally:
        lab.nodes[1].run(["pkill", "-x", "sleep"], check=False)
        holder.wait()
    assert done.code != 0
    assert done.changes == set()
    assert f"{PREFIX}n1: FAILED at 'Compare with what the node is" in said(done)
    assert f"now: generation 1, digest {history(lab.nodes[1])['digest'][:12]}; {OFF}" in said(done)
    assert f"{PREFIX}n2: not reached by the roll-out, nothing changed" in said(done)
    assert modes(lab) == {("off", 0)}


def test_run_without_failure_changes_such_nodes_and_leaves_them_off(lab: Lab) -> None:
    for option in (["--check"], []):
        done = play.playbook(SITE, *option, variables=services(9090)).succeeded()
        assert done.output.count(OFF) == len(lab.nodes), done.output
        assert not [result for result in done.of("Switch the overlay on") if result.changed]
    assert numbers(lab) == {2}
    assert modes(lab) == {("off", 0)}
    assert not takes_the_overlay(lab.nodes[1], lab.nodes[2])
    assert play.playbook(SITE, variables=services(9090)).succeeded().changes == set()


def test_rollback_leaves_them_off_too(lab: Lab) -> None:
    done = play.playbook(ROLLBACK).succeeded()
    assert done.output.count(OFF) == len(lab.nodes), done.output
    assert numbers(lab) == {1}
    assert modes(lab) == {("off", 0)}


def test_enabling_that_fails_its_probe_leaves_them_off(lab: Lab, tmp_path: Path) -> None:
    probe = tmp_path / "probe.yml"
    probe.write_text("- name: Fail\n  ansible.builtin.assert: {that: false}\n", encoding="utf-8")
    done = play.playbook(ENABLE, variables={**services(), "overlay_probe_tasks": str(probe)})
    assert done.code != 0
    assert f"{PREFIX}n1: FAILED at 'Fail'" in said(done)
    assert done.output.count(OFF) >= len(lab.nodes), done.output
    settled(lab, 10)
    assert modes(lab) == {("off", 0)}


def test_enabling_switches_on_with_a_probe_and_a_confirmation(lab: Lab) -> None:
    done = play.playbook(ENABLE, variables=services()).succeeded()
    assert OFF not in done.output
    assert len(done.of("Switch the overlay on")) == len(lab.nodes)
    assert "Probed 10.244.1.11:8080" in said(done)
    assert modes(lab) == {("on", 0)}
    assert takes_the_overlay(lab.nodes[1], lab.nodes[2])
    assert play.playbook(SITE, variables=services()).succeeded().changes == set()
    assert modes(lab) == {("on", 0)}


def test_run_whose_attempt_another_one_took_over_undoes_nothing(lab: Lab, tmp_path: Path) -> None:
    """While the first one probes, a second one comes, rolls out something else, and confirms it."""
    second: list[play.Run] = []
    probe = tmp_path / "probe.yml"
    probe.write_text(WAITING.format(file=tmp_path / "over"), encoding="utf-8")

    def begun(task: str) -> None:
        if task == "Wait for the other" and not second:
            second.append(play.playbook(SITE, variables=services(7070)))
            (tmp_path / "over").touch()

    slowly = {**services(9090), "overlay_probe_tasks": str(probe), "overlay_lease": 600, "overlay_apply_timeout": 900}
    first = play.playbook(SITE, variables=slowly, begun=begun)
    assert second, first.output
    second[0].succeeded()
    confirmed = {node.name: history(node) for node in lab.nodes.values()}
    assert first.code != 0
    for name, found in confirmed.items():
        assert f"{name}: FAILED at 'Confirm the generation'" in said(first)
        assert f"now: generation {found['number']}" in said(first)
    assert said(first).count("another run's attempt") >= len(lab.nodes), first.output
    assert modes(lab) == {("on", 0)}
    assert play.playbook(SITE, variables=services(7070)).succeeded().changes == set()
