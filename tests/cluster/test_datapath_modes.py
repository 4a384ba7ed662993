# SPDX-License-Identifier: GPL-3.0-or-later
"""The central promise: any packet may take the kernel's path at any moment, and no connection is harmed by it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest
from fleet import play
from fleet.datapath import TALK_PORT, Cluster, bypassed, detach, full
from fleet.deployed import roll_out
from fleet.traffic import Conversations
from lab.api import Endpoint
from lab.paths import PREFIX

pytest_plugins = ["fleet.deployed"]

CONVERSATIONS = full(200, 30)


def pairs(cluster: Cluster) -> list[tuple[Endpoint, Endpoint]]:
    """Client and server: a node and a workload, and workloads of two nodes, in either direction."""
    lab = cluster.lab
    return [
        (lab.nodes[1], lab.workload(2, 1)),
        (lab.workload(1, 1), lab.workload(2, 1)),
        (lab.workload(2, 2), lab.workload(1, 2)),
        (lab.nodes[2], lab.workload(1, 1)),
    ]


def open_some(live: Conversations, cluster: Cluster, count: int) -> None:
    """Half of them IPv6, every fifth idle, and one of each dozen an HTTP connection through the NodePort."""
    chosen = itertools.cycle(pairs(cluster))
    for number in range(count):
        client, server = next(chosen)
        family = 6 if number // 4 % 2 else 4
        if number % 12 == 11:
            node = cluster.nodes[2]
            live.open(cluster.nodes[1], node, 30080, http=True, family=family)
        else:
            live.open(client, server, TALK_PORT, family=family, idle=number % 5 == 4)


def old_and_new(live: Conversations, cluster: Cluster) -> None:
    """Half of them are older than the overlay. The others are fast, as far as they talk."""
    cluster.mode("off", force=True)
    open_some(live, cluster, CONVERSATIONS // 2)
    cluster.mode("on")
    open_some(live, cluster, CONVERSATIONS - CONVERSATIONS // 2)
    time.sleep(3)  # until the ways are proven


def goes_fast(cluster: Cluster, seconds: float) -> int:
    """How many packets of that time are redirected, on both nodes."""
    with cluster.datapaths[1].counted() as one, cluster.datapaths[2].counted() as two:
        time.sleep(seconds)
    return bypassed(one) + bypassed(two)


def forced(cluster: Cluster) -> None:
    cluster.mode("off", force=True)


def switched_off(cluster: Cluster) -> None:
    cluster.mode("off")


def lease_ends(cluster: Cluster) -> None:
    cluster.mode("on", lease=0.5)
    time.sleep(0.5)


def drained(cluster: Cluster) -> None:
    cluster.mode("drain")


def flows_cleared(cluster: Cluster) -> None:
    for datapath in cluster.datapaths.values():
        datapath.clear("flows")


def detached(cluster: Cluster) -> None:
    for node in cluster.nodes.values():
        interfaces = [node.uplink, *(workload.host_interface for workload in node.plan.workloads)]
        for interface, direction in itertools.product(interfaces, ("ingress", "egress")):
            detach(node, interface, direction)


@pytest.mark.parametrize("end", [forced, switched_off, lease_ends, drained, flows_cleared, detached])
def test_the_shortcut_ends_without_preparation_and_harms_no_connection(
    cluster: Cluster, end: Callable[[Cluster], None]
) -> None:
    """Both families, idle and busy ones, half of them older than the overlay. The idle ones speak after the end."""
    with Conversations() as live, cluster.nothing_invalid():
        old_and_new(live, cluster)
        live.report().unharmed()
        assert goes_fast(cluster, 0.5) > 50
        end(cluster)
        time.sleep(1)  # a processor's memory of a flow that was cleared is good for less than a second
        live.wake()
        fast = goes_fast(cluster, 1.5)
        report = live.report()
        print(f"{end.__name__}: {report}, then {fast} fast packets")
        report.unharmed()
        assert report.conversations == CONVERSATIONS
        assert fast > 50 if end is drained else fast == 0
        # And back again.
        if end is detached:
            roll_out()
        else:
            cluster.mode("on")
        fast = goes_fast(cluster, 1.5)
        live.report().unharmed()
        assert fast == 0 if end is flows_cleared else fast > 50  # without a handshake nothing is admitted


@pytest.mark.parametrize("cycle", [("drain", "on"), ("off", "on"), ("drain", "off", "on")], ids="-".join)
def test_changing_the_mode_again_and_again_harms_no_connection(cluster: Cluster, cycle: tuple[str, ...]) -> None:
    with Conversations() as live, cluster.nothing_invalid():
        old_and_new(live, cluster)
        with cluster.datapaths[2].counted() as grown:
            for number in range(full(100, 12)):
                for mode in cycle:
                    cluster.mode(mode)
                    time.sleep(0.15)
                if number % 4 == 3:
                    open_some(live, cluster, full(20, 4))
                if number == 5:
                    live.wake()
        time.sleep(0.5)
        report = live.report()
        print(report, dict(grown))
        report.unharmed()
        assert bypassed(grown) > 50
        assert grown["uplink.admitted"] > 0  # of the new ones
        assert grown["uplink.unknown_flow"] > 0  # the old ones stay where they began


def test_a_lease_that_nobody_confirms_ends_by_itself_calico_6739(cluster: Cluster) -> None:
    """No process of ours is on the node, nobody touches the map entry again: a program does not outlast its agent."""
    lab, datapath = cluster.lab, cluster.datapaths[2]
    address = lab.workload(2, 1).ipv4
    with Conversations(pause=0.02) as live:
        live.open(lab.nodes[1], lab.workload(2, 1), TALK_PORT)
        time.sleep(1)  # until the way is proven
        began = time.monotonic()
        datapath.mode("on", lease=2)
        entry = datapath.control
        with datapath.counted() as grown:
            assert lab.nodes[1].http_get(address)
            time.sleep(0.5)
        assert bypassed(grown) > 10
        assert "uplink.lease_expired" not in grown
        assert grown["uplink.admitted"] == 1
        time.sleep(max(began + 2.2 - time.monotonic(), 0))
        with datapath.counted() as grown:
            assert lab.nodes[1].http_get(address)
            time.sleep(0.3)
        assert bypassed(grown) == 0
        assert grown["uplink.lease_expired"] >= 4
        assert datapath.control == entry
        live.report().unharmed()


def test_a_lease_holds_until_its_end(cluster: Cluster) -> None:
    datapath = cluster.datapaths[2]
    with Conversations(pause=0.01) as live:
        live.open(cluster.nodes[1], cluster.lab.workload(2, 1), TALK_PORT)
        time.sleep(1)
        datapath.mode("on", lease=1.5)
        time.sleep(0.9)
        with datapath.counted() as grown:
            cluster.nodes[1].http_get(cluster.lab.workload(2, 1).ipv4)
            time.sleep(0.3)
        live.report().unharmed()
    assert bypassed(grown) > 10
    assert grown["uplink.admitted"] == 1


def test_confirming_in_time_leaves_no_trace_of_the_deadline(cluster: Cluster) -> None:
    datapath = cluster.datapaths[2]
    before = datapath.control
    with Conversations(pause=0.02) as live:
        live.open(cluster.nodes[1], cluster.lab.workload(2, 1), TALK_PORT)
        time.sleep(1)
        datapath.mode("on", lease=0.6)
        assert datapath.control.deadline > 0
        datapath.mode("confirm")
        assert datapath.control == before
        time.sleep(0.7)
        with datapath.counted() as grown:
            time.sleep(0.3)
        assert bypassed(grown) > 5
        assert not any(name.endswith("lease_expired") for name in grown)
        live.report().unharmed()


def test_a_draining_node_bypasses_known_flows_only(cluster: Cluster) -> None:
    datapath = cluster.datapaths[2]
    with Conversations(pause=0.02) as live:
        live.open(cluster.nodes[1], cluster.lab.workload(2, 1), TALK_PORT)
        time.sleep(1)
        datapath.mode("drain")
        with datapath.counted() as grown:
            time.sleep(0.3)
        assert bypassed(grown) > 5
        with datapath.counted() as grown:
            cluster.nodes[1].http_get(cluster.lab.workload(2, 1).ipv4)
        assert grown["uplink.draining"] == 1
        live.report().unharmed()


def test_the_module_does_it_all_over_ssh(cluster: Cluster) -> None:
    """Check, diff, idempotence, lease, confirmation, draining, switching off, and what it says about each."""
    datapath = cluster.datapaths[2]

    def module(mode: str, *options: str, **arguments: object) -> play.Result:
        return play.module(f"{PREFIX}n2", "ebpf.overlay.overlay_mode", {"mode": mode, **arguments}, *options)

    before = datapath.control
    predicted = module("off", "--check", "--diff")
    assert predicted.changed
    assert predicted.result["diff"] == {"before": "mode on\n", "after": "mode off\n"}
    assert datapath.control == before
    with Conversations(pause=0.02) as live, cluster.nothing_invalid():
        for family in (4, 6):
            live.open(cluster.nodes[1], cluster.lab.workload(2, 1), TALK_PORT, family=family)
            live.open(cluster.lab.workload(2, 1), cluster.lab.workload(1, 1), TALK_PORT, family=family)
        time.sleep(0.2)
        assert len(datapath.entries("flows")) == 4
        done = module("off")
        assert (done.changed, done.result["mode"]) == (True, "off")
        time.sleep(0.3)
        live.report().unharmed()
        assert not module("off").changed
        leased = module("on", lease=60, generation=7)
        assert (leased.changed, leased.result["epoch"]) == (True, before.epoch + 1)
        assert datapath.control.generation == 7
        assert module("confirm").changed
        assert not module("confirm").changed
        time.sleep(0.3)
        live.report().unharmed()
        assert module("drain").changed
        live.report().unharmed()
    refused = module("confirm")
    assert refused.outcome == "failed"
    assert "There is nothing to confirm" in refused.result["msg"]
