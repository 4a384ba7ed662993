# SPDX-License-Identifier: GPL-3.0-or-later
"""Raw frames: sent from any interface of the lab, and caught on any other."""

from __future__ import annotations

import contextlib
import ipaddress
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from lab import namespace
from lab.api import Endpoint
from prog import packets

ETH_P_ALL = 0x0003
GATEWAY_MAC = "ee:ee:ee:ee:ee:ee"


@dataclass(frozen=True)
class Seen:
    """A TCP packet that an interface received: what matters of it. ``kind``: PACKET_HOST, PACKET_OTHERHOST, …"""

    destination_mac: str
    source: str
    destination: str
    ttl: int
    source_port: int
    destination_port: int
    kind: int
    tos: int


def packet_socket(endpoint: Endpoint, interface: str, protocol: int = ETH_P_ALL) -> socket.socket:
    opened = endpoint.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
    with namespace.entered(endpoint.name):
        opened.bind((interface, protocol))
    return opened


def send(endpoint: Endpoint, interface: str, frames: list[bytes]) -> None:
    """Put frames on the wire as they are."""
    with packet_socket(endpoint, interface, 0) as out:
        for frame in frames:
            out.send(frame)


def ethernet(packet: bytes, destination: str, source: str, vlan: int | None = None) -> bytes:
    tag = struct.pack("!HH", 0x8100, vlan) if vlan is not None else b""
    kind = struct.pack("!H", packets.ethertype_of(packet))
    return packets.mac(destination) + packets.mac(source) + tag + kind + packet


def parse(frame: bytes, kind: int) -> Seen | None:
    """None for anything but TCP over IP without options."""
    ethertype = struct.unpack_from("!H", frame, 12)[0]
    if ethertype == 0x0800 and frame[14] == 0x45 and frame[23] == packets.TCP:
        ttl, tos, ports = frame[22], frame[15], 34
        source, destination = (ipaddress.ip_address(frame[at : at + 4]) for at in (26, 30))
    elif ethertype == 0x86DD and frame[20] == packets.TCP:
        ttl, tos, ports = frame[21], (frame[14] & 15) << 4 | frame[15] >> 4, 54
        source, destination = (ipaddress.ip_address(frame[at : at + 16]) for at in (22, 38))
    else:
        return None
    source_port, destination_port = struct.unpack_from("!HH", frame, ports)
    return Seen(frame[:6].hex(":"), str(source), str(destination), ttl, source_port, destination_port, kind, tos)


@contextlib.contextmanager
def caught(endpoint: Endpoint, interface: str) -> Iterator[list[Seen]]:
    """The TCP packets that the interface receives during the block, and shortly after it."""
    seen: list[Seen] = []
    done = threading.Event()
    with packet_socket(endpoint, interface) as listener:

        def listen() -> None:
            while not done.is_set():
                while not done.is_set() and select.select([listener], [], [], 0.05)[0]:
                    frame, (__, __, kind, __, __) = listener.recvfrom(65536)
                    found = parse(frame, kind) if kind != socket.PACKET_OUTGOING else None
                    if found:
                        seen.append(found)

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield seen
            time.sleep(0.1)
        finally:
            done.set()
            thread.join()
