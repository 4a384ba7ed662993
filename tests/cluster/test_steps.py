# SPDX-License-Identifier: GPL-3.0-or-later
"""A step of a roll-out stands once: what is changed there is in the role, the generation, the drift and the way back.

The tests of this file build on one another, in this order.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import play, state
from fleet.generation import STATE
from lab.api import Lab, Node
from lab.paths import PREFIX

from .conftest import bring_up, take_down

STEPS = "plugins/module_utils/_generations/steps.py"
VARIABLES = {"overlay_mechanism": "clsact", "overlay_priority": 40000, "overlay_batches": ["100%"]}
CHANGED = 40007


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This clone, with one argument of one step changed in one place."""
    root = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=play.ROOT, check=True, capture_output=True).stdout
    packed: list[str | Path] = ["tar", "--create", "--directory", play.ROOT, "--null", "--files-from=-"]
    archive = subprocess.run(packed, input=listed, check=True, capture_output=True).stdout
    subprocess.run(["tar", "--extract", "--directory", root], input=archive, check=True)
    text = (root / STEPS).read_text(encoding="utf-8")
    assert text.count("priority=wanted.priority,") == 1
    (root / STEPS).write_text(
        text.replace("priority=wanted.priority,", "priority=wanted.priority + 7,"), encoding="utf-8"
    )
    return root


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    yield bring_up("ready", nodes=2, workloads=1)
    take_down()


def priorities(node: Node) -> set[int]:
    """Of our filters."""
    ours = [line.split() for line in state.observe(node).filters if "ebpf.overlay:" in line]
    return {int(words[words.index("pref") + 1]) for words in ours}


def test_role_takes_the_argument_from_the_step(lab: Lab, clone: Path) -> None:
    done = play.playbook("site.yml", variables=VARIABLES, root=clone).succeeded()
    for result in done.of("Attach the programs, the reply side first"):
        assert {item["priority"] for item in result.result["attachments"]} == {CHANGED}
    assert [priorities(node) for node in lab.nodes.values()] == [{CHANGED}] * 2
    assert play.playbook("site.yml", variables=VARIABLES, root=clone).succeeded().changes == set()


def test_generation_has_it(lab: Lab) -> None:
    for node in lab.nodes.values():
        manifest = json.loads(node.run(["cat", f"{STATE}/generations/1/manifest.json"]).stdout)
        (call,) = [call for call in manifest["calls"] if call["module"] == "tc_bpf_attach"]
        assert call["arguments"]["priority"] == CHANGED


def test_drift_names_it(lab: Lab, clone: Path, tmp_path: Path) -> None:
    interface = lab.nodes[1].workloads[1].host_interface
    lab.nodes[1].run(["tc", "filter", "del", "dev", interface, "ingress", "pref", str(CHANGED)])
    path = tmp_path / "status.json"
    play.playbook("playbooks/status.yml", variables={"overlay_status_json": str(path)}, root=clone).succeeded()
    nodes = {node["name"]: node for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]}
    assert [(item["kind"], item["object"]) for item in nodes[f"{PREFIX}n1"]["drift"]] == [
        ("missing", f"filter on {interface} ingress, priority {CHANGED}, handle 0x1")
    ]
    assert nodes[f"{PREFIX}n2"]["drift"] == []


def test_way_back_makes_it_again(lab: Lab) -> None:
    play.playbook("site.yml", variables=VARIABLES).succeeded()
    assert [priorities(node) for node in lab.nodes.values()] == [{VARIABLES["overlay_priority"]}] * 2
    play.playbook("rollback.yml").succeeded()
    assert [priorities(node) for node in lab.nodes.values()] == [{CHANGED}] * 2
