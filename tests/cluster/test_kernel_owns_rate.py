# SPDX-License-Identifier: GPL-3.0-or-later
"""A limit of bandwidth on an interface of the node holds for flows on the fast path."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from fleet.datapath import TALK_PORT, Cluster, bypassed
from fleet.deployed import roll_out
from fleet.ends import transfer
from fleet.traffic import connection, converse
from lab.api import Node

pytest_plugins = ["fleet.deployed"]

MEGABITS, MEGABYTES = 20, 4
BOTH = pytest.mark.parametrize("family", [4, 6])


@contextlib.contextmanager
def limited(node: Node, interface: str) -> Iterator[None]:
    limit = ["tbf", "rate", f"{MEGABITS}mbit", "burst", "64kb", "latency", "50ms"]
    node.host_run(["tc", "qdisc", "add", "dev", interface, "root", *limit])
    try:
        yield
    finally:
        node.host_run(["tc", "qdisc", "delete", "dev", interface, "root"])


def rate_towards_workload_kept(cluster: Cluster, family: int) -> None:
    """A new flow on the fast path, with the limit there already."""
    lab = cluster.lab
    server = lab.workload(2, 1)
    ends = connection(lab.nodes[1], server, server.ipv4 if family == 4 else server.ipv6, TALK_PORT)
    at_least = MEGABYTES * 8 / MEGABITS * 0.9
    try:
        converse(ends, 0.6)
        with cluster.datapaths[2].counted() as grown:
            taken = transfer(ends[0], ends[1], MEGABYTES * 1_000_000)
    finally:
        for end in ends:
            end.close()
    assert at_least < taken < at_least * 3
    assert bypassed(grown) > 50


@BOTH
def test_a_limit_that_comes_under_an_open_flow_holds_on_the_uplink(cluster: Cluster, family: int) -> None:
    lab = cluster.lab
    client, server, node = lab.nodes[1], lab.workload(2, 1), lab.nodes[2]
    ends = connection(client, server, server.ipv4 if family == 4 else server.ipv6, TALK_PORT)
    at_least = MEGABYTES * 8 / MEGABITS * 0.9
    try:
        converse(ends, 0.6)
        assert transfer(ends[1], ends[0], MEGABYTES * 1_000_000) < at_least / 2
        with limited(node, node.uplink), cluster.datapaths[2].counted() as grown:
            taken = transfer(ends[1], ends[0], MEGABYTES * 1_000_000)
    finally:
        for end in ends:
            end.close()
    assert at_least < taken < at_least * 3
    assert bypassed(grown) > 50


def test_a_limit_on_a_workload_holds_from_the_next_run_on(cluster: Cluster) -> None:
    """Nothing goes straight into the workload then: the queue of its interface is on the way."""
    node = cluster.lab.nodes[2]
    try:
        with limited(node, cluster.lab.workload(2, 1).host_interface):
            roll_out()
            cluster.fresh()
            for family in (4, 6):
                rate_towards_workload_kept(cluster, family)
    finally:
        roll_out()
