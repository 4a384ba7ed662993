# SPDX-License-Identifier: GPL-3.0-or-later
"""A way that is broken although the kernel's is not costs one flow one repeat; frames reach a guest behind a bridge."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest
from fleet.datapath import TALK_PORT, Cluster, bypassed, full, until_fast
from fleet.ends import connected, transfer
from fleet.rules import ruled
from fleet.traffic import Conversations
from lab.api import Endpoint, Node, Workload
from lab.cluster import WORKLOAD_GATEWAY_IPV4, WORKLOAD_GATEWAY_IPV6
from lab.network import destroy_namespace
from lab.paths import PREFIX

pytest_plugins = ["fleet.deployed"]

BOTH = pytest.mark.parametrize("family", [4, 6])
STAMP = 4242  # what identifies datagrams and labels flows: the overlay neither copies nor compares it


@contextlib.contextmanager
def broken(sender: Node, interface: str, receiver: Endpoint, end: str) -> Iterator[None]:
    """What leaves by the interface without passing its netdev chain, as redirected packets do, is lost behind it."""
    port = f"tcp {end} {TALK_PORT}"
    stamp = f"""table netdev stamp {{
        chain leaving {{
            type filter hook egress device "{interface}" priority 0;
            {port} ip id set {STAMP}
            {port} ip6 flowlabel set {STAMP}
        }}
    }}"""
    check = f"""chain arriving {{
        type filter hook prerouting priority -500;
        {port} ip id != {STAMP} drop
        {port} ip6 flowlabel != {STAMP} drop
    }}"""
    sender.host_run(["nft", "-f", "-"], stdin=stamp)
    try:
        with ruled(receiver, check):
            yield
    finally:
        sender.host_run(["nft", "delete", "table", "netdev", "stamp"])


@BOTH
@pytest.mark.parametrize("size", [100, 14_000, 64_000])
@pytest.mark.parametrize("towards", ["workload", "client"])
def test_first_flights_over_a_broken_way_arrive_within_a_second(
    cluster: Cluster, towards: str, size: int, family: int
) -> None:
    lab = cluster.lab
    client, server, node = lab.nodes[1], lab.workload(2, 1), lab.nodes[2]
    inwards = towards == "workload"
    wrong = (node, server.host_interface, server, "dport") if inwards else (node, node.uplink, client, "sport")
    with broken(*wrong), cluster.datapaths[2].counted() as grown:
        for number in range(5):
            with connected(client, server, family) as ends:
                sender, receiver = ends if inwards else ends[::-1]
                spent = transfer(sender, receiver, size) + transfer(receiver, sender, 1000)
                spent += transfer(sender, receiver, size)
                assert spent < (0.2 if number else 1), number
    assert sum(grown.get(f"{direction}.way_broken", 0) for direction in ("uplink", "workload")) == 1
    assert bypassed(grown) <= (64_000 // 1000) + 2, "one flow's first flight, nothing of the others"


# ---------------------------------------------------------------------------------------------------- guests


@contextlib.contextmanager
def guest(node: Node, workload: Workload) -> Iterator[Endpoint]:
    """The workload hands its address on to a guest with a MAC of its own behind a bridge, as KubeVirt does."""
    name = f"{PREFIX}n{node.plan.number}-w99"
    inside = Endpoint(name, workload.ipv4, workload.ipv6)
    addresses = f"""ip address add {workload.ipv4}/32 dev eth0
        ip address add {workload.ipv6}/128 dev eth0 nodad
        ip route replace {WORKLOAD_GATEWAY_IPV4} dev eth0 scope link
        ip route replace default via {WORKLOAD_GATEWAY_IPV4} dev eth0
        ip -6 route replace default via {WORKLOAD_GATEWAY_IPV6} dev eth0"""
    forget = ["ip", "neighbour", "flush", "dev", workload.host_interface]
    try:
        node.host_run(["ip", "netns", "add", name])
        workload.host_run(
            [
                "sh",
                "-ec",
                f"""ip address flush dev eth0 scope global
                ip link add br0 type bridge mcast_snooping 0
                ip link set br0 up
                ip link set eth0 master br0
                ip link add tap0 type veth peer name eth0 netns {name}
                ip link set tap0 master br0 up""",
            ]
        )
        inside.host_run(["sh", "-ec", f"ip link set lo up; ip link set eth0 up\n{addresses}"])
        node.host_run(forget)
        yield inside
    finally:
        destroy_namespace(name)
        workload.host_run(["sh", "-ec", f"ip link delete br0 || true; ip link delete tap0 || true\n{addresses}"])
        node.host_run(forget)


@BOTH
def test_a_guest_behind_a_bridge_misses_nothing(cluster: Cluster, family: int) -> None:
    lab = cluster.lab
    far, server = lab.workload(1, 1), lab.workload(2, 1)
    with guest(lab.nodes[2], server) as inside, cluster.nothing_invalid(), Conversations(pause=0.02) as live:
        for number in range(full(50, 25)):
            live.open(far, inside, TALK_PORT, family=family)
            live.open(inside, far, TALK_PORT, family=family)
            if not number:
                until_fast(cluster.datapaths[2], 20)
        with cluster.datapaths[2].counted() as grown:
            time.sleep(1)
        live.report().unharmed()
    assert grown["uplink.to_workload"] > 500
    assert grown["workload.to_uplink"] > 500
