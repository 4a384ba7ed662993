# SPDX-License-Identifier: GPL-3.0-or-later
"""What the node's policies, rules and routes do to a packet on its way, they do to every packet of a flow."""

from __future__ import annotations

import contextlib
import ctypes
import re
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest
from fleet.datapath import TALK_PORT, Cluster, bypassed, full, until_fast
from fleet.ends import connected, of, transfer
from fleet.frames import Seen, caught, packet_socket, parse
from fleet.rules import forward, ruled
from fleet.traffic import Conversations, converse, speak
from lab.api import Endpoint, Node

pytest_plugins = ["fleet.deployed"]

BOTH = pytest.mark.parametrize("family", [4, 6])
# struct tcp_info, include/uapi/linux/tcp.h.
PATH_MTU = 60
SO_ATTACH_FILTER = 26
MARK = 0x2A
LINK = "ens47f2"


def made_fast(cluster: Cluster, ends: list[socket.socket]) -> None:
    with cluster.datapaths[2].counted() as grown:
        converse(ends, 0.6)
    assert bypassed(grown) > 50


# ---------------------------------------------------------------------------------------------------- IPsec


@BOTH
@pytest.mark.parametrize("policy", ["block", "encrypt"])
def test_nothing_is_in_clear_a_second_after_a_policy_forbids_it(cluster: Cluster, policy: str, family: int) -> None:
    """``encrypt``: no key was agreed on, so nothing may leave at all."""
    lab = cluster.lab
    client, server, node = lab.nodes[1], lab.workload(2, 1), lab.nodes[2]
    which = ["dir", "out", "src", of(server, family), "dst", of(client, family)]
    tunnel = ["tmpl", "src", of(node, family), "dst", of(client, family), "proto", "esp", "mode", "tunnel"]
    action = ["action", "block"] if policy == "block" else tunnel
    with connected(client, server, family) as ends:
        made_fast(cluster, ends)
        node.host_run(["ip", "xfrm", "policy", "add", *which, *action])
        try:
            speak(ends[1], 1)
            with caught(client, client.uplink) as seen:
                speak(ends[1], 1)
        finally:
            node.host_run(["ip", "xfrm", "policy", "delete", *which])
        assert not [one for one in seen if one.source_port == TALK_PORT]
        ends[0].settimeout(5)
        assert ends[0].recv(65536)


# ---------------------------------------------------------------------------------------------------- packet's fields

MARKED = "meta l4proto tcp ip dscp set ef", "meta l4proto tcp ip6 dscp set ef"


@BOTH
@pytest.mark.parametrize("older", [True, False], ids=["older flow", "newer flow"])
def test_dscp_that_forward_sets_is_on_every_packet(cluster: Cluster, older: bool, family: int) -> None:
    """Of a flow that is older than the rule, on every packet from the second second on."""
    lab = cluster.lab
    client, server = lab.nodes[1], lab.workload(2, 1)
    with contextlib.ExitStack() as stack:
        if not older:
            stack.enter_context(ruled(lab.nodes[2], forward(*MARKED)))
        ends = stack.enter_context(connected(client, server, family))
        if older:
            made_fast(cluster, ends)
            stack.enter_context(ruled(lab.nodes[2], forward(*MARKED)))
        converse(ends, 1)
        with caught(server, "eth0") as inside, caught(client, client.uplink) as outside:
            converse(ends, 1.5)
    arrived = [one for one in inside if one.destination_port == TALK_PORT]
    returned = [one for one in outside if one.source_port == TALK_PORT]
    assert len(arrived) > 50
    assert len(returned) > 50
    assert {one.tos >> 2 for one in arrived + returned} == {46}


@BOTH
@pytest.mark.parametrize("older", [True, False], ids=["older flow", "newer flow"])
def test_mark_and_priority_that_forward_sets_reach_the_uplink(cluster: Cluster, older: bool, family: int) -> None:
    lab = cluster.lab
    client, server, node = lab.nodes[1], lab.workload(2, 1), lab.nodes[2]
    rules = forward(f"tcp sport {TALK_PORT} meta mark set {MARK} meta priority set 1:5")
    with contextlib.ExitStack() as stack:
        classes = stack.enter_context(shaped(node))
        if not older:
            stack.enter_context(ruled(node, rules))
        ends = stack.enter_context(connected(client, server, family))
        if older:
            made_fast(cluster, ends)
            stack.enter_context(ruled(node, rules))
        converse(ends, 1)
        before = classes()
        with cluster.datapaths[2].counted() as grown, leaving(node) as tap:
            converse(ends, 1.5)
            unmarked = frames_of(tap)
        after = classes()
    assert grown["workload.to_uplink"] > 50
    assert after["1:5"] - before["1:5"] >= grown["workload.to_uplink"]
    assert not [one for one in unmarked if one.source_port == TALK_PORT]


@contextlib.contextmanager
def leaving(node: Node) -> Iterator[socket.socket]:
    """A socket for what leaves by the uplink without the mark, behind the device's queue."""
    # Classic BPF, include/uapi/linux/filter.h: A = skb->mark (SKF_AD_OFF + SKF_AD_MARK); return A == MARK ? 0 : all.
    program = struct.pack("HBBI" * 4, 0x20, 0, 0, 0xFFFFF000 + 20, 0x15, 0, 1, MARK, 6, 0, 0, 0, 6, 0, 0, 0xFFFF)
    held = ctypes.create_string_buffer(program)
    with packet_socket(node, node.uplink) as tap:
        tap.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HxxxxxxQ", 4, ctypes.addressof(held)))
        while select.select([tap], [], [], 0)[0]:
            tap.recv(65536)
        yield tap


def frames_of(tap: socket.socket) -> list[Seen]:
    """What left meanwhile."""
    found = []
    tap.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            frame, (__, __, kind, __, __) = tap.recvfrom(65536)
            if kind == socket.PACKET_OUTGOING:
                found.append(parse(frame, kind))
    return [one for one in found if one]


@contextlib.contextmanager
def shaped(node: Node) -> Iterator[Callable[[], dict[str, int]]]:
    """The uplink has a class for packets of priority 1:5. Call what it yields for packets per class."""
    node.host_run(
        ["tc", "-batch", "-"],
        stdin=f"""
        qdisc add dev {node.uplink} root handle 1: htb default 9
        class add dev {node.uplink} parent 1: classid 1:5 htb rate 10gbit quantum 60000
        class add dev {node.uplink} parent 1: classid 1:9 htb rate 10gbit quantum 60000
        """,
    )

    def packets() -> dict[str, int]:
        told = node.host_run(["tc", "-s", "class", "show", "dev", node.uplink])
        return {name: int(count) for name, count in re.findall(r"class htb (\S+) .*\n Sent \d+ bytes (\d+) pkt", told)}

    try:
        yield packets
    finally:
        node.host_run(["tc", "qdisc", "delete", "dev", node.uplink, "root"])


# ---------------------------------------------------------------------------------------------------- routes


@contextlib.contextmanager
def routed(node: Node, family: int, far: Node, *way: str) -> Iterator[None]:
    """The route from the node to the far node's workloads is another one."""
    prefix = far.plan.pods_ipv4 if family == 4 else far.plan.pods_ipv6
    change = ["ip", f"-{family}", "route", "replace", prefix]
    node.host_run([*change, *way])
    try:
        yield
    finally:
        direct = ["via", of(far, family), "dev", node.uplink, "proto", "bird"]
        node.host_run([*change, *direct])
        for endpoint in node.workloads.values():
            endpoint.host_run(["ip", f"-{family}", "route", "flush", "cache"])


def path_mtu(end: socket.socket) -> int:
    found = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int(struct.unpack_from("I", found, PATH_MTU)[0])


@BOTH
@pytest.mark.parametrize("older", [True, False], ids=["older flow", "newer flow"])
def test_mtu_of_a_route_is_kept(cluster: Cluster, older: bool, family: int) -> None:
    lab = cluster.lab
    client, server = lab.workload(1, 1), lab.workload(2, 1)
    node, far = lab.nodes[2], lab.nodes[1]
    way = ["via", of(far, family), "dev", node.uplink, "mtu", "1300"]
    with contextlib.ExitStack() as stack:
        if not older:
            stack.enter_context(routed(node, family, far, *way))
        ends = stack.enter_context(connected(client, server, family))
        if older:
            made_fast(cluster, ends)
            transfer(ends[1], ends[0], 2_000_000)
            assert path_mtu(ends[1]) == 1500
            stack.enter_context(routed(node, family, far, *way))
            converse(ends, 1)
        with cluster.datapaths[2].counted() as grown:
            assert transfer(ends[1], ends[0], full(100, 10) * 1_000_000) < full(20, 3)
        assert path_mtu(ends[1]) == 1300
        assert bypassed(grown) > 50


@contextlib.contextmanager
def second_link(one: Node, other: Node) -> Iterator[None]:
    """A link of its own between two nodes, which the overlay knows nothing of."""
    one.host_run(["ip", "link", "add", LINK, "type", "veth", "peer", "name", LINK, "netns", other.netns])
    try:
        for number, node in enumerate((one, other), 1):
            for address in (f"192.0.2.{number}/24", f"2001:db8::{number}/64"):
                node.host_run(["ip", "address", "add", address, "dev", LINK, *(["nodad"] if ":" in address else [])])
            node.host_run(["ip", "link", "set", LINK, "up"])
        yield
    finally:
        one.host_run(["ip", "link", "delete", LINK])


@contextlib.contextmanager
def dead(fabric: Endpoint, sender: Endpoint, through: str) -> Iterator[None]:
    """What the workload sends is lost on the fabric on its way to one of the ports."""
    fabric.host_run(
        ["nft", "-f", "-"],
        stdin=f"""
        table bridge dead {{
            chain out {{
                type filter hook forward priority 0;
                oifname "{through}" ip saddr {sender.ipv4} drop
                oifname "{through}" ip6 saddr {sender.ipv6} drop
            }}
        }}
        """,
    )
    try:
        yield
    finally:
        fabric.host_run(["nft", "delete", "table", "bridge", "dead"])


@BOTH
@pytest.mark.parametrize("way", ["second link", "next hop", "second link, first one dead"])
def test_open_connections_follow_a_route(cluster: Cluster, way: str, family: int) -> None:
    lab = cluster.lab
    server, node, far = lab.workload(2, 1), lab.nodes[2], lab.nodes[1]
    link = way != "next hop"
    next_hop = ("192.0.2.2", "2001:db8::2")[family == 6] if link else of(lab.fabric, family)
    with contextlib.ExitStack() as stack:
        stack.enter_context(second_link(node, far))
        live = stack.enter_context(Conversations(pause=0.02))
        for number in (1, 2, 1, 2, 1):
            live.open(lab.workload(1, number), server, TALK_PORT, family=family)
            live.open(server, lab.workload(1, number), TALK_PORT, family=family)
        until_fast(cluster.datapaths[2], 200)
        live.report().unharmed()
        stack.enter_context(routed(node, family, far, "via", next_hop, "dev", LINK if link else node.uplink))
        if "dead" in way:
            stack.enter_context(dead(lab.fabric, server, far.plan.fabric_port))
        time.sleep(3)
        report = live.report()
        assert (report.dead, report.waiting) == ((), 0), report
        assert report.worst < (2 if "dead" in way else 1), report
        if "dead" not in way:
            report.unharmed(1)
        before = cluster.lab.nodes[2].interface_counters(LINK)["tx_packets"]
        time.sleep(1)
        live.report().unharmed()
        if link:
            assert cluster.lab.nodes[2].interface_counters(LINK)["tx_packets"] - before > 100


@BOTH
def test_source_address_of_open_connections_stays_when_masquerading_begins(cluster: Cluster, family: int) -> None:
    lab = cluster.lab
    node, client, server = lab.nodes[2], lab.workload(2, 1), lab.workload(1, 1)
    known = "ip" if family == 4 else "ip6"
    rule = f"{known} saddr {of(client, family)} tcp dport {{ 8080, {TALK_PORT} }} masquerade"
    with Conversations(pause=0.02) as live:
        for __ in range(10):
            live.open(client, server, TALK_PORT, family=family)
        until_fast(cluster.datapaths[2], 100)
        with ruled(node, f"chain masquerading {{ type nat hook postrouting priority srcnat - 1; {rule}; }}"):
            with caught(server, "eth0") as seen:
                time.sleep(2.5)
            live.report().unharmed()
            arrived = {one.source for one in seen if one.destination_port == TALK_PORT}
            assert arrived == {of(client, family)}
            assert client.http_get(of(server, family))["client"] == of(node, family)
        time.sleep(1)
        live.report().unharmed()
