# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node does by itself when it has rebooted, where systemd runs.

The tests of this file build on one another, in this order; the last one takes the overlay off.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fleet import play, state
from fleet.datapath import Datapath
from fleet.generation import STATE, takes_the_overlay
from lab.api import Lab, Node, wait_until

from .conftest import bring_up, take_down

GRACE = 120  # seconds for a busy machine to do what takes three
UNIT = "ebpf-overlay.service"
COMPILER = "/usr/lib/python3/dist-packages/bcc"


@pytest.fixture(scope="module")
def before() -> dict[str, state.NodeState]:
    return {}


@pytest.fixture(scope="module")
def lab(before: dict[str, state.NodeState]) -> Iterator[Lab]:
    made = bring_up("ready", 2, 1, "--systemd")
    before.update({node.name: state.observe(node) for node in made.nodes.values()})
    play.playbook("site.yml", variables={"overlay_batches": ["100%"]}).succeeded()
    yield made
    take_down()


@pytest.fixture
def node(lab: Lab) -> Node:
    return lab.nodes[1]


def reboot(node: Node) -> None:
    """Until the unit has ended."""
    former = node.pid
    node.run(["systemctl", "reboot"], check=False)
    wait_until(lambda: node.pid not in (None, former), GRACE, "the node boots")
    wait_until(lambda: unit(node).get("ExecMainExitTimestampMonotonic", "0") != "0", GRACE, f"{UNIT} has ended")


def unit(node: Node) -> dict[str, str]:
    """What systemd says of it."""
    names = "Result,NRestarts,ExecMainExitTimestampMonotonic"
    done = node.run(["systemctl", "show", UNIT, f"--property={names}"], check=False)
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def told(node: Node, arguments: str) -> Any:
    return json.loads(node.run(["sh", "-c", f"overlayctl {arguments} --json"], check=False).stdout)


def test_a_confirmed_node_is_what_it_was_after_a_reboot_without_the_controller(lab: Lab, node: Node) -> None:
    reboot(node)
    assert unit(node)["Result"] == "success"
    assert takes_the_overlay(node, lab.nodes[2])
    found = told(node, "status")
    assert (found["mode"], found["number"], found["drift"], found["trouble"]) == ("on", 1, [], [])
    assert told(node, "log")["entries"][-1]["what"] == "made its generation again after a reboot"
    assert "made its generation again after a reboot" in node.run(["journalctl", "-b", "--no-pager"]).stdout
    assert not told(node, "boot")["changed"]
    assert play.playbook("site.yml", variables={"overlay_batches": ["100%"]}).succeeded().changes == set()


def test_a_node_that_is_switched_off_stays_off(node: Node) -> None:
    node.run(["overlayctl", "off"])
    reboot(node)
    assert unit(node)["Result"] == "success"
    assert Datapath(node).control.mode == "off"
    assert told(node, "status")["switched_off"]
    assert told(node, "on")["mode"] == "on"


def test_a_node_that_cannot_build_keeps_the_kernels_path_tries_once_and_says_why(lab: Lab, node: Node) -> None:
    node.run(["sh", "-c", f"mv {COMPILER} {COMPILER}.away; mv /usr/bin/apt-get /usr/bin/apt-get.away"])
    try:
        reboot(node)
        assert (unit(node)["Result"], unit(node)["NRestarts"]) == ("exit-code", "0")
        assert not takes_the_overlay(node, lab.nodes[2])
        found = told(node, "status")
        assert found["mode"] in ("absent", "off")
        assert len(found["trouble"]) == 1
        assert "python3-bpfcc" in found["trouble"][0], found["trouble"]
        assert "keeps the kernel's path" in told(node, "log")["entries"][-1]["what"]
        assert "keeps the kernel's path" in node.run(["journalctl", "-b", "--no-pager"]).stdout
    finally:
        node.run(["sh", "-c", f"mv {COMPILER}.away {COMPILER}; mv /usr/bin/apt-get.away /usr/bin/apt-get"])
    assert told(node, "reconcile")["changed"]
    found = told(node, "status")
    assert (found["mode"], found["trouble"]) == ("on", [])


def test_generation_0_leaves_no_unit(node: Node, before: dict[str, state.NodeState]) -> None:
    assert told(node, "rollback 0")["number"] == 0
    listed = node.run(["sh", "-c", "find / -xdev -name '*ebpf-overlay*' -o -xdev -name overlayctl"]).stdout.split()
    assert not [path for path in listed if not path.startswith(("/proc", "/sys"))]
    assert not node.run(["ls", STATE], check=False).stdout
    assert before
