# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose an attempt is, and a node that somebody has switched off: what the module does, step by step, on one node.

The tests of this file build on one another, in this order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from fleet import play
from fleet.datapath import AT_ONCE, Datapath
from fleet.generation import history, pending
from lab.api import Lab, Node, wait_until
from lab.paths import PREFIX

from .conftest import bring_up, take_down

GRACE = 60
MODULE = "ebpf.overlay.overlay_generation"


@dataclass
class Story:
    lab: Lab
    attempts: dict[str, str] = field(default_factory=dict)

    @property
    def node(self) -> Node:
        return self.lab.nodes[1]

    def call(self, state: str, *options: str, **arguments: Any) -> play.Result:
        return play.module(f"{PREFIX}n1", MODULE, {"state": state, **arguments}, *options)

    def begin(self, name: str, **arguments: Any) -> dict[str, Any]:
        """An attempt that makes no difference to the node but its digest."""
        calls = [{"module": "bpffs", "arguments": {}}, {"module": "overlay_packages", "arguments": {"packages": []}}]
        told = self.call("begun", calls=calls[: len(name)], **arguments)
        assert told.outcome == "ok", told
        self.attempts[name] = told.result["attempt"]
        return dict(told.result)

    def mode(self, mode: str, **arguments: Any) -> None:
        told = play.module(f"{PREFIX}n1", "ebpf.overlay.overlay_mode", {"mode": mode, **arguments})
        assert told.outcome == "ok", told

    def info(self) -> dict[str, Any]:
        told = play.module(f"{PREFIX}n1", "ebpf.overlay.overlay_generation_info", {"compare": False})
        assert told.outcome == "ok", told
        return dict(told.result)

    @property
    def effective(self) -> str:
        return str(Datapath(self.node).control.mode)


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    lab = bring_up("ready", nodes=1, workloads=1)
    play.playbook("site.yml", variables=AT_ONCE).succeeded()
    yield Story(lab)
    take_down()


def test_run_whose_attempt_was_taken_over_neither_confirms_nor_undoes(story: Story) -> None:
    first = story.begin("a")
    second = story.begin("ab")
    assert (first["number"], second["number"], second["former"]) == (2, 2, 1)
    assert story.info()["attempt"] == second["attempt"]
    refused = story.call("confirmed", number=2, attempt=first["attempt"])
    assert "another run began a new one" in refused.result["msg"]
    undone = story.call("restored", to="former", number=1, attempt=first["attempt"])
    assert (undone.changed, undone.result["number"]) == (False, 1)
    assert f"another run's attempt {second['attempt']} (generation 2) waits" in undone.result["foreign"]
    story.mode("on", lease=60, generation=2)
    assert story.call("confirmed", number=2, attempt=second["attempt"]).changed
    undone = story.call("restored", to="former", number=1, attempt=first["attempt"])
    assert (undone.changed, undone.result["number"]) == (False, 2)
    assert f"another run's attempt {second['attempt']} (generation 2) was confirmed" in undone.result["foreign"]
    assert history(story.node)["number"] == 2
    assert not pending(story.node)


def test_run_that_began_nothing_has_nothing_to_undo(story: Story) -> None:
    story.mode("off")
    undone = story.call("restored", to="former", attempt="")
    assert (undone.changed, undone.result["foreign"]) == (False, "this run began nothing here")
    assert story.effective == "off"


def test_run_takes_back_its_own_confirmed_attempt(story: Story) -> None:
    undone = story.call("restored", to="former", number=1, attempt=story.attempts["ab"])
    assert (undone.changed, undone.result["number"], undone.result["foreign"]) == (True, 1, "")
    assert (history(story.node)["number"], story.effective) == (1, "on")


def test_attempt_is_not_ended_by_the_lease_of_the_one_before_it(story: Story) -> None:
    """Both have number 2, which is all that the datapath knows of them."""
    story.begin("a")
    story.mode("on", lease=4, generation=2)
    second = story.begin("ab")
    time.sleep(8)
    assert story.info()["attempt"] == second["attempt"]
    story.mode("on", lease=30, generation=2)
    assert story.call("confirmed", number=2, attempt=second["attempt"]).changed
    assert (history(story.node)["number"], story.effective) == (2, "on")


def test_attempt_is_ended_by_its_own_lease(story: Story) -> None:
    story.begin("a")
    story.mode("on", lease=1, generation=3)
    wait_until(lambda: not pending(story.node), GRACE, "the node is back")
    assert (history(story.node)["number"], story.effective) == (2, "on")


def test_node_that_is_switched_off_stays_off_whatever_is_rolled_out(story: Story) -> None:
    story.mode("off")
    assert story.call("switched_off", "--check").changed
    assert not story.info()["switched_off"]
    assert story.call("switched_off").changed
    assert not story.call("switched_off").changed
    told = story.begin("a")
    assert told["switched_off"]
    assert not told["was_on"]
    assert story.call("confirmed", number=told["number"], attempt=told["attempt"]).changed
    assert (history(story.node)["number"], story.effective) == (3, "off")
    back = story.call("restored", to="previous")
    assert (back.changed, back.result["number"], back.result["switched_off"]) == (True, 2, True)
    assert story.effective == "off"
    told = story.begin("ab")  # what it is already
    assert (told["attempt"], told["switched_off"]) == ("", True)
    # Switched on by hand, or by a run that did not know: a confirmation does not leave it so.
    told = story.begin("a")
    story.mode("on", lease=60, generation=told["number"])
    assert story.call("confirmed", number=told["number"], attempt=told["attempt"]).changed
    assert story.effective == "off"
    assert story.info()["switched_off"]


def test_attempt_that_enables_and_fails_leaves_the_node_off(story: Story) -> None:
    told = story.begin("ab", enable=True)
    assert not told["switched_off"]
    story.mode("on", lease=60, generation=told["number"])
    undone = story.call("restored", to="former", attempt=told["attempt"])
    assert undone.changed
    assert undone.result["switched_off"]
    assert story.effective == "off"


def test_attempt_that_enables_and_is_confirmed_ends_it(story: Story) -> None:
    told = story.begin("a", enable=True)  # what it is already, but for the mode
    assert told["attempt"]
    story.mode("on", lease=60, generation=told["number"])
    assert story.call("confirmed", number=told["number"], attempt=told["attempt"]).changed
    assert not story.info()["switched_off"]
    assert story.effective == "on"
    assert story.begin("a")["attempt"] == ""


def test_way_back_can_enable_and_the_record_goes_with_the_overlay(story: Story) -> None:
    story.mode("off")
    assert story.call("switched_off").changed
    assert story.call("restored", to="2", enable=True).changed
    assert (story.effective, story.info()["switched_off"]) == ("on", False)
    assert story.call("switched_off").changed
    assert story.call("restored", to="0").changed
    assert (story.info()["mode"], story.info()["switched_off"]) == ("absent", False)
    assert not story.call("switched_off").changed
    assert story.node.run(["ls", "/var/lib"], check=False).stdout.split().count("ebpf-overlay") == 0
