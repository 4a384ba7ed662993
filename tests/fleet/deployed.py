# SPDX-License-Identifier: GPL-3.0-or-later
"""One lab with the overlay rolled out, shared by every file that tests the datapath with real traffic.

A file asks for it with ``pytest_plugins = ["fleet.deployed"]`` and the fixture ``cluster``.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest
from lab.api import Lab

from . import play
from .datapath import TALK_PORT, Cluster

LAB = play.ROOT / "tests" / "lab" / "lab"
VARIABLES = {
    "overlay_services": [{"protocol": "tcp", "port": 8080}, {"protocol": "tcp", "port": TALK_PORT}],
    "overlay_batches": ["100%"],
}


def roll_out() -> None:
    """Make the nodes what they should be; what is right already stays."""
    play.playbook("site.yml", variables=VARIABLES).succeeded()


@pytest.fixture(scope="session")
def deployed() -> Iterator[Cluster]:
    """Two nodes with two workloads each, and the overlay on.

    With OVERLAY_STANDING=1 it is the lab that is up, which stays: for whoever writes such tests.
    """
    if os.environ.get("OVERLAY_STANDING"):
        yield Cluster(Lab.load())
        return
    subprocess.run([str(LAB), "up", "--nodes", "2", "--workloads", "2", "--base", "ready"], check=True)
    roll_out()
    yield Cluster(Lab.load())
    subprocess.run([str(LAB), "down"], check=True)


@pytest.fixture
def cluster(deployed: Cluster) -> Iterator[Cluster]:
    """Every test begins with mode on and no flows."""
    deployed.fresh()
    yield deployed
    if any(node.pid is None for node in deployed.nodes.values()):
        return
    for datapath in deployed.datapaths.values():
        if datapath.control is not None:
            datapath.mode("off", force=True)
