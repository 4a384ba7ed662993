# SPDX-License-Identifier: GPL-3.0-or-later
"""Ethernet frames, byte by byte. Every length and checksum is right unless the caller says otherwise."""

from __future__ import annotations

import ipaddress
import struct

FIN, SYN, RST, PSH, ACK, URG = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
ETHERNET = 14
TCP, ICMP, ICMPV6, FRAGMENT = 6, 1, 58, 44


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
    options: bytes = b"", length: int | None = None, identification: int = 0x1234,
) -> bytes:  # fmt: skip
    """``fragment``: flags and offset as in the header; the default is "don't fragment"."""
    words = 5 + len(options) // 4
    length = 4 * words + len(payload) if length is None else length
    head = struct.pack("!BBHHHBBH4s4s", 0x40 | words, 0, length, identification, fragment, ttl, protocol, 0,
                       packed(source), packed(destination)) + options  # fmt: skip
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def ipv6(
    source: str, destination: str, protocol: int, payload: bytes, *, ttl: int = 64, length: int | None = None
) -> bytes:
    length = len(payload) if length is None else length
    return struct.pack("!IHBB16s16s", 6 << 28 | 0x12345, length, protocol, ttl,
                       packed(source), packed(destination)) + payload  # fmt: skip


def tcp_segment(
    source: str, destination: str, source_port: int, destination_port: int, flags: int, payload: bytes = b"",
    *, options: bytes = b"", offset: int | None = None,
) -> bytes:  # fmt: skip
    """``offset``: of the data, in words of four bytes."""
    offset = 5 + len(options) // 4 if offset is None else offset
    head = struct.pack("!HHIIBBHHH", source_port, destination_port, 1000, 2000, offset << 4, flags, 65535, 0, 0)
    segment = head + options + payload
    pseudo = packed(source) + packed(destination) + struct.pack("!II", TCP, len(segment))
    return segment[:16] + struct.pack("!H", checksum(pseudo + segment)) + segment[18:]


def ip(source: str, destination: str, protocol: int, payload: bytes, *, ttl: int = 64) -> bytes:
    make = ipv6 if ":" in source else ipv4
    return make(source, destination, protocol, payload, ttl=ttl)


def ethertype_of(packet: bytes) -> int:
    return 0x86DD if packet[0] >> 4 == 6 else 0x0800


def frame(packet: bytes, destination: str = "00:00:00:00:00:00") -> bytes:
    return ethernet(packet, ethertype_of(packet), destination)


def tcp(
    source: str, destination: str, source_port: int, destination_port: int, flags: int, payload: bytes = b"",
    *, ttl: int = 64, options: bytes = b"",
) -> bytes:  # fmt: skip
    """An IP packet of either family."""
    segment = tcp_segment(source, destination, source_port, destination_port, flags, payload, options=options)
    return ip(source, destination, TCP, segment, ttl=ttl)


def icmp_error(
    source: str, quoted: bytes, *, kind: int | None = None, code: int = 0, ttl: int = 64, to: str | None = None,
    quote: int = 8,
) -> bytes:  # fmt: skip
    """An ICMP or ICMPv6 error about ``quoted``, sent to its source (or ``to``).

    By default "packet too big". ``quote``: bytes of the quoted packet behind its IP header.
    """
    if quoted[0] >> 4 == 6:
        target = to or str(ipaddress.IPv6Address(quoted[8:24]))
        body = struct.pack("!BBHI", 2 if kind is None else kind, code, 0, 1280) + quoted[: 40 + quote]
        pseudo = packed(source) + packed(target) + struct.pack("!II", len(body), ICMPV6)
        body = body[:2] + struct.pack("!H", checksum(pseudo + body)) + body[4:]
        return ipv6(source, target, ICMPV6, body, ttl=ttl)
    target = to or str(ipaddress.IPv4Address(quoted[12:16]))
    kind, code = (3, 4) if kind is None else (kind, code)
    body = struct.pack("!BBHI", kind, code, 0, 1280) + quoted[: 20 + quote]
    body = body[:2] + struct.pack("!H", checksum(body)) + body[4:]
    return ipv4(source, target, ICMP, body, ttl=ttl)
