# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules 2 to 4: flows never change sides, changing the mode cuts nobody, an unconfirmed lease ends by itself."""

from __future__ import annotations

import itertools
import time

import pytest
from fleet import play
from fleet.datapath import TALK_PORT, Cluster, bypassed, full
from fleet.traffic import Conversations, Report
from lab.api import Endpoint

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
    cluster.mode("off", force=True)
    open_some(live, cluster, CONVERSATIONS // 3)
    cluster.mode("on")
    open_some(live, cluster, CONVERSATIONS - CONVERSATIONS // 3)


def toggle(cluster: Cluster, *modes: str) -> None:
    for mode in modes:
        cluster.mode(mode)
        time.sleep(0.05)


def test_draining_and_switching_on_again_harms_no_connection(cluster: Cluster) -> None:
    with Conversations() as live, cluster.nothing_invalid():
        old_and_new(live, cluster)
        with cluster.datapaths[2].counted() as grown:
            for _ in range(full(100, 15)):
                toggle(cluster, "drain", "on")
        live.wake()
        time.sleep(0.5)
        report = live.report()
        print(report)
        report.unharmed()
        assert bypassed(grown) > 100
        assert grown["uplink.unknown_flow"] > 0  # the old ones stay where they began


def test_handing_over_and_switching_off_and_on_harms_no_connection(cluster: Cluster) -> None:
    handed_over = 0
    with Conversations() as live, cluster.nothing_invalid():
        old_and_new(live, cluster)
        for cycle in range(full(20, 4)):
            cluster.mode("drain")
            told = cluster.mode("off")
            handed_over += sum(result["handed_over"] for result in told)
            assert sum(result["cut_loose"] for result in told) == 0
            time.sleep(0.2)
            cluster.mode("on")
            open_some(live, cluster, full(20, 6))
            time.sleep(0.1)
            if cycle == 1:
                live.wake()
        time.sleep(0.3)
        report = live.report()
        print(report, handed_over)
        report.unharmed()
        assert handed_over >= CONVERSATIONS // 2


def fate(cluster: Cluster, end: str) -> Report:
    """What becomes of known flows when nobody hands them over. Nothing is demanded of the result: it is documented."""
    with Conversations() as live:
        open_some(live, cluster, CONVERSATIONS)
        live.wake()
        time.sleep(0.3)
        live.report().unharmed()
        if end == "forced":
            told = cluster.mode("off", force=True)
            assert sum(result["cut_loose"] for result in told) >= CONVERSATIONS // 2
        else:
            cluster.mode("on", lease=0.5)
            time.sleep(0.5)
        time.sleep(1.5)
        return live.report()


@pytest.mark.parametrize("end", ["forced", "expired"])
def test_flows_that_are_cut_loose_are_counted(cluster: Cluster, end: str) -> None:
    report = fate(cluster, end)
    print(f"{end}: {report.survivors} of {report.conversations} survive; {report}")
    assert report.conversations == CONVERSATIONS


def test_a_lease_that_nobody_confirms_ends_by_itself_calico_6739(cluster: Cluster) -> None:
    """No process of ours is on the node, nobody touches the map entry again: a program does not outlast its agent."""
    lab, datapath = cluster.lab, cluster.datapaths[2]
    address = lab.workload(2, 1).ipv4
    with Conversations(pause=0.02) as live:
        live.open(lab.nodes[1], lab.workload(2, 1), TALK_PORT)
        began = time.monotonic()
        datapath.mode("on", lease=2)
        entry = datapath.control
        with datapath.counted() as grown:
            assert lab.nodes[1].http_get(address)
            time.sleep(0.5)
        assert bypassed(grown) > 10
        assert "uplink.lease_expired" not in grown
        time.sleep(max(began + 2.2 - time.monotonic(), 0))
        with datapath.counted() as grown:
            assert lab.nodes[1].http_get(address)
            time.sleep(0.3)
        assert bypassed(grown) == 0
        assert grown["uplink.lease_expired"] >= 4
        assert datapath.control == entry


def test_a_lease_holds_until_its_end(cluster: Cluster) -> None:
    datapath = cluster.datapaths[2]
    datapath.mode("on", lease=1.5)
    time.sleep(1.0)
    with datapath.counted() as grown:
        cluster.nodes[1].http_get(cluster.lab.workload(2, 1).ipv4)
    assert bypassed(grown) >= 8


def test_confirming_in_time_leaves_no_trace_of_the_deadline(cluster: Cluster) -> None:
    datapath = cluster.datapaths[2]
    before = datapath.control
    with Conversations(pause=0.02) as live:
        live.open(cluster.nodes[1], cluster.lab.workload(2, 1), TALK_PORT)
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
        datapath.mode("drain")
        with datapath.counted() as grown:
            time.sleep(0.3)
        assert bypassed(grown) > 5
        with datapath.counted() as grown:
            cluster.nodes[1].http_get(cluster.lab.workload(2, 1).ipv4)
        assert grown["uplink.draining"] == 1
        live.report().unharmed()


def test_the_module_does_it_all_over_ssh(cluster: Cluster) -> None:
    """Check, diff, idempotence, lease, confirmation, draining, handing over, and what it says about each."""
    datapath = cluster.datapaths[2]

    def module(mode: str, *options: str, **arguments: object) -> play.Result:
        return play.module("ovl-n2", "ebpf.overlay.overlay_mode", {"mode": mode, **arguments}, *options)

    before = datapath.control
    predicted = module("off", "--check", "--diff", drain_timeout=0)
    assert predicted.changed
    assert predicted.result["diff"] == {"before": "mode on\n", "after": "mode off\n"}
    assert datapath.control == before
    with Conversations(pause=0.02) as live, cluster.nothing_invalid():
        for family in (4, 6):
            live.open(cluster.nodes[1], cluster.lab.workload(2, 1), TALK_PORT, family=family)
            live.open(cluster.lab.workload(2, 1), cluster.lab.workload(1, 1), TALK_PORT, family=family)
        done = module("off", drain_timeout=0.3)
        assert (done.changed, done.result["mode"]) == (True, "off")
        assert [done.result[name] for name in ("flows", "finished", "handed_over", "cut_loose")] == [4, 0, 4, 0]
        time.sleep(0.3)
        live.report().unharmed()
        assert not module("off").changed
        leased = module("on", lease=60, generation=7)
        assert (leased.changed, leased.result["session"]) == (True, before.session + 1)
        assert datapath.control.generation == 7
        assert module("confirm").changed
        assert not module("confirm").changed
        time.sleep(0.3)
        live.report().unharmed()
    assert module("drain", drain_timeout=1).changed
    refused = module("confirm")
    assert refused.outcome == "failed"
    assert "There is nothing to confirm" in refused.result["msg"]
