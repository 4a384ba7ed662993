# SPDX-License-Identifier: GPL-3.0-or-later
"""Rule 5: from outside it looks like IP forwarding. And the point: the kernel sees few of the packets."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import pytest
from fleet.datapath import TALK_PORT, Cluster, bypassed, full
from fleet.ends import connected, of
from fleet.frames import caught
from lab.api import Endpoint, Node

pytest_plugins = ["fleet.deployed"]

BOTH = pytest.mark.parametrize("family", [4, 6])
MEGABYTES = full(100, 20)
# Reasons by which packets of a known connection, or of one that begins, take the kernel's path.
KERNEL = ("handshake", "heartbeat", "waiting", "ending", "unproven")
PACKETS = full(1_000_000, 20_000)


def say(speaker: socket.socket, listener: socket.socket, times: int = 1) -> None:
    listener.settimeout(2)
    for __ in range(times):
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
        for __ in range(5):
            say(client, server, 10)
            say(server, client, 10)
    assert grown["uplink.to_workload"] >= 75
    assert grown["workload.to_uplink"] >= 75
    arrived = [seen for seen in inside if seen.destination_port == TALK_PORT]
    returned = [seen for seen in outside if seen.source_port == TALK_PORT]
    # By the shortcut and by the kernel alike.
    for direction, seen in (("uplink", arrived), ("workload", returned)):
        assert len(seen) == sum(
            grown.get(f"{direction}.{reason}", 0) for reason in ("to_workload", "to_uplink", *KERNEL)
        )
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


def transfer(sender: socket.socket, receiver: socket.socket, half_way: Callable[[], None]) -> tuple[int, float]:
    """As fast as it can, then for some heartbeats. Returns bytes and the longest pause. TimeoutError: it stands."""
    half = MEGABYTES * 500_000
    total = 0
    sender.settimeout(10)
    receiver.settimeout(10)

    def send() -> None:
        nonlocal total
        sender.sendall(bytes(half))
        half_way()
        until = time.monotonic() + 3
        while time.monotonic() < until:
            sender.sendall(bytes(65536))
            total += 65536
            time.sleep(0.01)
        sender.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send)
    thread.start()
    received, longest, last = 0, 0.0, time.monotonic()
    buffer = bytearray(1 << 20)
    while got := receiver.recv_into(buffer):
        received += got
        longest = max(longest, time.monotonic() - last)
        last = time.monotonic()
    thread.join()
    assert received == half + total
    return received, longest


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
            received, longest = transfer(sender, receiver, lower)
        known = sender_of(cluster, sender).host_run(["ip", "route", "get", str(peer_address(sender))])
    print(f"{place}, IPv{family}: {received} bytes, longest pause {longest:.2f} s")
    assert longest < 1  # the largest packet is learned anew with each heartbeat
    for counted in (grown, beyond):
        assert counted["uplink.to_workload"] > 10
        assert counted["workload.to_uplink"] > 10
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


def by_the_kernel(grown: Mapping[str, int]) -> int:
    """How many packets of connections that are known, or begin, took the kernel's path."""
    return sum(grown.get(f"{direction}.{reason}", 0) for direction in ("uplink", "workload") for reason in KERNEL)


def tracked(node: Node, port: int) -> list[dict[str, str | list[str]]]:
    return [entry for entry in node.conntrack() if str(port) in (entry["original.sport"], entry["original.dport"])]


@BOTH
@pytest.mark.parametrize("ending", ["FIN", "RST"])
def test_netfilter_sees_a_handshake_an_end_and_a_heartbeat_a_second(cluster: Cluster, ending: str, family: int) -> None:
    """Conntrack knows the connection from its beginning to its end, and nothing of the packets in between is seen."""
    lab = cluster.lab
    nodes = (lab.nodes[1], lab.nodes[2])
    for node in nodes:  # or an entry of an earlier test may have the same port
        node.host_run(["conntrack", "-F"])
    with (
        watched(nodes[0]) as one,
        watched(nodes[1]) as two,
        cluster.nothing_invalid(),
        cluster.datapaths[2].counted() as grown,
        cluster.datapaths[1].counted() as beyond,
        connected(lab.workload(1, 1), lab.workload(2, 1), family) as (client, server),
    ):
        port = client.getsockname()[1]
        began = time.monotonic()
        for __ in range(PACKETS // 200):
            say(client, server, 50)
            say(server, client, 50)
        taken = time.monotonic() - began
        for node in nodes:
            (entry,) = tracked(node, port)
            assert (entry["state"], "ASSURED" in entry["flags"]) == ("ESTABLISHED", True)
        if ending == "RST":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        server.settimeout(2)
        with contextlib.suppress(ConnectionResetError):
            assert server.recv(1) == b""
        server.close()
        time.sleep(0.1)
        ended = [entry for node in nodes for entry in tracked(node, port)]
        seen = (one(port), two(port))
    print(f"{taken:.1f} s: {by_the_kernel(grown)} packets by the kernel, {bypassed(grown)} past it")
    assert len(ended) == 2
    if ending == "FIN":
        assert {entry["state"] for entry in ended} == {"TIME_WAIT"}
    else:  # its sequence number is beyond what conntrack saw last, which shortens the entry's life but not at once
        assert max(int(str(entry["timeout"])) for entry in ended) <= 10, ended
    # PREROUTING, FORWARD and POSTROUTING of each.
    assert seen == (3 * by_the_kernel(beyond), 3 * by_the_kernel(grown))
    for counted in (grown, beyond):
        assert bypassed(counted) >= PACKETS // 2
        assert counted["uplink.handshake"] + counted["workload.handshake"] == 3
        assert counted.get("uplink.ending", 0) + counted.get("workload.ending", 0) == (2 if ending == "FIN" else 1)
        assert "uplink.unknown_flow" not in counted
        # Two a second in each direction would be too many; some more at the beginning, and at the end.
        assert by_the_kernel(counted) < 30 + 2 * 2 * taken


@BOTH
def test_a_packet_larger_than_what_came_out_asks_the_kernel_first(cluster: Cluster, family: int) -> None:
    lab = cluster.lab
    with connected(lab.nodes[1], lab.workload(2, 1), family) as (client, server):
        server.settimeout(2)
        until = time.monotonic() + 1
        while time.monotonic() < until:  # until the way is proven
            say(client, server, 5)
            say(server, client, 5)
        for size in (200, 600, 1400):
            say(client, server, 5)
            with cluster.datapaths[2].counted() as grown:
                client.send(bytes(size))
                assert len(server.recv(size, socket.MSG_WAITALL)) == size
            assert grown["uplink.heartbeat"] >= 1, size
            assert grown["uplink.renewed"] == grown["uplink.heartbeat"]
            with cluster.datapaths[2].counted() as grown:
                client.send(bytes(size))
                assert len(server.recv(size, socket.MSG_WAITALL)) == size
            assert grown["uplink.to_workload"] >= 1, size


def test_the_watch_does_see_what_is_not_bypassed(cluster: Cluster) -> None:
    cluster.mode("off", force=True)
    lab = cluster.lab
    with watched(lab.nodes[2]) as seen, connected(lab.workload(1, 1), lab.workload(2, 1), 4) as (client, server):
        say(client, server, 10)
        assert seen(client.getsockname()[1]) >= 30
