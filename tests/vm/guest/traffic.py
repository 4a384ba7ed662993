# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections between the workload and node 2, and which way their packets take through this node."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Sequence

from lab.api import Endpoint
from lab.cluster import HTTP_PORT

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.layout import PIN_DIR

from .modules import expect, run
from .network import Network

FAST = ("uplink.to_workload", "workload.to_uplink")
START_AND_END = 3  # packets of a connection that reach FORWARD whatever else shortens its way
BULK = 3_000_000  # bytes: enough for segments of 64 KiB


def ways(network: Network, families: Sequence[int] = (4, 6)) -> list[tuple[Endpoint, str]]:
    """Client and server address: flows that are opened from the uplink and by the workload, of these families."""
    workload, remote = network.workload, network.peer
    return [
        (client, address)
        for client, server in ((remote, workload), (workload, remote))
        for address in (server.ipv4 if family == 4 else server.ipv6 for family in families)
    ]


def fast_path(network: Network, families: Sequence[int] = (4, 6)) -> None:
    """The overlay carries most packets of a connection, and the kernel keeps it: its handshake, its end and the
    heartbeats go through the packet filter, conntrack knows it and finds nothing INVALID.
    """
    for client, address in ways(network, families):
        before, forwarded, invalid = stats(), seen(network, "forwarded"), seen(network, "invalid")
        port = exchange(client, address)
        grown = {key: value - before.get(key, 0) for key, value in stats().items() if value != before.get(key, 0)}
        what = f"{client.name} to {address}, counted {grown}: "
        expect(all(grown.get(name, 0) > 10 for name in FAST), f"{what}the overlay does not carry it")
        kept, carried = seen(network, "forwarded") - forwarded, sum(grown.get(name, 0) for name in FAST)
        least = START_AND_END if network.wiring.offloaded else 6
        expect(least <= kept < carried, f"{what}FORWARD saw {kept} packets, and the overlay carried {carried}")
        expect(seen(network, "invalid") == invalid, f"{what}{seen(network, 'invalid') - invalid} were INVALID")
        expect(tracked(port), f"{what}conntrack does not know the connection")


def kernel_path(network: Network, families: Sequence[int] = (4, 6)) -> None:
    """The packet filter sees every packet, and the overlay redirects none."""
    for client, address in ways(network, families):
        before, forwarded = stats(), seen(network, "forwarded")
        exchange(client, address)
        after = stats()
        what = f"{client.name} to {address}: "
        expect(all(after.get(name, 0) == before.get(name, 0) for name in FAST), f"{what}the overlay redirects: {after}")
        least = START_AND_END if network.wiring.offloaded else 10
        expect(seen(network, "forwarded") >= forwarded + least, f"{what}FORWARD did not see it")


def exchange(client: Endpoint, address: str) -> int:
    """A few small answers and a big one over one connection, to its end; returns the client's port."""
    with client.connect(address, HTTP_PORT, 30) as connection:
        for __ in range(5):
            ask(connection)
        ask(connection, BULK)
        port = int(connection.getsockname()[1])
        connection.shutdown(socket.SHUT_WR)
        expect(connection.recv(1) == b"", "the server went on after the end")
    return port


def ask(connection: socket.socket, length: int = 100) -> None:
    """Request so many bytes from the server, and get them."""
    connection.sendall(f"GET /bytes/{length} HTTP/1.1\r\nHost: matrix\r\n\r\n".encode())
    answer = bytearray()
    while b"\r\n\r\n" not in answer or len(answer) < answer.index(b"\r\n\r\n") + 4 + length:
        chunk = connection.recv(1 << 20)
        expect(chunk, f"the connection ended after {len(answer)} bytes")
        answer += chunk


def retransmitted(connection: socket.socket) -> int:
    """Segments that this end has sent again (tcpi_total_retrans of struct tcp_info)."""
    told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return int.from_bytes(told[100:104], sys.byteorder)


def stats() -> dict[str, int]:
    """Packets by direction and reason."""
    entries = run("bpf_map_info", map=f"{PIN_DIR}/stats")["entries"]
    return {str(entry["key"]): int(entry["value"]["packets"]) for entry in entries}


def seen(network: Network, counter: str) -> int:
    """Packets that the packet filter counted: ``forwarded``, ``invalid`` and so on (see lab.filterrules)."""
    return network.node.nft_counter(counter).packets


def tracked(port: int) -> bool:
    """Whether conntrack knows a connection whose client has this port."""
    for family in ("ipv4", "ipv6"):
        command = ["conntrack", "-L", "-f", family, "-p", "tcp", "--sport", str(port)]
        if f"sport={port} " in subprocess.run(command, capture_output=True, text=True, check=True).stdout:
            return True
    return False
