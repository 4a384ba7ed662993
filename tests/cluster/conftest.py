# SPDX-License-Identifier: GPL-3.0-or-later
"""One lab for each file of tests, and the playbooks run on it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet.datapath import full
from lab.api import Lab

# Seconds, and attempts, until a node that is down or cut off counts as unreachable: fewer than for a user, since tests
# wait for it.
os.environ["ANSIBLE_TIMEOUT"] = str(full(10, 5))
os.environ["ANSIBLE_SSH_RETRIES"] = "0"
LAB = Path(__file__).resolve().parent.parent / "lab" / "lab"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever shares the lab that is rolled out once comes first, in one go: every other file builds a lab anew."""
    here = [index for index, item in enumerate(items) if item.path.parent == Path(__file__).parent]
    ordered = sorted((items[index] for index in here), key=lambda item: "deployed" not in item.fixturenames)  # type: ignore[attr-defined]
    for index, item in zip(here, ordered, strict=True):
        items[index] = item


def bring_up(base: str, nodes: int = 3, workloads: int = 2, *options: str) -> Lab:
    command = [LAB, "up", "--nodes", str(nodes), "--workloads", str(workloads), "--base", base, *options]
    subprocess.run(list(map(str, command)), check=True)
    return Lab.load()


def take_down() -> None:
    subprocess.run([str(LAB), "down"], check=True)


@pytest.fixture(scope="module")
def fresh_lab() -> Iterator[Lab]:
    """Three nodes on which nothing is installed."""
    yield bring_up("fresh")
    take_down()


@pytest.fixture(scope="module")
def ready_lab() -> Iterator[Lab]:
    """Nodes that have the packages already: three, 20 in a soak."""
    yield bring_up("ready", nodes=full(20, 3))
    take_down()
