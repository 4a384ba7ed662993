# SPDX-License-Identifier: GPL-3.0-or-later
"""Other people's settings: whatever ansible.cfg says, exit code, report and the nodes' real state agree.

``make test`` tries eight cells of the matrix, a soak all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fleet import play
from fleet.cut import cut_at
from fleet.datapath import SOAK, full
from fleet.generation import history, settled
from lab.api import Lab
from lab.paths import PREFIX

SITE, ROLLBACK = "site.yml", "rollback.yml"
SETTINGS = (
    "ANY_ERRORS_FATAL=True",
    "STRATEGY=free",
    "STRATEGY=host_pinned",
    "FORCE_HANDLERS=True",
    "HASH_BEHAVIOUR=merge",
    "GATHERING=smart",
    "PIPELINING=False",
    "INJECT_FACT_VARS=False",
    "CACHE_PLUGIN=jsonfile",
    "STDOUT_CALLBACK=default",
    "NO_LOG=True",
    "FORKS=1",
)
PORTS = itertools.count(9000)  # never one that the nodes have already
Story = Callable[[Lab, Path], None]


def variables(**more: Any) -> dict[str, Any]:
    """Of a run that has something to do."""
    return {
        "overlay_services": [{"port": 8080}, {"port": next(PORTS)}],
        "overlay_batches": [1, "100%"],
        "overlay_lease": full(120, 90),
        **more,
    }


def agrees(lab: Lab, done: play.Run, code: int, **outcomes: str) -> None:
    """Exit code, report and nodes: what the report says of each node is so, and it is what is wanted."""
    assert (done.code != 0) == (code != 0), done.output
    told = [result for result in done.results if result.task.startswith("Tell w")][-1].result["msg"]
    about_nodes = [line for line in told if not line.startswith("uplink ")]  # before them: how the nodes are wired
    lines = {line.partition(": ")[0]: line.partition(": ")[2] for line in about_nodes}
    assert set(lines) == {node.name for node in lab.nodes.values()}, told
    for line in told:
        assert line[:60] in " ".join(done.output.split()).replace("''", "'"), done.output
    settled(lab, 60)
    for number, node in lab.nodes.items():
        line = lines[node.name]
        assert line.startswith(outcomes.get(f"n{number}", outcomes["n3"])), told  # a soak has more nodes
        if "now: generation " in line:
            assert f"now: generation {history(node)['number']}" in line, told
    failed = {name for name, line in lines.items() if line.startswith(("FAILED", "was rolled out"))}
    assert {result.host for result in done.results if result.task.startswith("Fail for")} >= failed


def succeeds(lab: Lab, _folder: Path) -> None:
    done = play.playbook(SITE, variables=variables())
    agrees(lab, done, 0, **dict.fromkeys(("n1", "n2", "n3"), "rolled out and confirmed"))


def fails_in_batch_2(lab: Lab, folder: Path) -> None:
    before = [history(node)["number"] for node in lab.nodes.values()]
    probe = folder / "probe.yml"
    probe.write_text(f"- name: Fail\n  ansible.builtin.assert: {{that: inventory_hostname != '{PREFIX}n2'}}\n")
    done = play.playbook(SITE, variables=variables(overlay_probe_tasks=str(probe)))
    back = "was rolled out, and taken back"
    agrees(lab, done, 2, n1=back, n2="FAILED at 'Fail'", n3=back)
    assert [history(node)["number"] for node in lab.nodes.values()] == before


def is_cut_off(lab: Lab, _folder: Path) -> None:
    before = [history(node)["number"] for node in lab.nodes.values()]
    with cut_at(lab.nodes[2], "Read the overlay's counters over a new connection", batch=2) as begun:
        # Node by node, so that a slow machine does not refuse a batch that its lease could not outlast.
        done = play.playbook(SITE, variables=variables(overlay_batches=[1, 1, "100%"]), begun=begun)
        print(done.output)  # where the task did not begin, this tells why
    back = "was rolled out, and taken back"
    settled(lab, 300)
    agrees(lab, done, 2, n1=back, n2="FAILED at", n3="not reached by the roll-out, nothing changed")
    assert [history(node)["number"] for node in lab.nodes.values()] == before


def goes_back(lab: Lab, folder: Path) -> None:
    succeeds(lab, folder)
    done = play.playbook(ROLLBACK)
    agrees(lab, done, 0, **dict.fromkeys(("n1", "n2", "n3"), "rolled back from generation"))


STORIES: tuple[Story, ...] = (succeeds, fails_in_batch_2, is_cut_off, goes_back)
QUICK: list[tuple[str, Story]] = [
    ("ANY_ERRORS_FATAL=True", fails_in_batch_2),
    ("STRATEGY=free", fails_in_batch_2),
    ("STRATEGY=host_pinned", succeeds),
    ("HASH_BEHAVIOUR=merge", fails_in_batch_2),
    ("INJECT_FACT_VARS=False", succeeds),
    ("STDOUT_CALLBACK=default", goes_back),
    ("NO_LOG=True", fails_in_batch_2),
    ("FORKS=1", is_cut_off),
]
CELLS = list(itertools.product(SETTINGS, STORIES)) if SOAK else QUICK


@pytest.fixture(scope="module")
def lab(ready_lab: Lab) -> Lab:
    return ready_lab


@pytest.mark.parametrize(("setting", "story"), CELLS, ids=[f"{setting}-{story.__name__}" for setting, story in CELLS])
def test_setting_of_somebody_else_changes_nothing(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, story: Story
) -> None:
    name, __, value = setting.partition("=")
    monkeypatch.setenv(f"ANSIBLE_{name}", value)
    monkeypatch.setenv("ANSIBLE_CACHE_PLUGIN_CONNECTION", str(tmp_path / "cache"))
    story(lab, tmp_path)
