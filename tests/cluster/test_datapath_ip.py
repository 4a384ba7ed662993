# SPDX-License-Identifier: GPL-3.0-or-later
"""Rule 5: from outside it looks like IP forwarding. And the point: nothing else on the node sees the packets."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from fleet.datapath import TALK_PORT, Cluster, bypassed, full
from fleet.frames import caught
from fleet.traffic import connection
from lab.api import Endpoint, Node

pytest_plugins = ["fleet.deployed"]

BOTH = pytest.mark.parametrize("family", [4, 6])
MEGABYTES = full(100, 20)
PACKETS = full(1_000_000, 20_000)


def of(endpoint: Endpoint, family: int) -> str:
    return endpoint.ipv4 if family == 4 else endpoint.ipv6


@contextlib.contextmanager
def connected(client: Endpoint, server: Endpoint, family: int) -> Iterator[list[socket.socket]]:
    """Client's and server's end."""
    ends = connection(client, server, of(server, family), TALK_PORT)
    try:
        yield ends
    finally:
        for end in ends:
            end.close()


def say(speaker: socket.socket, listener: socket.socket, times: int = 1) -> None:
    listener.settimeout(2)
    for _ in range(times):
        speaker.send(b"x")
        assert listener.recv(16) == b"x"


@BOTH
def test_ttl_is_one_less_at_the_receiver_in_both_directions(cluster: Cluster, family: int) -> None:
    lab = cluster.lab
    node, workload = lab.nodes[1], lab.workload(2, 1)
    with (
        cluster.datapaths[2].counted() as grown,
        caught(workload, "eth0") as inside,
        caught(node, node.uplink) as outside,
        connected(node, workload, family) as (client, server),
    ):
        say(client, server, 10)
        say(server, client, 10)
    assert grown["uplink.to_workload"] >= 20
    assert grown["workload.to_uplink"] >= 20
    arrived = [seen for seen in inside if seen.destination_port == TALK_PORT]
    returned = [seen for seen in outside if seen.source_port == TALK_PORT]
    assert len(arrived) >= 20
    assert len(returned) >= 20
    assert {seen.ttl for seen in arrived + returned} == {63}
    assert {(seen.destination, seen.kind) for seen in arrived} == {(of(workload, family), socket.PACKET_HOST)}


def set_ttl(end: socket.socket, family: int, ttl: int) -> None:
    if family == 4:
        end.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
    else:
        end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)


def icmp_listener(endpoint: Endpoint, family: int) -> socket.socket:
    if family == 4:
        return endpoint.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    return endpoint.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)


def time_exceeded(listener: socket.socket, family: int) -> bool:
    """Whether an ICMP "time exceeded" arrives within a second."""
    until = time.monotonic() + 1
    while select.select([listener], [], [], max(until - time.monotonic(), 0))[0]:
        data = listener.recv(2048)
        if (data[20], family) == (11, 4) or (data[0], family) == (3, 6):
            return True
    return False


@BOTH
def test_a_packet_at_the_end_of_its_ttl_is_answered_by_the_node(cluster: Cluster, family: int) -> None:
    lab = cluster.lab
    node, workload = lab.nodes[1], lab.workload(2, 1)
    with connected(node, workload, family) as (client, server), cluster.datapaths[2].counted() as grown:
        for end, place in ((client, node), (server, workload)):
            say(client, server)
            say(server, client)
            with icmp_listener(place, family) as listener:
                set_ttl(end, family, 1)
                end.send(b"x")
                assert time_exceeded(listener, family), place
                set_ttl(end, family, 64)
            # The packet with TTL 1 is sent again and now arrives.
            assert (server if end is client else client).recv(1) == b"x"
    assert grown["uplink.ttl"] >= 1
    assert grown["workload.ttl"] >= 1


@contextlib.contextmanager
def narrow(node: Node, interface: str) -> Iterator[Callable[[], None]]:
    """Call what it yields to lower the MTU from 1500 to 1400."""

    def lower() -> None:
        node.host_run(["ip", "link", "set", "dev", interface, "mtu", "1400"])

    try:
        yield lower
    finally:
        node.host_run(["ip", "link", "set", "dev", interface, "mtu", "1500"])


def forget_path_mtus(cluster: Cluster) -> None:
    for endpoint in [*cluster.nodes.values(), *cluster.lab.workloads()]:
        for family in ("-4", "-6"):
            endpoint.host_run(["ip", family, "route", "flush", "cache"])


def transfer(sender: socket.socket, receiver: socket.socket, half_way: Callable[[], None]) -> float:
    """Seconds that the whole took. Raises TimeoutError when it stands still."""
    half = MEGABYTES * 500_000
    sender.settimeout(10)
    receiver.settimeout(10)

    def send() -> None:
        sender.sendall(bytes(half))
        half_way()
        sender.sendall(bytes(half))

    thread = threading.Thread(target=send)
    began = time.monotonic()
    thread.start()
    left = 2 * half
    buffer = bytearray(1 << 20)
    while left:
        received = receiver.recv_into(buffer)
        assert received
        left -= received
    taken = time.monotonic() - began
    thread.join()
    return taken


@BOTH
@pytest.mark.parametrize("place", ["workload", "uplink", "beyond"])
def test_a_path_that_becomes_narrower_does_not_stop_a_transfer(cluster: Cluster, place: str, family: int) -> None:
    """``beyond``: the other node forwards to a narrower link, so the ICMP error comes in from outside."""
    lab = cluster.lab
    near, far = lab.workload(2, 1), lab.workload(1, 1)
    forget_path_mtus(cluster)
    node, interface = {
        "workload": (lab.nodes[2], near.host_interface),
        "uplink": (lab.nodes[2], lab.nodes[2].uplink),
        "beyond": (lab.nodes[1], far.host_interface),
    }[place]
    with connected(far, near, family) as (client, server), narrow(node, interface) as lower:
        say(client, server)
        sender, receiver = (client, server) if place == "workload" else (server, client)
        with cluster.datapaths[2].counted() as grown, cluster.datapaths[1].counted() as beyond:
            taken = transfer(sender, receiver, lower)
        known = sender_of(cluster, sender).host_run(["ip", "route", "get", str(peer_address(sender))])
    print(f"{place}, IPv{family}: {MEGABYTES} MB in {taken:.2f} s")
    assert taken < 2
    assert grown["uplink.to_workload"] > 10
    assert grown["workload.to_uplink"] > 10
    if place == "workload":
        assert grown["uplink.too_big"] > 0
        assert beyond["uplink.icmp_to_workload"] > 0
    elif place == "uplink":
        assert grown["workload.too_big"] > 0
    else:
        assert beyond["uplink.too_big"] > 0
        assert grown["uplink.icmp_to_workload"] > 0
    assert "mtu 1400" in known
    forget_path_mtus(cluster)


def peer_address(end: socket.socket) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(end.getpeername()[0])
    return getattr(address, "ipv4_mapped", None) or address


def sender_of(cluster: Cluster, end: socket.socket) -> Endpoint:
    address = ipaddress.ip_address(end.getsockname()[0])
    own = str(getattr(address, "ipv4_mapped", None) or address)
    return next(workload for workload in cluster.lab.workloads() if own in (workload.ipv4, workload.ipv6))


@contextlib.contextmanager
def watched(node: Node) -> Iterator[Callable[[int], int]]:
    """Counts what passes any netfilter hook of the node, before conntrack: how many packets had a given port?"""
    hooks = ("prerouting", "forward", "postrouting", "input", "output")
    chains = "".join(
        f"chain {hook} {{ type filter hook {hook} priority -400; update @seen {{ tcp sport . tcp dport }}; }}\n"
        for hook in hooks
    )
    seen = "set seen { type inet_service . inet_service; flags dynamic; size 65535; counter; }"
    node.host_run(["nft", "-f", "-"], stdin=f"table inet watch {{\n{seen}\n{chains}}}\n")

    def packets_of(port: int) -> int:
        listed = json.loads(node.host_run(["nft", "-j", "list", "set", "inet", "watch", "seen"]))["nftables"]
        elements = [element["elem"] for element in listed[-1]["set"].get("elem", [])]
        return sum(element["counter"]["packets"] for element in elements if port in element["val"]["concat"])

    try:
        yield packets_of
    finally:
        node.host_run(["nft", "delete", "table", "inet", "watch"])


@BOTH
def test_neither_conntrack_nor_netfilter_sees_a_bypassed_flow(cluster: Cluster, family: int) -> None:
    lab = cluster.lab
    for node in lab.nodes.values():  # or an entry of an earlier test may have the same port
        node.host_run(["conntrack", "-F"])
    with watched(lab.nodes[1]) as one, watched(lab.nodes[2]) as two, cluster.nothing_invalid():
        with (
            cluster.datapaths[2].counted() as grown,
            cluster.datapaths[1].counted() as beyond,
            connected(lab.workload(1, 1), lab.workload(2, 1), family) as (client, server),
        ):
            port = client.getsockname()[1]
            for _ in range(PACKETS // 200):
                say(client, server, 50)
                say(server, client, 50)
            tracked = [entry for node in lab.nodes.values() for entry in node.conntrack()]
        assert (one(port), two(port)) == (0, 0)  # the last packets of both ends included
    assert bypassed(grown) >= PACKETS // 2
    assert bypassed(beyond) >= PACKETS // 2
    assert not [entry for entry in tracked if str(port) in (entry.get("original.sport"), entry.get("original.dport"))]


def test_the_watch_does_see_what_is_not_bypassed(cluster: Cluster) -> None:
    cluster.mode("off", force=True)
    lab = cluster.lab
    with watched(lab.nodes[2]) as seen, connected(lab.workload(1, 1), lab.workload(2, 1), 4) as (client, server):
        say(client, server, 10)
        assert seen(client.getsockname()[1]) >= 30
