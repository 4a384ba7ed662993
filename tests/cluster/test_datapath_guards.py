# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules 1 and 6: what a workload forges, and what is not plain TCP over plain IP, is never redirected."""

from __future__ import annotations

import itertools
import random
import socket
import time

import pytest
from fleet import frames
from fleet.datapath import TALK_PORT, Cluster, bypassed, full
from fleet.traffic import Conversations, connection
from prog import packets
from prog.packets import ACK, FIN, PSH, RST, SYN

pytest_plugins = ["fleet.deployed"]

BOTH = pytest.mark.parametrize("family", [4, 6])
FORGED = full(10_000, 500)
# More than `transient` holds.
FLOOD = full(500_000, 30_000)
FLAGS = (SYN, SYN | ACK, ACK, ACK | PSH, ACK | FIN, RST)


def of(endpoint: object, family: int) -> str:
    return str(getattr(endpoint, f"ipv{family}"))


@BOTH
def test_a_forged_source_is_never_redirected(cluster: Cluster, family: int) -> None:
    """Known flows of the other workload included, whose packets would match an entry of the table."""
    lab = cluster.lab
    forger, victim, far = lab.workload(2, 1), lab.workload(2, 2), lab.workload(1, 1)
    sources = [victim, lab.nodes[2], lab.nodes[1], far]
    forged = [of(source, family) for source in sources] + ["203.0.113.5" if family == 4 else "2001:db8::5"]
    ends = connection(lab.nodes[1], victim, of(victim, family), TALK_PORT)
    port = ends[0].getsockname()[1]
    try:
        flows = [
            (source, destination, *ports)
            for source in forged
            for destination in (of(lab.nodes[1], family), of(far, family))
            for ports in ((TALK_PORT, port), (8080, 40000), (40000, 8080))
            if source != destination
        ]
        made = []
        for number, (flow, flags) in enumerate(itertools.cycle(itertools.product(flows, FLAGS))):
            if number == FORGED:
                break
            source, destination, source_port, destination_port = flow
            packet = packets.tcp(source, destination, source_port, destination_port, flags, b"forged")
            made.append(frames.ethernet(packet, frames.GATEWAY_MAC, forger.mac))
        with cluster.datapaths[2].counted() as grown:
            frames.send(forger, "eth0", made)
            time.sleep(0.2)
        assert grown["workload.spoofed"] >= FORGED // 6
        assert grown.get("workload.to_uplink", 0) == 0
    finally:
        for end in ends:
            end.close()


def odd_packets(source: str, destination: str) -> list[bytes]:
    """IP packets with the right source that are not plain TCP over plain IP."""
    segment = packets.tcp_segment(source, destination, 40000, 8080, SYN)
    if ":" in source:
        extension = bytes([packets.TCP, 0, 1, 4, 0, 0, 0, 0])
        fragment = bytes([packets.TCP, 0, 0, 1, 0, 0, 0, 7])
        whole = packets.tcp(source, destination, 40000, 8080, SYN)
        return [
            packets.ipv6(source, destination, 0, extension + segment),  # hop-by-hop options
            packets.ipv6(source, destination, 60, extension + segment),  # destination options
            packets.ipv6(source, destination, packets.FRAGMENT, fragment + segment),
            packets.ipv6(source, destination, packets.TCP, segment, length=2000),  # longer than the frame
            packets.ipv6(source, destination, packets.TCP, segment[:12]),
            packets.ipv6(source, destination, 17, segment),
            packets.ipv6(source, destination, packets.TCP, segment, ttl=1),
            whole[:44],
            whole[:30],
        ]
    whole = packets.tcp(source, destination, 40000, 8080, SYN)
    return [
        packets.ipv4(source, destination, packets.TCP, segment, options=b"\x94\x04\0\0"),  # router alert
        packets.ipv4(source, destination, packets.TCP, segment, options=b"\x07\x07\x04\0\0\0\0\0"),  # record route
        packets.ipv4(source, destination, packets.TCP, segment, fragment=0x2000),
        packets.ipv4(source, destination, packets.TCP, segment, fragment=0x0001),
        packets.ipv4(source, destination, packets.TCP, segment, length=2000),
        packets.ipv4(source, destination, packets.TCP, segment[:12]),
        packets.ipv4(source, destination, 17, segment),
        packets.ipv4(source, destination, packets.TCP, segment, ttl=1),
        whole[:24],
        whole[:12],
    ]


@BOTH
def test_what_is_not_plain_tcp_over_plain_ip_is_never_redirected(cluster: Cluster, family: int) -> None:
    lab = cluster.lab
    sender, receiver = lab.workload(2, 1), lab.nodes[1]
    odd = odd_packets(of(sender, family), of(receiver, family))
    made = [frames.ethernet(packet, frames.GATEWAY_MAC, sender.mac) for packet in odd]
    plain = packets.tcp(of(sender, family), of(receiver, family), 40000, 8080, SYN)
    made.append(frames.ethernet(plain, frames.GATEWAY_MAC, sender.mac, vlan=7))
    # The same from outside.
    inwards = [
        frames.ethernet(packet, lab.nodes[2].plan.mac, receiver.plan.mac)
        for packet in odd_packets(of(receiver, family), of(sender, family))
    ]
    with cluster.datapaths[2].counted() as grown:
        for _ in range(FORGED // 20):
            frames.send(sender, "eth0", made)
            frames.send(receiver, receiver.uplink, inwards)
        time.sleep(0.2)
    assert bypassed(grown) == 0
    # And the plain one, sent the same way, is.
    with cluster.datapaths[2].counted() as grown:
        frames.send(sender, "eth0", [frames.ethernet(plain, frames.GATEWAY_MAC, sender.mac)])
        time.sleep(0.1)
    assert grown["workload.to_uplink"] >= 1


@BOTH
def test_a_workloads_address_from_outside_is_never_redirected(cluster: Cluster, family: int) -> None:
    lab = cluster.lab
    node, outside = lab.nodes[2], lab.nodes[1]
    target, other = lab.workload(2, 1), lab.workload(2, 2)
    made = [
        frames.ethernet(
            packets.tcp(source, of(target, family), 40000 + number, 8080, SYN), node.plan.mac, outside.plan.mac
        )
        for number in range(FORGED // 3)
        for source in (of(other, family), of(node, family), of(lab.fabric, family))
    ]
    with cluster.datapaths[2].counted() as grown:
        frames.send(outside, outside.uplink, made)
        time.sleep(0.2)
    assert bypassed(grown) == 0
    assert grown["uplink.spoofed"] == FORGED // 3
    assert grown["uplink.host_address"] == FORGED // 3


@BOTH
def test_a_flood_of_first_packets_leaves_established_flows_where_they_are(cluster: Cluster, family: int) -> None:
    lab = cluster.lab
    attacker, target = lab.nodes[1], lab.workload(2, 1)
    datapath = cluster.datapaths[2]
    with Conversations(pause=0.02) as live:
        for number in range(10):
            live.open(lab.workload(1, 1), target, TALK_PORT, family=4 if number % 2 else 6)
        time.sleep(0.2)
        before = datapath.size("flows")[0]
        made = []
        # No pair of address and port twice: a first packet that is repeated is another story.
        for number in random.sample(range(100 << 16), FLOOD):
            host, port = 100 + (number >> 16), number & 0xFFFF
            remote = f"10.244.1.{host}" if family == 4 else f"fd00:10:244:1::{host:x}"
            # Checksum 0 is wrong, so that the target does not answer: the datapath does not look at it.
            segment = port.to_bytes(2, "big") + b"\x1f\x90" + bytes(8) + b"\x50\x02\xff\xff" + bytes(4)
            packet = packets.ip(remote, of(target, family), packets.TCP, segment)
            made.append(frames.ethernet(packet, lab.nodes[2].plan.mac, attacker.plan.mac))
        with datapath.counted() as grown:
            frames.send(attacker, attacker.uplink, made)
            time.sleep(0.5)
        held, room = datapath.size("transient")
        report = live.report()
        print(f"{grown}; transient {held} of {room}; {report}")
        assert grown["uplink.flow_opened"] > FLOOD * 0.9
        assert FLOOD > room >= held
        assert datapath.size("flows")[0] == before
        assert "uplink.unknown_flow" not in grown
        assert "workload.unknown_flow" not in grown
        report.unharmed()
        with datapath.counted() as grown:
            time.sleep(0.3)
        assert bypassed(grown) > 20


def test_a_reset_that_nobody_expects_does_not_end_a_flow(cluster: Cluster) -> None:
    """Sequence numbers are not looked at, so a forged RST must not send the flow to the kernel's path."""
    lab = cluster.lab
    client, server = connection(lab.nodes[1], lab.workload(2, 1), lab.workload(2, 1).ipv4, TALK_PORT)
    with client, server, cluster.datapaths[2].counted() as grown:
        port = client.getsockname()[1]
        forged = packets.tcp(lab.nodes[1].ipv4, lab.workload(2, 1).ipv4, port, TALK_PORT, RST)
        frames.send(
            lab.nodes[1], lab.nodes[1].uplink, [frames.ethernet(forged, lab.nodes[2].plan.mac, lab.nodes[1].plan.mac)]
        )
        time.sleep(0.1)
        server.settimeout(2)
        for _ in range(10):
            client.send(b"x")
            assert server.recv(1, socket.MSG_WAITALL) == b"x"
    assert grown["uplink.flow_reset"] >= 1
    assert "uplink.unknown_flow" not in grown
