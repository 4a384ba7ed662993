# SPDX-License-Identifier: GPL-3.0-or-later
"""What the datapath must do with one packet, said a second time: from the rules in words, with Python's libraries.

It knows the node that ``datapath.fill`` describes and the flows that a test has made there, nothing else.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from prog.packets import ACK, FIN, RST, SYN

PEERS = [ipaddress.ip_network(text) for text in
         ("198.18.0.12/32", "10.244.2.0/24", "fd00:198:18::12/128", "fd00:10:244:2::/64")]  # fmt: skip
OWN = [ipaddress.ip_address(text) for text in ("198.18.0.11", "fd00:198:18::11")]
WORKLOADS = {
    ipaddress.ip_address(address): name
    for address, name in (("10.244.1.10", "cali1"), ("10.244.1.11", "cali2"),
                          ("fd00:10:244:1::10", "cali1"), ("fd00:10:244:1::11", "cali2"))
}  # fmt: skip
SERVICE = 8080
MTU = 1500

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Tuple:
    workload: Address
    remote: Address
    workload_port: int
    remote_port: int


@dataclass(frozen=True)
class Known:
    """``state``: as in the maps; ``opened_by``: uplink or workload."""

    interface: str
    state: str
    opened_by: str


class Stays(Exception):  # noqa: N818 (an answer, not an error)
    """The packet keeps to the kernel's path; the argument is the reason."""


def judge(direction: str, interface: str, frame: bytes, flows: Mapping[Tuple, Known]) -> str:
    """The reason under which the packet must be counted. ``direction``: uplink or workload."""
    try:
        return _judge(direction, interface, frame, flows)
    except Stays as answer:
        return str(answer)


def _judge(direction: str, interface: str, frame: bytes, flows: Mapping[Tuple, Known]) -> str:
    ethertype = int.from_bytes(frame[12:14], "big")
    packet = frame[14:]
    if ethertype not in (0x0800, 0x86DD):
        raise Stays("not_ip")
    inbound = direction == "uplink"
    _plain(packet, 4 if ethertype == 0x0800 else 6, inbound)
    header, protocol, ttl, length, source, destination = (_ipv4 if ethertype == 0x0800 else _ipv6)(packet)
    if protocol == 6:
        one, flags, size = _tcp(packet, header, length, inbound, source, destination)
    else:
        one, flags, size = _icmp(packet, header, length, ethertype, destination), 0, length
    if isinstance(one.workload, ipaddress.IPv6Address) and one.workload.ipv4_mapped:
        raise Stays("malformed")
    if flags is None:
        raise Stays("malformed")
    if ttl <= 1:
        raise Stays("ttl")
    if flags & (SYN | ACK | RST | FIN) == SYN:
        return _first(one, inbound, interface, size, flows)
    known = flows.get(one)
    if known is None:
        raise Stays("unknown_flow")
    if not inbound and known.interface != interface:
        raise Stays("spoofed")
    if size > MTU:
        raise Stays("too_big")
    return "to_uplink" if not inbound else "to_workload" if flags else "icmp_to_workload"


def _plain(packet: bytes, family: int, inbound: bool) -> None:
    """What is told by the protocol and the ports alone, before anything else that may be wrong."""
    header, protocol = (20, packet[9:10]) if family == 4 else (40, packet[6:7])
    if len(packet) < header or (packet[0] != 0x45 if family == 4 else packet[0] >> 4 != 6):
        raise Stays("malformed")
    if family == 6 and protocol[0] == 44:
        raise Stays("fragment")
    if protocol[0] == 6:
        if len(packet) < header + 20:
            raise Stays("fragment" if family == 4 and _fragment(packet) else "malformed")
        if SERVICE not in struct.unpack_from("!HH", packet, header):
            raise Stays("not_service")
    elif protocol[0] != (1 if family == 4 else 58) or not inbound or len(packet) < 2 * header + 12:
        raise Stays("not_tcp")


def _fragment(packet: bytes) -> bool:
    return bool(int.from_bytes(packet[6:8], "big") & 0x3FFF)


def _ipv4(packet: bytes) -> tuple[int, int, int, int, Address, Address]:
    if _fragment(packet):
        raise Stays("fragment")
    length = int.from_bytes(packet[2:4], "big")
    if length > len(packet):
        raise Stays("malformed")
    return (20, packet[9], packet[8], length,
            ipaddress.IPv4Address(packet[12:16]), ipaddress.IPv4Address(packet[16:20]))  # fmt: skip


def _ipv6(packet: bytes) -> tuple[int, int, int, int, Address, Address]:
    length = 40 + int.from_bytes(packet[4:6], "big")
    if length > len(packet):
        raise Stays("malformed")
    return (40, packet[6], packet[7], length,
            ipaddress.IPv6Address(packet[8:24]), ipaddress.IPv6Address(packet[24:40]))  # fmt: skip


def _tcp(
    packet: bytes, header: int, length: int, inbound: bool, source: Address, destination: Address
) -> tuple[Tuple, int | None, int]:
    """The flags are None for those that no packet has."""
    source_port, destination_port = struct.unpack_from("!HH", packet, header)
    offset, flags = packet[header + 12] >> 4, packet[header + 13]
    one = (
        Tuple(destination, source, destination_port, source_port)
        if inbound
        else Tuple(source, destination, source_port, destination_port)
    )
    absurd = not flags or (flags & SYN and flags & (FIN | RST))
    if offset < 5 or length < header + 4 * offset or absurd:
        return one, None, length
    return one, flags, length


def _icmp(packet: bytes, header: int, length: int, ethertype: int, destination: Address) -> Tuple:
    source: Address
    target: Address
    quoted_header = header  # of the same family, without options
    whole = header + 8 + quoted_header + 4
    kind, quoted = packet[header], packet[header + 8 :]
    if kind not in ((3, 11, 12) if ethertype == 0x0800 else (1, 2, 3, 4)):
        raise Stays("not_tcp")
    if ethertype == 0x0800:
        right = quoted[0] == 0x45 and quoted[9] == 6 and not int.from_bytes(quoted[6:8], "big") & 0x1FFF
        source, target = (ipaddress.IPv4Address(quoted[at : at + 4]) for at in (12, 16))
        if source != destination:
            right = False
    else:
        right = quoted[0] >> 4 == 6 and quoted[6] == 6
        source, target = (ipaddress.IPv6Address(quoted[at : at + 16]) for at in (8, 24))
    if not right or length < whole:
        raise Stays("malformed")
    source_port, target_port = struct.unpack_from("!HH", quoted, quoted_header)
    if SERVICE not in (source_port, target_port):
        raise Stays("not_service")
    if source != destination:
        raise Stays("malformed")
    return Tuple(source, target, source_port, target_port)


def _first(one: Tuple, inbound: bool, interface: str, size: int, flows: Mapping[Tuple, Known]) -> str:
    if size > 576:
        raise Stays("too_big")
    home = WORKLOADS.get(one.workload)
    if not inbound and home != interface:
        raise Stays("spoofed")
    known = flows.get(one)
    if known and known.state in ("opening", "answered") and known.opened_by == ("uplink" if inbound else "workload"):
        raise Stays("first_packet_repeated")
    if (one.workload_port if inbound else one.remote_port) != SERVICE:
        raise Stays("not_service")
    if home is None:
        raise Stays("not_workload")
    if one.remote in WORKLOADS:
        raise Stays("spoofed" if inbound else "same_node")
    if one.remote in OWN:
        raise Stays("host_address")
    if not any(one.remote in network for network in PEERS if network.version == one.remote.version):
        raise Stays("not_peer")
    if inbound and interface != "ens47f1":
        raise Stays("wrong_uplink")
    return "to_workload" if inbound else "to_uplink"
