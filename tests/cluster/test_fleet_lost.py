# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes that nobody reaches any more, and a controller that dies: every node ends confirmed or back, by itself.

What a lost node does is seen from outside: through its namespaces, never through SSH.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet import play
from fleet.cut import cut_at, mend
from fleet.datapath import AT_ONCE, SOAK, Datapath, full
from fleet.generation import dump, history, pending, recorded, settled, takes_the_overlay
from lab.api import Lab, Node, wait_until
from lab.paths import INVENTORY, PREFIX

from .conftest import bring_up, take_down

SITE = "site.yml"
LEASE = full(60, 20)
APPLY = full(240, 50)  # seconds; shorter ones would be refused on a small machine that is busy
TIMES = {"overlay_lease": LEASE, "overlay_apply_timeout": APPLY, "overlay_batches": [1, "100%"]}
GRACE = 120  # seconds for a busy machine to restore a generation, which takes two or three
TWO_SERVICES = {"overlay_services": [{"port": 8080}, {"port": 9090}]}
STEPS = (
    "Compare with what the node is, and begin a generation if it differs",
    "Install bcc, pyroute2 and the UAPI headers",
    "Mount the bpffs",
    "Build and load the datapath",
    "Fill the maps",
    "Attach the programs, the reply side first",
    "Tell the datapath which interfaces carry it",
    "Switch the overlay on",
    "Read the overlay's counters over a new connection",
    "Connect to the services of this node's workloads from another node",
    "Read the counters again",
    "Confirm the generation",
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    lab = bring_up("ready", nodes=full(20, 3), workloads=full(1, 2))
    yield lab
    for node in lab.nodes.values():
        mend(node)
    take_down()


def observed(lab: Lab) -> dict[str, Any]:
    return {node.name: recorded(dump(node)) for node in lab.nodes.values()}


class LeaseSeen:
    """Watches one node's mode and traffic while a roll-out runs: from when on requests must take the kernel's path."""

    def __init__(self, node: Node, client: Node) -> None:
        self.node, self.client = node, client
        self.during: list[bool] = []  # whether requests took the overlay
        self.after: list[bool] = []
        self.deadline = 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def __enter__(self) -> LeaseSeen:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def _run(self) -> None:
        while not self.ended.wait(0.2):
            control = Datapath(self.node).control
            self.deadline = control.deadline if control and control.deadline else self.deadline
            if not self.deadline:
                continue
            began = time.monotonic_ns()
            took = takes_the_overlay(self.node, self.client)
            if time.monotonic_ns() < self.deadline:
                self.during.append(took)
            elif began > self.deadline:
                self.after.append(took)


def test_canary_that_is_cut_off_while_its_lease_runs_saves_itself(lab: Lab) -> None:
    """The lease ends with no process of ours needed; then the former generation is restored."""
    before = observed(lab)
    node, other = lab.nodes[1], lab.nodes[2]
    with cut_at(node, "Read the overlay's counters over a new connection") as begun:
        with LeaseSeen(node, other) as seen:
            done = play.playbook(SITE, variables=TIMES, begun=begun)
            wait_until(lambda: len(seen.after) >= 3, GRACE, "requests after the lease")
        assert any(seen.during), "no request took the overlay while the lease ran"
        assert not any(seen.after), "a request took the overlay after the end of the lease"
        wait_until(lambda: not pending(node), GRACE, "the node is back")
        assert observed(lab) == before
    assert done.code != 0
    assert f"{PREFIX}n1: FAILED" in done.output
    assert "The connection was lost at the step 'read the counters'" in " ".join(done.output.split())
    assert "goes back by itself" in " ".join(done.output.split())
    assert {result.host for result in done.results if result.changed} == {f"{PREFIX}n1"}


# In the quick run, the step at which most is under way.
@pytest.mark.parametrize("step", STEPS if SOAK else ["Build and load the datapath"])
def test_node_of_a_later_batch_that_is_cut_off_goes_back_and_so_do_all_others(lab: Lab, step: str) -> None:
    """Its traffic takes the kernel's path from the end of its lease on, if the cut came after the lease began."""
    before = observed(lab)
    node = lab.nodes[2]
    with cut_at(node, step, batch=2) as begun, LeaseSeen(node, lab.nodes[1]) as seen:
        done = play.playbook(SITE, variables=TIMES, begun=begun)
        reachable = {name: state for name, state in observed(lab).items() if name != f"{PREFIX}n2"}
        assert reachable == {name: state for name, state in before.items() if name != f"{PREFIX}n2"}, done.output
        settled(lab, APPLY + GRACE)
        assert observed(lab) == before
    assert not any(seen.after), "a request took the overlay after the end of the lease"
    assert bool(seen.after) == bool(seen.deadline)
    assert done.code != 0
    assert f"{PREFIX}n1: was rolled out, and taken back" in done.output
    assert f"{PREFIX}n2: FAILED" in done.output


def test_confirmed_node_that_cannot_be_taken_back_is_named_with_what_to_do(lab: Lab, tmp_path: Path) -> None:
    before = observed(lab)
    node = lab.nodes[1]
    probe = tmp_path / "probe.yml"
    probe.write_text(
        f"- name: Fail\n  ansible.builtin.assert: {{that: inventory_hostname == '{PREFIX}n1'}}\n", encoding="utf-8"
    )
    with cut_at(node, "Fill the maps", batch=2) as begun:
        variables = {"overlay_batches": TIMES["overlay_batches"], "overlay_probe_tasks": str(probe)}
        done = play.playbook(SITE, variables=variables, begun=begun)
    told = " ".join(done.output.split())
    assert done.code != 0
    assert f"{PREFIX}n1: FAILED at 'Refuse a node that could not be reached': It could not be reached." in told
    assert f"stays at generation 1: run rollback.yml with --limit {PREFIX}n1 when it can be reached" in told
    assert takes_the_overlay(node, lab.nodes[2])
    settled(lab, 10)
    assert {name for name, state in observed(lab).items() if state != before[name]} == {f"{PREFIX}n1"}
    play.playbook("rollback.yml", "--limit", f"{PREFIX}n1").succeeded()
    assert observed(lab) == before


@pytest.mark.parametrize("step", STEPS if SOAK else ["Switch the overlay on"])
def test_upgrade_that_is_cut_off_goes_back_to_the_former_generation(lab: Lab, step: str) -> None:
    play.playbook(SITE, variables=AT_ONCE).succeeded()
    before = observed(lab)
    node = lab.nodes[1]
    with cut_at(node, step) as begun:
        done = play.playbook(SITE, variables={**TIMES, **TWO_SERVICES}, begun=begun)
        settled(lab, APPLY + GRACE)
        assert observed(lab) == before
        assert takes_the_overlay(node, lab.nodes[2])
    assert done.code != 0
    assert {result.host for result in done.results if result.changed} <= {f"{PREFIX}n1"}


def kill_at(moment: float, variables: dict[str, Any], folder: Path) -> bool:
    """Run the roll-out and kill the controller with all of its processes; returns whether it was still running."""
    path = folder / "variables.json"
    path.write_text(json.dumps(variables), encoding="utf-8")
    command = [play.BIN / "ansible-playbook", "-i", INVENTORY, SITE, "--extra-vars", f"@{path}"]
    process = subprocess.Popen(
        list(map(str, command)), cwd=play.ROOT, start_new_session=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def test_killed_controller_leaves_every_node_confirmed_or_back(lab: Lab, tmp_path: Path) -> None:
    """SIGKILL at random moments; the next run goes on from there without a hand on any node."""
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    print(f"seed {seed}")
    began = time.monotonic()
    play.playbook(SITE, variables={**TIMES, **TWO_SERVICES}).succeeded()
    longest = time.monotonic() - began
    services = [{"overlay_services": [{"port": port}]} for port in (8080, 9090)]
    killed = rounds = 0
    while killed < full(10, 1):
        rounds += 1
        assert rounds <= full(30, 10), "the controller always ends before it is killed"
        killed += kill_at(chance.uniform(4, longest), {**TIMES, **services[rounds % 2]}, tmp_path)
        settled(lab, APPLY + LEASE + GRACE)
        told = play.run(
            play.BIN / "ansible", "-i", INVENTORY, "overlay_nodes", "-m", "ebpf.overlay.overlay_generation_info"
        )
        drifts = {result.host: result.result["differences"] for result in told.results}
        assert drifts == {node.name: [] for node in lab.nodes.values()}
        for node in lab.nodes.values():
            assert (history(node)["number"], dump(node)["control"]) == (
                history(node)["number"], ("on", 0, history(node)["number"]),
            )  # fmt: skip
        print(f"round {rounds}: {killed} kills, generations {sorted(history(n)['number'] for n in lab.nodes.values())}")
    predicted = play.playbook(SITE, "--check", "--diff", variables=AT_ONCE).succeeded()
    assert play.playbook(SITE, variables=AT_ONCE).succeeded().changes == predicted.changes
