# SPDX-License-Identifier: GPL-3.0-or-later
"""The packets on which the programs are timed."""

from __future__ import annotations

import socket
import struct

FIN, SYN, RST, ACK = 1, 2, 4, 16
TTL = 255


def _sum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def _ip(source: str, destination: str, protocol: int, payload: bytes) -> bytes:
    if ":" in source:
        head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, TTL)
        return (
            head + socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination) + payload
        )
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    length = 20 + len(payload)
    head = struct.pack("!BBHHHBBH", 0x45, 0, length, 1, 0x4000, TTL, protocol, 0) + addresses
    return head[:10] + struct.pack("!H", _sum(head)) + head[12:] + payload


def _frame(mac: str, source: str, destination: str, protocol: int, payload: bytes) -> bytes:
    ethernet = bytes.fromhex(mac.replace(":", "")) + bytes(6) + (b"\x86\xdd" if ":" in source else b"\x08\x00")
    return ethernet + _ip(source, destination, protocol, payload)


def tcp(
    mac: str, source: tuple[str, int], destination: tuple[str, int], flags: int, data: bytes = b"",
    sequence: int = 2, acknowledgement: int = 2,
) -> bytes:  # fmt: skip
    """``mac``: the destination. The TCP checksum is left at zero: no program looks at it."""
    header = struct.pack("!HHIIBBHHH", source[1], destination[1], sequence, acknowledgement, 5 << 4, flags, 65535, 0, 0)
    return _frame(mac, source[0], destination[0], socket.IPPROTO_TCP, header + data)


def forwarded(frame: bytes) -> bytes:
    """What the kernel makes of it on its way through; the IPv4 checksum is not looked at."""
    at = 14 + (7 if frame[12:14] == b"\x86\xdd" else 8)
    return frame[:at] + bytes([frame[at] - 1]) + frame[at + 1 :]


def udp(mac: str, source: tuple[str, int], destination: tuple[str, int], data: bytes = b"x" * 13) -> bytes:
    header = struct.pack("!HHHH", source[1], destination[1], 8 + len(data), 0)
    return _frame(mac, source[0], destination[0], socket.IPPROTO_UDP, header + data)
