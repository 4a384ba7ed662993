# SPDX-License-Identifier: GPL-3.0-or-later
"""Rule 9: the original's experiments with the overlay's own ways to redirect, each with its reason."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from fleet import play
from fleet.datapath import Cluster, detach
from fleet.frames import Seen, caught
from lab.api import Workload

pytest_plugins = ["fleet.deployed"]

PINS = "/sys/fs/bpf/ebpf-overlay"
WAYS = {"plain": 0, "neigh": 1, "peer": 2}


@dataclass
class Outcome:
    """One attempt to get an answer within less than the first retransmission."""

    answered: bool
    invalid: int
    counted: dict[str, int] = field(repr=False)
    arrived: list[Seen] = field(repr=False)


def build(cluster: Cluster, way: str) -> None:
    """Load the datapath of ovl-n2 with another way to redirect, in place of the one that is attached."""
    source = str(play.ROOT / "roles/node/files/bpf/overlay.c")
    built = play.module(
        "ovl-n2",
        "ebpf.overlay.bpf_object",
        {
            "src": source, "pin_dir": PINS, "programs": ["from_uplink", "from_workload"],
            "defines": {"OVERLAY_REDIRECT": WAYS[way], "OVERLAY_CHECK_MTU": 1},
        },
    )  # fmt: skip
    assert built.outcome == "ok", built.result
    attached = play.module(
        "ovl-n2",
        "ebpf.overlay.tc_bpf_attach",
        {
            "attachments": [
                {"interface": cluster.nodes[2].uplink, "direction": "ingress", "program": f"{PINS}/from_uplink"},
                {"interface": "cali*", "direction": "ingress", "program": f"{PINS}/from_workload"},
            ],
            "purge": True,
        },
    )
    assert attached.outcome == "ok", attached.result
    cluster.fresh()


@pytest.fixture
def target(cluster: Cluster) -> Iterator[Workload]:
    yield cluster.lab.workload(2, 1)
    cluster.fresh()


def ask(cluster: Cluster, target: Workload) -> Outcome:
    client = cluster.nodes[1]
    before = cluster.invalid()
    with cluster.datapaths[2].counted() as grown, caught(target, "eth0") as seen:
        try:
            client.http_get(target.ipv4, timeout=0.7)
            answered = True
        except OSError:
            answered = False
        time.sleep(0.05)
    return Outcome(
        answered, cluster.invalid() - before, grown, [found for found in seen if found.destination_port == 8080]
    )


def test_1_plain_fails_since_the_workload_sees_frames_for_somebody_else(cluster: Cluster, target: Workload) -> None:
    build(cluster, "plain")
    outcome = ask(cluster, target)
    assert not outcome.answered
    assert outcome.counted["uplink.to_workload"] >= 1
    assert {(seen.kind, seen.destination_mac) for seen in outcome.arrived} == {
        (socket.PACKET_OTHERHOST, cluster.nodes[2].plan.mac)
    }


def test_1_plain_heals_itself_with_the_first_retransmission(cluster: Cluster, target: Workload) -> None:
    assert cluster.nodes[1].http_get(target.ipv4, timeout=2.5)
    assert cluster.nodes[1].http_get(target.ipv4, timeout=0.5)


def test_2_neigh_one_way_fails_since_conntrack_never_saw_the_request(cluster: Cluster, target: Workload) -> None:
    build(cluster, "neigh")
    node = cluster.nodes[2]
    detach(node, target.host_interface)
    outcome = ask(cluster, target)
    assert not outcome.answered
    assert outcome.invalid >= 1
    assert {(seen.kind, seen.destination_mac) for seen in outcome.arrived} == {(socket.PACKET_HOST, target.mac)}


def test_3_neigh_both_ways_works(cluster: Cluster, target: Workload) -> None:
    build(cluster, "neigh")
    outcome = ask(cluster, target)
    assert outcome.answered
    assert outcome.invalid == 0
    assert outcome.counted["workload.to_uplink"] >= 3
    assert {(seen.kind, seen.destination_mac) for seen in outcome.arrived} == {(socket.PACKET_HOST, target.mac)}


def test_4_peer_inwards_and_neigh_outwards_works(cluster: Cluster, target: Workload) -> None:
    build(cluster, "peer")
    outcome = ask(cluster, target)
    assert outcome.answered
    assert outcome.invalid == 0
    assert outcome.counted["workload.to_uplink"] >= 3
    # No neighbour was asked and no address rewritten: the NIC had marked the packet as ours already.
    assert {(seen.kind, seen.destination_mac) for seen in outcome.arrived} == {
        (socket.PACKET_HOST, cluster.nodes[2].plan.mac)
    }
