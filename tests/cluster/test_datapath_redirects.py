# SPDX-License-Identifier: GPL-3.0-or-later
"""Rule 9: the two ways to redirect towards a workload. The workload cannot tell them apart; its interface can."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from fleet import play
from fleet.datapath import TALK_PORT, Cluster, bypassed, detach
from fleet.deployed import roll_out
from fleet.frames import caught
from fleet.traffic import Conversations, Report
from lab.api import Workload
from lab.paths import PREFIX

pytest_plugins = ["fleet.deployed"]

BOTH = pytest.mark.parametrize("family", [4, 6])
PINS = "/sys/fs/bpf/ebpf-overlay"
PROGRAMS = ["from_uplink", "to_uplink", "from_workload", "to_workload"]
WAYS = {"neigh": 1, "peer": 2}


@dataclass
class Outcome:
    """A connection that talked for some seconds. ``crossed``: packets that the host side of the veth sent."""

    report: Report
    counted: dict[str, int]
    crossed: int
    arrived: set[tuple[int, str]]  # packet type, destination MAC


def build(cluster: Cluster, way: str) -> None:
    """Load the datapath of ovl-n2 with another way to redirect, in place of the one that is attached."""
    source = str(play.ROOT / "roles/node/files/bpf/overlay.c")
    built = play.module(
        f"{PREFIX}n2",
        "ebpf.overlay.bpf_object",
        {"src": source, "pin_dir": PINS, "programs": PROGRAMS, "defines": {"OVERLAY_REDIRECT": WAYS[way]}},
    )
    assert built.outcome == "ok", built.result
    attached = play.module(
        f"{PREFIX}n2",
        "ebpf.overlay.tc_bpf_attach",
        {
            "attachments": [
                {"interface": interface, "direction": direction, "program": f"{PINS}/{program}"}
                for interface, directions in ((cluster.nodes[2].uplink, PROGRAMS[:2]), ("cali*", PROGRAMS[2:]))
                for direction, program in zip(("ingress", "egress"), directions)
            ],
            "priority": 60000,
            "purge": True,
        },
    )
    assert attached.outcome == "ok", attached.result
    cluster.fresh()


@pytest.fixture(scope="module", autouse=True)
def restored(deployed: Cluster) -> Iterator[None]:
    """The lab is shared: those who come next find what was rolled out."""
    yield
    roll_out()
    deployed.fresh()


@pytest.fixture
def target(cluster: Cluster) -> Iterator[Workload]:
    yield cluster.lab.workload(2, 1)
    cluster.fresh()


def talk(cluster: Cluster, target: Workload, family: int) -> Outcome:
    before = sent(cluster, target)
    with (
        cluster.nothing_invalid(),
        cluster.datapaths[2].counted() as grown,
        caught(target, "eth0") as seen,
        Conversations(pause=0.01) as live,
    ):
        live.open(cluster.nodes[1], target, TALK_PORT, family=family)
        time.sleep(2.5)
        report = live.report()
    arrived = {(found.kind, found.destination_mac) for found in seen if found.destination_port == TALK_PORT}
    return Outcome(report, grown, sent(cluster, target) - before, arrived)


def sent(cluster: Cluster, target: Workload) -> int:
    return cluster.nodes[2].interface_counters(target.host_interface)["tx_packets"]


@BOTH
def test_by_way_of_the_interface_in_the_frame_that_the_kernel_gave(
    cluster: Cluster, target: Workload, family: int
) -> None:
    build(cluster, "neigh")
    outcome = talk(cluster, target, family)
    outcome.report.unharmed()
    assert outcome.counted["uplink.to_workload"] > 50
    assert outcome.counted["workload.to_uplink"] > 50
    assert outcome.crossed > outcome.counted["uplink.to_workload"]
    assert outcome.arrived == {(socket.PACKET_HOST, target.mac)}


@BOTH
def test_straight_into_the_workload_in_the_same_frame(cluster: Cluster, target: Workload, family: int) -> None:
    build(cluster, "peer")
    outcome = talk(cluster, target, family)
    outcome.report.unharmed()
    assert outcome.counted["uplink.to_workload"] > 50
    assert outcome.counted["workload.to_uplink"] > 50
    # Handshake and heartbeats, and what is fast in the same tick.
    assert 0 < outcome.crossed < outcome.counted["uplink.to_workload"] / 2
    assert outcome.arrived == {(socket.PACKET_HOST, target.mac)}


@pytest.mark.parametrize("direction", ["ingress", "egress"])
@pytest.mark.parametrize("way", WAYS)
def test_one_way_only_leaves_the_connection_to_the_kernel(
    cluster: Cluster, target: Workload, way: str, direction: str
) -> None:
    """The original's way failed like this: conntrack never saw the request. Here nothing is admitted."""
    build(cluster, way)
    detach(cluster.nodes[2], target.host_interface, direction)
    outcome = talk(cluster, target, 4)
    outcome.report.unharmed()
    assert bypassed(outcome.counted) == 0
    assert "uplink.admitted" not in outcome.counted
    assert outcome.arrived == {(socket.PACKET_HOST, target.mac)}
