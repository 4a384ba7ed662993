# SPDX-License-Identifier: GPL-3.0-or-later
"""Entries of connections that never were, made by ctnetlink in this network namespace."""

from __future__ import annotations

import socket
import struct

from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import conntrack


def fill(count: int) -> None:
    """Make established entries, IPv4 and IPv6 by turns, some in a zone."""
    with conntrack._opened() as opened:
        assert conntrack._request_all(opened, [entry(number) for number in range(count)]) == count


def entry(number: int) -> bytes:
    """The request that makes an established entry (linux/netfilter/nfnetlink_conntrack.h)."""
    part, nest = conntrack._attribute, conntrack.NESTED
    size = (4, 16)[number % 2]
    one, other = struct.pack(">I", 0x0A000000 + number).rjust(size, b"\xfd"), bytes([10]).ljust(size, b"\1")

    def ends(kind: int, source: bytes, destination: bytes, ports: tuple[int, int]) -> bytes:
        first = {4: 1, 16: 3}[size]
        addresses = part(1 | nest, part(first, source) + part(first + 1, destination))
        protocol = part(1, bytes([socket.IPPROTO_TCP]))
        protocol += b"".join(part(2 + index, struct.pack(">H", port)) for index, port in enumerate(ports))
        return part(kind | nest, addresses + part(2 | nest, protocol))

    body = bytes([{4: socket.AF_INET, 16: socket.AF_INET6}[size], 0, 0, 0])
    body += ends(1, one, other, (1000, 80)) + ends(2, other, one, (80, 1000))
    body += part(3, struct.pack(">I", 0xE)) + part(7, struct.pack(">I", 600))  # status, timeout
    body += part(4 | nest, part(1 | nest, part(1, b"\3")))
    if number % 5 == 0:
        body += part(conntrack.CTA_ZONE, struct.pack(">H", 7))
    return conntrack._request(conntrack.CT_NEW, 0x400, body)  # NLM_F_CREATE
