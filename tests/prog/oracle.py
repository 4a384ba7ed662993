# SPDX-License-Identifier: GPL-3.0-or-later
"""What may happen to a packet, said a second time: from the rules in words, with Python's libraries.

It sees what goes in and what comes out, and knows the node that ``datapath.fill`` describes. It reads no map.
``judge`` names the reasons that a packet may be counted under; a fast one must be a copy of what came out in the last
second (``copies``).
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass, field, replace

from prog.datapath import OWN, PEERS, WORKLOADS
from prog.packets import ACK, ETHERNET, FIN, RST, SYN

FAST = {"uplink": "to_workload", "workload": "to_uplink"}
SERVICE = 8080
DSCP = 0xFC
HOMES = {ipaddress.ip_address(address): name for address, name in WORKLOADS.items()}
LISTED = [ipaddress.ip_network(text) for text in PEERS]
NODE = [ipaddress.ip_network(text).network_address for text in OWN]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Key = tuple[Address, int, Address, int]
"""Workload and remote end."""


class Stays(Exception):  # noqa: N818 (an answer, not an error)
    """The packet keeps to the kernel's path; the argument is the reason."""


@dataclass(frozen=True)
class Packet:
    direction: str
    interface: str
    key: Key
    flags: int
    sequence: int
    acknowledgement: int
    data: int
    size: int
    """Of the IP packet; of GSO, one segment."""
    tos: int
    ttl: int

    @property
    def numbers(self) -> tuple[int, int, int]:
        return self.sequence, self.acknowledgement, self.data


def read(direction: str, interface: str, frame: bytes, gso_size: int = 0) -> Packet:
    """Plain TCP of a listed service in plain IP; raises Stays."""
    ethertype, packet = int.from_bytes(frame[12:14], "big"), frame[ETHERNET:]
    if ethertype not in (0x0800, 0x86DD):
        raise Stays("not_ip")
    family = 4 if ethertype == 0x0800 else 6
    _plain(packet, family)
    header = 20 if family == 4 else 40
    if family == 4 and _fragment(packet):
        raise Stays("fragment")
    length = int.from_bytes(packet[2:4] if family == 4 else packet[4:6], "big") + (0 if family == 4 else 40)
    if length == (0 if family == 4 else 40) and gso_size:
        length = len(packet)
    if length > len(packet):
        raise Stays("malformed")
    place = 12 if family == 4 else 8
    wide = 4 if family == 4 else 16
    source, destination = (ipaddress.ip_address(packet[at : at + wide]) for at in (place, place + wide))
    ports = struct.unpack_from("!HH", packet, header)
    sequence, acknowledgement, offset, flags = struct.unpack_from("!IIBB", packet, header + 4)
    inbound = direction == "uplink"
    key = (destination, ports[1], source, ports[0]) if inbound else (source, ports[0], destination, ports[1])
    headers = header + 4 * (offset >> 4)
    mapped = isinstance(key[0], ipaddress.IPv6Address) and key[0].ipv4_mapped
    absurd = not flags & (SYN | RST | ACK) or (flags & SYN and flags & (FIN | RST))
    if mapped or offset >> 4 < 5 or length < headers or absurd:
        raise Stays("malformed")
    tos = packet[1] if family == 4 else (packet[0] & 15) << 4 | packet[1] >> 4
    size = gso_size + headers if gso_size else length
    ttl = packet[8] if family == 4 else packet[7]
    return Packet(
        direction, interface, key, flags, sequence, acknowledgement, length - headers, size, tos, ttl
    )  # fmt: skip


def _plain(packet: bytes, family: int) -> None:
    """What is told by protocol and ports alone, before anything else that may be wrong."""
    header, protocol = (20, packet[9:10]) if family == 4 else (40, packet[6:7])
    if len(packet) < header or (packet[0] != 0x45 if family == 4 else packet[0] >> 4 != 6):
        raise Stays("malformed")
    if family == 6 and protocol[0] == 44:
        raise Stays("fragment" if len(packet) >= header + 20 else "not_tcp")
    if protocol[0] != 6:
        raise Stays("not_tcp")
    if len(packet) < header + 20:
        raise Stays("malformed")
    if SERVICE not in struct.unpack_from("!HH", packet, header):
        raise Stays("not_service")


def _fragment(packet: bytes) -> bool:
    return bool(int.from_bytes(packet[6:8], "big") & 0x3FFF)


@dataclass
class Copy:
    """What the kernel made of a packet: for a second, what others of its direction may become."""

    since: float
    interface: str
    header: bytes
    mark: int
    priority: int
    packet: Packet


@dataclass
class Flow:
    copies: dict[str, list[Copy]] = field(default_factory=lambda: {"uplink": [], "workload": []})
    inside: list[Packet] = field(default_factory=list)
    """What went in by the kernel's path, the latest last."""
    ended: dict[str, int | None] = field(default_factory=dict)
    """Who sent FIN or RST -> the number behind his latest FIN; None: whatever he sends next, he goes on."""


class Oracle:
    def __init__(self) -> None:
        self.now = 0.0
        self.mode = "on"
        self.answers: dict[tuple[Key, str, int], dict[int, Copy] | None] = {}
        """(ends, opener, number of its SYN) -> the SYN-ACKs that came out, by number; None: not even the SYN did"""
        self.flows: dict[Key, Flow] = {}

    # -- at an ingress hook ----------------------------------------------------------------------------------------

    def judge(self, direction: str, interface: str, frame: bytes, gso_size: int = 0) -> set[str]:
        """The reasons that the packet may be counted under; none at all while off."""
        if self.mode == "off":
            return set()
        try:
            packet = read(direction, interface, frame, gso_size)
            if packet.ttl <= 1:
                raise Stays("ttl")
            return self._judge(packet)
        except Stays as answer:
            return {str(answer)}

    def _judge(self, packet: Packet) -> set[str]:
        if packet.flags & SYN:
            return {"handshake", "spoofed"} if packet.flags & ACK else {self._first(packet)}
        if packet.flags & (FIN | RST):
            return {"ending"}
        flow = self.flows.get(packet.key)
        if flow is None:
            return {"unknown_flow", "handshake"}
        if packet.direction == "workload" and HOMES.get(packet.key[0]) != packet.interface:
            return {"spoofed", "unknown_flow"}
        may = {"heartbeat", "waiting", "handshake", "unproven", "unknown_flow"}  # as evicted ones are
        return may | {FAST[packet.direction]} if self.copies(packet) else may

    def _first(self, packet: Packet) -> str:
        """May this SYN begin a flow?"""
        inbound = packet.direction == "uplink"
        workload, workload_port, remote, remote_port = packet.key
        home = HOMES.get(workload)
        if not inbound and home != packet.interface:
            return "spoofed"
        if self.mode != "on":
            return "draining"
        if (workload_port if inbound else remote_port) != SERVICE:
            return "not_service"
        if home is None:
            return "not_workload"
        if remote in HOMES:
            return "spoofed" if inbound else "same_node"
        if remote in NODE:
            return "host_address"
        if not any(remote in network for network in LISTED if network.version == remote.version):
            return "not_peer"
        return "handshake"

    def copies(self, packet: Packet) -> list[Copy]:
        """What a packet of this flow may be made into now."""
        flow = self.flows[packet.key]
        if flow.ended:
            return []
        recent = [one for one in flow.copies[packet.direction] if self.now - one.since < 1]
        largest = max((one.packet.size for one in recent), default=0)
        return [
            one for one in recent
            if one.packet.interface == packet.interface and not (one.packet.tos ^ packet.tos) & DSCP
            and packet.size <= largest
        ]  # fmt: skip

    # -- on its way ------------------------------------------------------------------------------------------------

    def goes_in(self, direction: str, interface: str, frame: bytes, gso_size: int = 0) -> Packet | None:
        """By the kernel's path. What the workload sends after its SYN belongs to another connection."""
        if self.mode == "off":
            return None
        try:
            packet = read(direction, interface, frame, gso_size)
        except Stays:
            return None
        opener = packet.flags & (SYN | ACK) == SYN and self._judge(packet) == {"handshake"}
        if opener:
            self.answers.setdefault((packet.key, direction, packet.sequence), None)
        if packet.key in self.flows:
            self.flows[packet.key].inside = [*self.flows[packet.key].inside[-20:], packet]
        if direction == "workload" and opener and packet.key in self.flows:
            self.flows[packet.key].copies["workload"] = []
        return packet

    def comes_out(self, packet: Packet, interface: str, frame: bytes, mark: int, priority: int, gso_size: int) -> None:
        """The packet that went in, at the egress hook of ``interface``. Only an unchanged one tells anything."""
        if self.mode == "off":
            return
        try:
            out = read(packet.direction, interface, frame, gso_size)
        except Stays:
            return
        flow = self.flows.get(out.key)
        if flow and out.flags & (FIN | RST) and not out.flags & SYN:
            reset = out.flags & RST or flow.ended.get(out.direction, 0) is None
            flow.ended[out.direction] = None if reset else (out.sequence + out.data + 1) % 2**32
        same = (out.key, out.flags, out.numbers) == (packet.key, packet.flags, packet.numbers)
        if not same or (out.tos ^ packet.tos) & DSCP or out.ttl != packet.ttl - 1:
            return
        copy = Copy(self.now, interface, frame[:12], mark, priority, packet)
        if packet.flags & SYN:
            self._handshake(copy)
            return
        if packet.flags & (FIN | RST):
            return
        self._completes(packet)
        flow = self.flows.get(packet.key)
        if flow:
            if flow.ended.get(packet.direction, packet.sequence) != packet.sequence:
                del flow.ended[packet.direction]
            # Twins by two uplinks: nobody can tell which of them it was.
            twins = [one for one in flow.inside if (one.direction, one.numbers) == (packet.direction, packet.numbers)]
            flow.copies[packet.direction] += [copy, *(replace(copy, packet=one) for one in twins)]

    def _handshake(self, copy: Copy) -> None:
        packet = copy.packet
        other = "workload" if packet.direction == "uplink" else "uplink"
        if packet.flags & ACK:
            answers = self.answers.get((packet.key, other, (packet.acknowledgement - 1) % 2**32))
            if answers is not None:
                answers[packet.sequence] = copy
        else:
            opening = packet.key, packet.direction, packet.sequence
            if opening in self.answers:
                self.answers[opening] = self.answers[opening] or {}

    def _completes(self, packet: Packet) -> None:
        """Admitted, also by the first data, and sent again: the SYN-ACK showed the other way."""
        answers = self.answers.get((packet.key, packet.direction, (packet.sequence - 1) % 2**32)) or {}
        copy = answers.get((packet.acknowledgement - 1) % 2**32)
        if copy:
            flow = self.flows.setdefault(packet.key, Flow())
            flow.ended.clear()
            flow.copies[copy.packet.direction].append(replace(copy, since=self.now))

    # -- what else happens -----------------------------------------------------------------------------------------

    def let_pass(self, seconds: float) -> None:
        self.now += seconds

    def set_mode(self, mode: str) -> None:
        """Each activation proves all ways anew."""
        self.mode = mode
        for flow in self.flows.values():
            flow.copies = {"uplink": [], "workload": []}
