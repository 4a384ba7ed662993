# SPDX-License-Identifier: GPL-3.0-or-later
"""The tasks of the role and the calls of a generation are the same steps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.ebpf.overlay.plugins.module_utils._generations.calls import KINDS
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.steps import STEPS, Wanted, calls

TASKS = Path(__file__).resolve().parents[2] / "roles" / "node" / "tasks" / "steps.yml"
MAPS = ("ifindex_map", "services", "peers", "devices")
WANTED = Wanted(
    {name: [{"key": 1, "value": 1}] for name in MAPS}, [], "/pins", ["bcc"], lambda: "bundle", {}, "auto", 1, True
)


def tasks() -> list[tuple[str, dict[str, Any]]]:
    """Each task that makes a call of a generation, with the name of the call."""
    found = []
    for task in (task for block in yaml.safe_load(TASKS.read_text()) for task in block.get("block", ())):
        asked = re.search(
            r"generation_step\((?:'(\w+)'|\w+), \*\*node_wanted\)", task.get("vars", {}).get("node_step", "")
        )
        if asked:
            found += [(name, task) for name in ([asked[1]] if asked[1] else task["loop"])]
    return found


def test_every_step_has_its_task_in_the_same_order() -> None:
    named = [name for name, step in STEPS.items() if step(WANTED)["arguments"]]
    assert [name for name, _task in tasks()] == named


@pytest.mark.parametrize(("name", "task"), tasks(), ids=[name for name, _task in tasks()])
def test_task_takes_every_argument_from_its_call(name: str, task: dict[str, Any]) -> None:
    call = STEPS[name](WANTED)
    given = task[f"ebpf.overlay.{call['module']}"]
    for argument in call["arguments"]:
        assert given.get(argument) == f"{{{{ node_step.{argument} }}}}"


def test_steps_without_arguments_have_a_task_too() -> None:
    text = TASKS.read_text()
    for call in calls(WANTED):
        assert f"ebpf.overlay.{call['module']}:" in text


def test_way_back_knows_every_call() -> None:
    for call in calls(WANTED):
        assert set(call["arguments"]) <= set(KINDS[call["module"]].spec)
