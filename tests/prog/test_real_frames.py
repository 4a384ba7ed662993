# SPDX-License-Identifier: GPL-3.0-or-later
"""The real kernel between the hooks: frames on a wire, forwarded by it or by the programs, and what arrives of them."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from prog import packets
from prog.datapath import Datapath
from prog.kernel import NEXT_HOP, POD, UPLINK, WORKLOAD, other
from prog.network import Interface, ip
from prog.packets import ACK, FIN, PSH, SYN
from prog.story import EVERY, NAMES, Ends

from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf

HOOKS = (
    ("from_uplink", "ens47f1", bpf.ATTACH_TCX_INGRESS),
    ("to_uplink", "ens47f1", bpf.ATTACH_TCX_EGRESS),
    ("from_workload", "cali1", bpf.ATTACH_TCX_INGRESS),
    ("to_workload", "cali1", bpf.ATTACH_TCX_EGRESS),
)
ENDS = {UPLINK: ("wire1", "ens47f1"), WORKLOAD: ("pod1", "cali1")}
every = pytest.mark.parametrize("ends", EVERY, ids=NAMES)


@pytest.fixture(scope="module", autouse=True)
def _neighbours(interfaces: Mapping[str, Interface]) -> None:
    """Their addresses are nobody's on these wires, so that the namespace does not forward what arrives once more."""
    assert "cali1" in interfaces, "these tests run inside the namespace"
    for ends in EVERY[::2]:
        ip("neigh", "replace", ends.workload, "lladdr", POD, "dev", "cali1", "nud", "permanent")
        ip("neigh", "replace", ends.peer_node, "lladdr", NEXT_HOP, "dev", "ens47f1", "nud", "permanent")
    for name in ("ens47f1", "cali1", "all"):
        Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("0")


@dataclass
class Wires:
    overlay: Datapath
    sockets: Mapping[str, socket.socket]

    def send(self, direction: str, frame: bytes) -> bytes | None:
        """The frame goes in by the interface's hook; what arrives at the other end, if it does."""
        self.drain()
        address = packets.mac(self.overlay.interfaces[ENDS[direction][1]].mac)
        self.sockets[direction].send(address + packets.mac(POD if direction == WORKLOAD else NEXT_HOP) + frame[12:])
        wanted = frame[packets.ETHERNET + (24 if frame[14] >> 4 == 6 else 16) :][:8]  # near the end of the addresses
        until = time.monotonic() + 1
        while (left := until - time.monotonic()) > 0:
            found, __, __ = select.select([self.sockets[other(direction)]], [], [], left)
            for one in found:
                data, (__, __, kind, __, __) = one.recvfrom(65536)
                if kind != socket.PACKET_OUTGOING and wanted in data:
                    return bytes(data)
        return None

    def drain(self) -> None:
        for one in self.sockets.values():
            while select.select([one], [], [], 0)[0]:
                one.recv(65536)


@pytest.fixture
def wires(overlay: Datapath) -> Iterator[Wires]:
    links = [
        bpf.link_create_tcx(overlay.object.descriptors[program], overlay.interfaces[name].ifindex, hook)
        for program, name, hook in HOOKS
    ]
    sockets = {}
    for direction, (name, __) in ENDS.items():
        sockets[direction] = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        sockets[direction].bind((name, 3))
    yield Wires(overlay, sockets)
    for one in sockets.values():
        one.close()
    for link in links:
        os.close(link)


class Wired:
    """A connection whose packets travel on wires."""

    def __init__(self, wires: Wires, ends: Ends) -> None:
        self.wires, self.ends = wires, ends
        self.next = {ends.opener: 1000, other(ends.opener): 5000}

    def send(self, direction: str, flags: int = ACK, payload: bytes = b"", pad: int = 0) -> bytes | None:
        number = self.next[direction]
        packet = self.ends.packet(
            direction, flags, payload, sequence=number,
            acknowledgement=self.next[other(direction)] if flags & ACK else 0,
        )  # fmt: skip
        self.next[direction] = number + len(payload) + bool(flags & (SYN | FIN))
        return self.wires.send(direction, packets.frame(packet) + bytes(pad))

    def establish(self) -> Wired:
        opener, answerer = self.ends.opener, other(self.ends.opener)
        for direction, flags in ((opener, SYN), (answerer, SYN | ACK), (opener, ACK)):
            assert self.send(direction, flags), "the kernel forwards"
        assert self.wires.overlay.get("flows", self.ends.key)
        return self


def counted(overlay: Datapath, before: Mapping[str, int]) -> dict[str, int]:
    return {name: overlay.total(name) - count for name, count in before.items() if overlay.total(name) != count}


SEEN = ("to_workload", "to_uplink", "heartbeat", "renewed", "admitted", "malformed", "not_ip", "unknown_flow")


@every
def test_rule_5_nobody_can_tell_a_fast_packet_from_a_forwarded_one(wires: Wires, ends: Ends) -> None:
    overlay = wires.overlay
    one = Wired(wires, ends).establish()
    for direction in (UPLINK, WORKLOAD):
        before = overlay.totals(SEEN)
        by_the_kernel = one.send(direction, ACK | PSH, bytes(1000))
        assert counted(overlay, before) == {"heartbeat": 1, "renewed": 1}
        one.next[direction] -= 1000  # the same once more, as if new to this processor
        overlay.forget()
        fast = one.send(direction, ACK | PSH, bytes(1000))
        assert counted(overlay, before) == {
            "heartbeat": 1, "renewed": 1, "to_workload" if direction == UPLINK else "to_uplink": 1,
        }  # fmt: skip
        assert fast == by_the_kernel


@every
def test_rule_5_padding_does_not_arrive(wires: Wires, ends: Ends) -> None:
    one = Wired(wires, ends).establish()
    for direction in (UPLINK, WORKLOAD):
        for __ in range(3):
            arrived = one.send(direction, ACK, pad=20)
            assert arrived
            assert len(arrived) == packets.ETHERNET + (60 if ends.family == 6 else 40)


@every
def test_rule_2_a_whole_life_on_the_wire(wires: Wires, ends: Ends) -> None:
    overlay = wires.overlay
    before = overlay.totals(SEEN)
    one = Wired(wires, ends).establish()
    for __ in range(10):
        for direction in (ends.opener, other(ends.opener)):
            assert one.send(direction, ACK | PSH, b"x" * 100)
    found = counted(overlay, before)
    assert found["admitted"] == 1
    assert found["to_workload"] + found["to_uplink"] == 18, "one of each direction was larger than any before"
    assert found["heartbeat"] == found["renewed"] == 2
    overlay.mode("off")
    for direction in (UPLINK, WORKLOAD):
        assert one.send(direction, ACK | PSH, b"x")
    for direction in (ends.opener, other(ends.opener)):
        assert one.send(direction, FIN | ACK)


@every
def test_rule_5_vlan_tags_take_the_kernels_path(wires: Wires, ends: Ends) -> None:
    """The kernel takes the tag out of the frame before the program sees it."""
    one = Wired(wires, ends).establish()
    plain = packets.frame(ends.packet(UPLINK, ACK, sequence=one.next[UPLINK], acknowledgement=one.next[WORKLOAD]))
    before = wires.overlay.totals(SEEN)
    tagged = plain[:12] + b"\x81\x00\x00\x07" + plain[12:]
    wires.sockets[UPLINK].send(packets.mac(wires.overlay.interfaces["ens47f1"].mac) + tagged[6:])
    assert counted(wires.overlay, before) == {"not_ip": 1}
    assert wires.send(UPLINK, plain)
    assert counted(wires.overlay, before) == {"not_ip": 1, "to_workload": 1}


@pytest.mark.parametrize("ends", EVERY[::2], ids=NAMES[::2])
def test_rule_1_frames_cut_anywhere_take_the_kernels_path(wires: Wires, ends: Ends) -> None:
    one = Wired(wires, ends).establish()
    assert one.send(UPLINK, ACK | PSH, b"data")
    assert one.send(UPLINK, ACK | PSH, b"data")
    packet = ends.packet(UPLINK, ACK, b"data", sequence=one.next[UPLINK], acknowledgement=one.next[WORKLOAD])
    whole = packets.frame(packet, wires.overlay.interfaces["ens47f1"].mac)
    for length in range(packets.ETHERNET + 1, len(whole)):
        before = wires.overlay.totals(SEEN)
        wires.sockets[UPLINK].send(whole[:length])
        assert counted(wires.overlay, before) == {"malformed": 1}, length
    before = wires.overlay.totals(SEEN)
    assert wires.send(UPLINK, whole)
    assert counted(wires.overlay, before) == {"to_workload": 1}
