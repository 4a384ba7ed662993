# SPDX-License-Identifier: GPL-3.0-or-later
"""Carries packets between a tun device and those of other nodes, one packet in one datagram.

Runs as a script (``tunnel_carrier.py DEVICE ADDRESS WAYS``) with nothing but the standard library. ADDRESS is the
node's own, WAYS says in JSON which prefix is behind which node.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import select
import socket
import struct
import sys

PORT = 51820  # WireGuard's
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h; Python does not name it
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


def attach(device: str) -> int:
    """The file descriptor of a tun device that is there. Raises OSError."""
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TUN | _IFF_NO_PI))
    return tun


def destination(packet: bytes) -> bytes:
    return packet[16:20] if packet[0] >> 4 == 4 else packet[24:40]


def main(device: str, address: str, ways: dict[str, str]) -> None:
    """For good."""
    tun = attach(device)
    carrier = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    carrier.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
    carrier.bind((address, PORT))
    carrier.setblocking(False)
    networks = [(ipaddress.ip_network(prefix), node) for prefix, node in ways.items()]
    known: dict[bytes, str] = {}
    while True:
        for ready in select.select([tun, carrier.fileno()], [], [])[0]:
            try:
                if ready == carrier.fileno():
                    os.write(tun, carrier.recv(65536))
                    continue
                packet = os.read(tun, 65536)
                key = destination(packet)
                if key not in known:
                    address_there = ipaddress.ip_address(key)
                    known[key] = next((node for network, node in networks if address_there in network), "")
                if known[key]:
                    carrier.sendto(packet, (known[key], PORT))
            except OSError as error:
                print(f"a packet was lost: {error}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
