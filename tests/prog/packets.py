# SPDX-License-Identifier: GPL-3.0-or-later
"""Ethernet frames, byte by byte. Every length and checksum is right unless the caller says otherwise."""

from __future__ import annotations

import ipaddress
import struct
from typing import Any

FIN, SYN, RST, PSH, ACK, URG = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
ETHERNET = 14
TCP, FRAGMENT = 6, 44


def checksum(data: bytes) -> int:
    """RFC 1071, as a number in network byte order."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def ethernet(payload: bytes, ethertype: int, destination: str = "00:00:00:00:00:00") -> bytes:
    return mac(destination) + mac("02:00:00:00:00:fe") + struct.pack("!H", ethertype) + payload


def ipv4(
    source: str, destination: str, protocol: int, payload: bytes, *, ttl: int = 64, fragment: int = 0x4000,
    options: bytes = b"", length: int | None = None, identification: int = 0x1234, tos: int = 0,
) -> bytes:  # fmt: skip
    """``fragment``: flags and offset as in the header; the default is "don't fragment"."""
    words = 5 + len(options) // 4
    length = 4 * words + len(payload) if length is None else length
    head = struct.pack("!BBHHHBBH4s4s", 0x40 | words, tos, length, identification, fragment, ttl, protocol, 0,
                       packed(source), packed(destination)) + options  # fmt: skip
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def ipv6(
    source: str, destination: str, protocol: int, payload: bytes, *, ttl: int = 64, length: int | None = None,
    tos: int = 0,
) -> bytes:  # fmt: skip
    length = len(payload) if length is None else length
    return struct.pack("!IHBB16s16s", 6 << 28 | tos << 20 | 0x12345, length, protocol, ttl,
                       packed(source), packed(destination)) + payload  # fmt: skip


def tcp_segment(
    source: str, destination: str, source_port: int, destination_port: int, flags: int, payload: bytes = b"",
    *, sequence: int = 1000, acknowledgement: int = 2000, options: bytes = b"", offset: int | None = None,
) -> bytes:  # fmt: skip
    """``offset``: of the data, in words of four bytes."""
    offset = 5 + len(options) // 4 if offset is None else offset
    head = struct.pack("!HHIIBBHHH", source_port, destination_port, sequence % 2**32, acknowledgement % 2**32,
                       offset << 4, flags, 65535, 0, 0)  # fmt: skip
    segment = head + options + payload
    pseudo = packed(source) + packed(destination) + struct.pack("!II", TCP, len(segment))
    return segment[:16] + struct.pack("!H", checksum(pseudo + segment)) + segment[18:]


def ip(source: str, destination: str, protocol: int, payload: bytes, **more: Any) -> bytes:
    make = ipv6 if ":" in source else ipv4
    return make(source, destination, protocol, payload, **more)


def ethertype_of(packet: bytes) -> int:
    return 0x86DD if packet[0] >> 4 == 6 else 0x0800


def frame(packet: bytes, destination: str = "00:00:00:00:00:00") -> bytes:
    return ethernet(packet, ethertype_of(packet), destination)


def tcp(
    source: str, destination: str, source_port: int, destination_port: int, flags: int, payload: bytes = b"",
    *, ttl: int = 64, tos: int = 0, length: int | None = None, **more: Any,
) -> bytes:  # fmt: skip
    """An IP packet of either family; ``more``: as for the segment."""
    segment = tcp_segment(source, destination, source_port, destination_port, flags, payload, **more)
    return ip(source, destination, TCP, segment, ttl=ttl, tos=tos, length=length)


def ttl_of(packet: bytes) -> int:
    return packet[7 if packet[0] >> 4 == 6 else 8]


def forwarded(packet: bytes) -> bytes:
    """What a router makes of it: TTL one less, the IPv4 header's checksum right, or as wrong as it was."""
    data = bytearray(packet)
    if data[0] >> 4 == 6:
        data[7] -= 1
        return bytes(data)
    was_right = checksum(packet[:20]) == 0
    before = int.from_bytes(data[10:12], "big")
    data[8] -= 1
    data[10:12] = b"\0\0"
    after = checksum(bytes(data[:20])) if was_right else (before + 0x0100) % 0xFFFF
    data[10:12] = after.to_bytes(2, "big")
    return bytes(data)


def trimmed(packet: bytes) -> bytes:
    """Without what follows the IP packet in its frame, which the kernel cuts off (ip_rcv_core, ip6_rcv_core)."""
    ipv6 = packet[0] >> 4 == 6
    length = int.from_bytes(packet[4:6] if ipv6 else packet[2:4], "big")
    return packet[: length + 40 * ipv6] if length else packet  # BIG TCP says nothing


def with_tos(packet: bytes, tos: int) -> bytes:
    data = bytearray(packet)
    if data[0] >> 4 == 6:
        data[0], data[1] = 0x60 | tos >> 4, (tos & 15) << 4 | data[1] & 15
        return bytes(data)
    data[1] = tos
    data[10:12] = b"\0\0"
    data[10:12] = checksum(bytes(data[:20])).to_bytes(2, "big")
    return bytes(data)
