# SPDX-License-Identifier: GPL-3.0-or-later
"""An upgrade of the collection alone leaves nodes as they are, and one with a counter more needs no hand.

The tests of this file build on one another, in this order.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fleet import archive, play
from fleet.generation import dump, recorded
from lab.api import Lab

from .conftest import bring_up, take_down

# The last one before the code behind the modules moved into packages. The datapath is the same since then: a commit
# that changes it names another one here, the last with that datapath.
EARLIER = "3dbca65"
SOURCES = "roles/node/files/bpf"
COMMAND = "Install overlayctl where nothing else is to be done"
VARIABLES: dict[str, Any] = {"overlay_batches": ["100%"], "overlay_lease": 300, "overlay_apply_timeout": 600}
MORE = {**VARIABLES, "overlay_services": [{"port": 8080}, {"port": 8081}]}


@dataclass
class Story:
    """``earlier``: a clone. ``first``, ``second``: the nodes at the generations that it made."""

    lab: Lab
    earlier: Path
    folder: Path
    first: dict[str, Any] = field(default_factory=dict)
    second: dict[str, Any] = field(default_factory=dict)

    def dump(self) -> dict[str, Any]:
        return {node.name: recorded(dump(node)) for node in self.lab.nodes.values()}

    def status(self, root: Path = play.ROOT) -> list[dict[str, Any]]:
        """The nodes, as status.yml tells of them."""
        file = self.folder / "status.json"
        play.playbook("playbooks/status.yml", variables={"overlay_status_json": str(file)}, root=root).succeeded()
        return list(json.loads(file.read_text(encoding="utf-8"))["nodes"])


def at(number: int, nodes: list[dict[str, Any]]) -> bool:
    """Whether they are as that generation says, and on."""
    return all((n["state"], n["generation"], n["mode"], n["drift"]) == ("overlaid", number, "on", []) for n in nodes)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    earlier = archive.of_commit(EARLIER, tmp_path_factory.mktemp("earlier"))
    yield Story(bring_up("ready", nodes=2, workloads=1), earlier, tmp_path_factory.mktemp("status"))
    take_down()


def test_nodes_are_unchanged_by_an_upgrade_of_the_collection_alone(story: Story) -> None:
    assert subprocess.run(["diff", "-r", story.earlier / SOURCES, play.ROOT / SOURCES], check=False).returncode == 0
    play.playbook("site.yml", variables=VARIABLES, root=story.earlier).succeeded()
    story.first = story.dump()
    play.playbook("site.yml", variables=MORE, root=story.earlier).succeeded()
    story.second = story.dump()
    assert {seen["history"]["number"] for seen in story.second.values()} == {2}
    assert at(2, story.status())
    # A command for the console comes with this release, once; the generation stays.
    upgraded = play.playbook("site.yml", variables=MORE).succeeded()
    assert {task for _host, task in upgraded.changes} == {COMMAND}
    assert play.playbook("site.yml", variables=MORE).succeeded().changes == set()
    assert story.dump() == story.second


def test_rollback_goes_back_to_what_the_earlier_release_made(story: Story) -> None:
    play.playbook("rollback.yml", variables=MORE).succeeded()
    assert story.dump() == story.first
    assert at(1, story.status())


def test_upgrade_with_one_counter_more_needs_no_hand(story: Story, tmp_path: Path) -> None:
    later = archive.of_this(tmp_path)
    last = '    54: ("reset", "RST of a flow came out"),\n'
    more = '    55: ("looked", "a packet that came out was looked at"),\n'
    archive.changed(later, "plugins/module_utils/_datapath/reasons.py", last, last + more)
    parsed = "\tif (parse(skb, &packet, 0, 0))\n"
    archive.changed(later, f"{SOURCES}/overlay.c", parsed, f"\tcount(direction, REASON_looked, 0);\n{parsed}")
    archive.generated(later)
    before = story.status()
    done = play.playbook("site.yml", variables=VARIABLES, root=later).succeeded()
    for result in done.of("Compare with what the node is, and begin a generation if it differs"):
        assert (result.changed, result.result["replaced"]) == (True, [])
    after = story.status(later)
    assert at(3, after)
    for was, now in zip(before, after, strict=True):
        assert now["counters"]["uplink.looked"]["packets"] > 0
        for name, count in was["counters"].items():
            assert now["counters"][name]["packets"] >= count["packets"], "the map began anew"
    play.playbook("rollback.yml", variables=VARIABLES, root=later).succeeded()
    assert story.dump() == story.first
    assert at(1, story.status(later))
