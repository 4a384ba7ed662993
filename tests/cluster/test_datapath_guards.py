# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules 1 and 6: what is forged, or is not plain TCP, is never redirected, admits nothing, and keeps no flow off."""

from __future__ import annotations

import itertools
import random
import socket
import time

import pytest
from fleet import frames
from fleet.datapath import TALK_PORT, Cluster, bypassed, full
from fleet.ends import of
from fleet.traffic import Conversations, connection
from prog import packets
from prog.packets import ACK, FIN, PSH, RST, SYN

pytest_plugins = ["fleet.deployed"]

BOTH = pytest.mark.parametrize("family", [4, 6])
FORGED = full(10_000, 500)
# More than `pending` holds.
FLOOD = full(500_000, 30_000)
FLAGS = (SYN, SYN | ACK, ACK, ACK | PSH, ACK | FIN, RST)


@BOTH
def test_a_forged_source_is_never_redirected(cluster: Cluster, family: int) -> None:
    """Known flows of the other workload included, whose packets would match an entry of the table.

    Some of what is forged goes on by the kernel, as it does without us. The known flow is fast again at once.
    """
    lab = cluster.lab
    forger, victim, far = lab.workload(2, 1), lab.workload(2, 2), lab.workload(1, 1)
    sources = [victim, lab.nodes[2], lab.nodes[1], far]
    forged = [of(source, family) for source in sources] + ["203.0.113.5" if family == 4 else "2001:db8::5"]
    ends = connection(lab.nodes[1], victim, of(victim, family), TALK_PORT)
    port = ends[0].getsockname()[1]
    try:
        assert fast(cluster, ends) > 20
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
        assert "workload.syn_in" not in grown
        assert "workload.admitted" not in grown
        assert len(cluster.datapaths[2].entries("flows")) == 1
        assert fast(cluster, ends) > 20
    finally:
        for end in ends:
            end.close()


def fast(cluster: Cluster, ends: list[socket.socket], seconds: float = 1.5) -> int:
    """Let a connection talk; how many packets of its last second were redirected."""

    def talk(until: float) -> None:
        while time.monotonic() < until:
            for speaker, listener in (ends, reversed(ends)):
                listener.settimeout(2)
                speaker.send(b"x")
                assert listener.recv(1) == b"x"
            time.sleep(0.01)

    talk(time.monotonic() + seconds - 1)
    with cluster.datapaths[2].counted() as grown:
        talk(time.monotonic() + 1)
    time.sleep(0.1)  # until the last acknowledgement is there
    return bypassed(grown)


def odd_packets(source: str, destination: str, source_port: int, destination_port: int, flags: int) -> list[bytes]:
    """IP packets with the right source that are not plain TCP over plain IP."""
    segment = packets.tcp_segment(source, destination, source_port, destination_port, flags)
    segment = segment[:16] + bytes([segment[16] ^ 1]) + segment[17:]  # with a wrong checksum: nobody answers
    if ":" in source:
        extension = bytes([packets.TCP, 0, 1, 4, 0, 0, 0, 0])
        fragment = bytes([packets.TCP, 0, 0, 1, 0, 0, 0, 7])
        whole = packets.ipv6(source, destination, packets.TCP, segment)
        return [
            whole,
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
    whole = packets.ipv4(source, destination, packets.TCP, segment)
    return [
        whole,
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
@pytest.mark.parametrize("flags", [SYN, ACK], ids=["new", "known"])
def test_what_is_not_plain_tcp_over_plain_ip_is_never_redirected(cluster: Cluster, flags: int, family: int) -> None:
    """With the ports of a connection that is fast, and with those of one that nobody knows."""
    lab = cluster.lab
    sender, receiver = lab.workload(2, 1), lab.nodes[1]
    ends = connection(receiver, sender, of(sender, family), TALK_PORT)
    inward: tuple[int, int] = (ends[0].getsockname()[1] if flags == ACK else 40000, TALK_PORT)
    outward = (TALK_PORT, inward[0]) if flags == ACK else inward
    plain, *odd = odd_packets(of(sender, family), of(receiver, family), *outward, flags=flags)
    made = [frames.ethernet(packet, frames.GATEWAY_MAC, sender.mac) for packet in odd]
    made.append(frames.ethernet(plain, frames.GATEWAY_MAC, sender.mac, vlan=7))
    # The same from outside.
    inwards = [
        frames.ethernet(packet, lab.nodes[2].plan.mac, receiver.plan.mac)
        for packet in odd_packets(of(receiver, family), of(sender, family), *inward, flags=flags)[1:]
    ]
    try:
        assert fast(cluster, ends) > 20
        with cluster.datapaths[2].counted() as grown:
            for __ in range(FORGED // 20):
                frames.send(sender, "eth0", made)
                frames.send(receiver, receiver.uplink, inwards)
        assert not {"uplink.syn_in", "workload.syn_in", "uplink.heartbeat", "workload.heartbeat"} & set(grown), grown
        assert bypassed(grown) == 0
        # And the plain one, sent the same way, is, or begins a flow. One in some may happen to be a heartbeat.
        expected, done = "workload.to_uplink" if flags == ACK else "workload.syn_in", 0
        for __ in range(3):
            assert fast(cluster, ends) > 20
            with cluster.datapaths[2].counted() as grown:
                frames.send(sender, "eth0", [frames.ethernet(plain, frames.GATEWAY_MAC, sender.mac)])
                time.sleep(0.1)
            done += grown.get(expected, 0)
        assert done >= 1
    finally:
        for end in ends:
            end.close()


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
    assert grown["uplink.not_peer"] == FORGED // 3
    assert "uplink.syn_in" not in grown


@BOTH
def test_a_flood_of_first_packets_leaves_established_flows_where_they_are(cluster: Cluster, family: int) -> None:
    lab = cluster.lab
    attacker, target = lab.nodes[1], lab.workload(2, 1)
    datapath = cluster.datapaths[2]
    with Conversations(pause=0.02) as live:
        for number in range(10):
            live.open(lab.workload(1, 1), target, TALK_PORT, family=4 if number % 2 else 6)
        time.sleep(2)
        before = datapath.size("flows")[0]
        assert before == 10
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
        held, room = datapath.size("pending")
        report = live.report()
        print(f"{grown}; pending {held} of {room}; {report}")
        assert grown["uplink.syn_in"] > FLOOD * 0.9
        assert FLOOD > room >= held
        assert datapath.size("flows")[0] == before
        assert "uplink.unknown_flow" not in grown
        assert "workload.unknown_flow" not in grown
        report.unharmed()
        with datapath.counted() as grown:
            time.sleep(0.3)
        assert bypassed(grown) > 20
        # While the table is full, whoever opens a connection is admitted, in either direction.
        with datapath.counted() as grown:
            live.open(lab.workload(1, 1), target, TALK_PORT, family=family)
            live.open(target, lab.workload(1, 1), TALK_PORT, family=family)
            time.sleep(0.1)
        assert (grown["uplink.admitted"], grown["workload.admitted"]) == (1, 1)
        live.report().unharmed()


@BOTH
@pytest.mark.parametrize("flags", [SYN, SYN | ACK, FIN | ACK, RST], ids=["SYN", "SYN-ACK", "FIN", "RST"])
def test_what_an_end_did_not_send_does_not_end_a_flow(cluster: Cluster, flags: int, family: int) -> None:
    """Sequence numbers are not looked at. The kernel gets it, the ends take no notice, and the flow is fast again."""
    lab = cluster.lab
    client, target = lab.nodes[1], lab.workload(2, 1)
    ends = connection(client, target, of(target, family), TALK_PORT)
    try:
        assert fast(cluster, ends) > 20
        port = ends[0].getsockname()[1]
        forged = packets.tcp(of(client, family), of(target, family), port, TALK_PORT, flags)
        with cluster.datapaths[2].counted() as grown:
            frames.send(client, client.uplink, [frames.ethernet(forged, lab.nodes[2].plan.mac, client.plan.mac)])
            time.sleep(0.1)
        assert grown["uplink.ending" if flags & (FIN | RST) else "uplink.handshake"] == 1
        with cluster.datapaths[2].counted() as grown:
            assert fast(cluster, ends, 2) > 20
        assert "uplink.unknown_flow" not in grown
        assert "workload.unknown_flow" not in grown
        assert len(cluster.datapaths[2].entries("flows")) == 1
    finally:
        for end in ends:
            end.close()
