# SPDX-License-Identifier: GPL-3.0-or-later
"""The packets of one connection, in either family, and the way to tell what a program did to one of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from prog.datapath import Datapath, Result
from prog.packets import ACK, ETHERNET, FIN, RST, SYN, checksum, tcp


@dataclass(frozen=True)
class Connection:
    """Between ``workload`` (this node's) and ``remote``. ``server``: the workload serves, the remote end opened it."""

    workload: str
    remote: str
    other: str
    """Another workload of this node."""
    node: str
    """An address of the node itself."""
    peer_node: str
    outside: str
    """Nobody's: no workload, no peer."""
    server: bool = True
    service: int = 8080
    port: int = 40000
    """Of the end that opened the connection."""

    @property
    def family(self) -> int:
        return 6 if ":" in self.workload else 4

    @property
    def ports(self) -> tuple[int, int]:
        """(workload's, remote's)"""
        return (self.service, self.port) if self.server else (self.port, self.service)

    def inbound(self, flags: int, payload: bytes = b"", **more: Any) -> bytes:
        """From the remote end to the workload."""
        workload_port, remote_port = self.ports
        return tcp(self.remote, self.workload, remote_port, workload_port, flags, payload, **more)

    def outbound(self, flags: int, payload: bytes = b"", **more: Any) -> bytes:
        workload_port, remote_port = self.ports
        return tcp(self.workload, self.remote, workload_port, remote_port, flags, payload, **more)

    # What the end that opens it sends, and what the other one answers, through the right program.

    def opener(self, overlay: Datapath, flags: int, payload: bytes = b"", *, gso_size: int = 0, **more: Any) -> Result:
        if self.server:
            return overlay.uplink(self.inbound(flags, payload, **more), gso_size=gso_size)
        return overlay.workload(self.outbound(flags, payload, **more), gso_size=gso_size)

    def answerer(self, overlay: Datapath, flags: int, payload: bytes = b"", **more: Any) -> Result:
        return self.but(server=not self.server, service=self.port, port=self.service).opener(
            overlay, flags, payload, **more
        )

    def open(self, overlay: Datapath) -> Result:
        return expect_redirect(self.opener(overlay, SYN))

    def answer(self, overlay: Datapath) -> None:
        self.open(overlay)
        expect_redirect(self.answerer(overlay, SYN | ACK))

    def establish(self, overlay: Datapath) -> None:
        self.answer(overlay)
        expect_redirect(self.opener(overlay, ACK))
        assert self.in_flows(overlay)

    def close(self, overlay: Datapath) -> None:
        self.establish(overlay)
        expect_redirect(self.opener(overlay, FIN | ACK))
        expect_redirect(self.answerer(overlay, FIN | ACK))

    def reset(self, overlay: Datapath) -> None:
        self.establish(overlay)
        expect_redirect(self.opener(overlay, RST))

    def in_flows(self, overlay: Datapath) -> Any:
        return overlay.flow("flows", self.workload, self.remote, *self.ports)

    def in_transient(self, overlay: Datapath) -> Any:
        return overlay.flow("transient", self.workload, self.remote, *self.ports)

    def but(self, **changes: Any) -> Connection:
        return replace(self, **changes)


IPV4 = Connection("10.244.1.10", "10.244.2.10", "10.244.1.11", "198.18.0.11", "198.18.0.12", "203.0.113.7")
IPV6 = Connection(
    "fd00:10:244:1::10", "fd00:10:244:2::10", "fd00:10:244:1::11", "fd00:198:18::11", "fd00:198:18::12", "2001:db8::7"
)
BOTH = (IPV4, IPV6)


def forwarded(frame: bytes) -> bytes:
    """What a router makes of it: TTL one less, the IPv4 header's checksum right, or as wrong as it was."""
    head, packet = frame[:ETHERNET], bytearray(frame[ETHERNET:])
    if packet[0] >> 4 == 6:
        packet[7] -= 1
        return head + bytes(packet)
    was_right = checksum(bytes(packet[:20])) == 0
    before = int.from_bytes(packet[10:12], "big")
    packet[8] -= 1
    packet[10:12] = b"\0\0"
    after = checksum(bytes(packet[:20])) if was_right else (before + 0x0100) % 0xFFFF
    packet[10:12] = after.to_bytes(2, "big")
    return head + bytes(packet)


def expect_redirect(result: Result) -> Result:
    assert result.redirected, result.counted
    assert result.reason in ("to_workload", "to_uplink", "icmp_to_workload")
    assert result.data == forwarded(result.sent)
    return result


def expect_pass(result: Result, reason: str) -> Result:
    assert result.verdict == -1, result.counted
    assert result.reason == reason
    assert result.data == result.sent
    return result
