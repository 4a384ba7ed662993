# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes on which Ansible runs in a virtual environment, which has none of the distribution's libraries."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import play
from lab.api import Lab

from .conftest import bring_up, take_down

PYTHON = "/opt/venv/bin/python"


@pytest.fixture
def lab() -> Iterator[Lab]:
    yield bring_up("ready", nodes=2)
    take_down()


def test_runs_repeat_and_go_back(lab: Lab, tmp_path: Path) -> None:
    """The second run rehearses the calls of the generation, and finds no difference."""
    for node in lab.nodes.values():
        node.run(["python3", "-m", "venv", "--without-pip", "/opt/venv"])
        node.run(["sh", "-c", f"! {PYTHON} -c 'import pyroute2' && ! {PYTHON} -c 'import bcc'"])
    inventory = tmp_path / "inventory.json"
    variables = {"overlay_nodes": {"vars": {"ansible_python_interpreter": PYTHON}}}
    inventory.write_text(json.dumps(variables))

    def run(name: str) -> play.Run:
        return play.playbook(name, "-i", str(inventory)).succeeded()

    assert run("site.yml").changes
    again = run("site.yml")
    assert again.changes == set()
    assert {task for _host, task in again.visits} == {"Gather the overlay's facts"}
    run("rollback.yml")
    for node in lab.nodes.values():
        assert node.run(["ls", "/sys/fs/bpf"]).stdout.split() == []
