# SPDX-License-Identifier: GPL-3.0-or-later
"""A node: the datapath's hooks, and between them a kernel that forwards as it is told.

What passes an ingress hook is forwarded and shown to the egress hook where it comes out. What an ingress hook redirects
is shown to the egress hook of its interface too, as the kernel does, unless it went straight to the workload.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from prog import packets
from prog.datapath import Datapath, Result
from prog.packets import ETHERNET, ethertype_of, forwarded, mac, trimmed, ttl_of

UPLINK, WORKLOAD = "uplink", "workload"  # where a packet comes from
POD, NEXT_HOP, OTHER_HOP = "0e:00:00:00:00:10", "02:00:00:00:02:12", "02:00:00:00:02:13"


def other(direction: str) -> str:
    return WORKLOAD if direction == UPLINK else UPLINK


@dataclass(frozen=True)
class Handling:
    """What the kernel does with packets of one direction. ``change``: IP packet in, IP packet out; None drops it."""

    interface: str
    destination: str
    mark: int = 0
    priority: int = 0
    change: Callable[[bytes], bytes | None] = forwarded
    source: str = ""
    """MAC; that of the interface by itself."""


@dataclass(frozen=True)
class Left:
    """A frame at the egress hook of ``interface``."""

    interface: str
    frame: bytes
    mark: int
    priority: int
    gso_size: int = 0


@dataclass
class Trip:
    """One packet. ``inside``: the kernel has it, and has not let it out yet."""

    node: Node
    direction: str
    result: Result
    out: Left | None = None
    """As it came out by the kernel's path."""
    interface: str = ""
    """Where it was redirected to; none, if straight to the workload."""
    watched: Result | None = None
    inside: Callable[[], None] = field(default=lambda: None)

    @property
    def fast(self) -> bool:
        return self.result.redirected

    @property
    def straight(self) -> bool:
        return self.fast and not self.interface

    @property
    def reason(self) -> str:
        return self.result.reason

    @property
    def events(self) -> dict[str, int]:
        return {**self.result.events, **(self.watched.events if self.watched else {})}


class Node:
    def __init__(self, overlay: Datapath) -> None:
        self.overlay = overlay
        self.kernel = {
            UPLINK: Handling("cali1", POD),
            WORKLOAD: Handling("ens47f1", NEXT_HOP),
        }

    def does(self, handling: Handling, packet: bytes, gso_size: int = 0) -> Left | None:
        """What the kernel makes of an IP packet."""
        changed = handling.change(trimmed(packet)) if ttl_of(packet) > 1 else None
        if changed is None:
            return None
        source = handling.source or self.overlay.interfaces[handling.interface].mac
        head = mac(handling.destination) + mac(source) + ethertype_of(changed).to_bytes(2, "big")
        return Left(handling.interface, head + changed, handling.mark, handling.priority, gso_size)

    def take(self, direction: str, packet: bytes, interface: str = "", *, gso_size: int = 0, mark: int = 0) -> Trip:
        """It goes in; ``inside()`` of the answer lets it come out where the kernel wants it by then."""
        interface = interface or ("ens47f1" if direction == UPLINK else "cali1")
        frame = packets.frame(packet, self.overlay.interfaces[interface].mac)
        return self.take_frame(direction, frame, interface, gso_size=gso_size, mark=mark)

    def take_frame(self, direction: str, frame: bytes, interface: str, *, gso_size: int = 0, mark: int = 0) -> Trip:
        result = self.overlay.run(f"from_{direction}", frame, interface, gso_size=gso_size, mark=mark)
        trip = Trip(self, direction, result)
        if result.redirected:
            trip.interface = self._crosses(direction, result, gso_size)
            return trip
        assert (result.verdict, result.data) == (-1, frame), "nobody changes what the kernel gets"

        def come_out() -> None:
            out = self.does(self.kernel[direction], frame[ETHERNET:], gso_size)
            if out:
                trip.out = out
                trip.watched = self.shown(out)

        trip.inside = come_out
        return trip

    def send(self, direction: str, packet: bytes, interface: str = "", **more: Any) -> Trip:
        trip = self.take(direction, packet, interface, **more)
        trip.inside()
        return trip

    def shown(self, out: Left) -> Result:
        """At the egress hook of its interface, which changes nothing ever."""
        program = "to_workload" if out.interface.startswith("cali") else "to_uplink"
        result = self.overlay.run(
            program, out.frame, out.interface, gso_size=out.gso_size, mark=out.mark, priority=out.priority
        )
        assert (result.verdict, result.data, result.mark, result.priority) == (
            -1, out.frame, out.mark, out.priority,
        ), "an egress hook only looks"  # fmt: skip
        assert not any(result.bytes.values())
        return result

    def _crosses(self, direction: str, result: Result, gso_size: int) -> str:
        """A redirected packet meets the egress hook of its interface, and proves nothing there."""
        names = {interface.ifindex: name for name, interface in self.overlay.interfaces.items()}
        found = [names[number] for number in self.overlay.crossings() if number]
        if not found:
            assert direction == UPLINK, "only a workload can be reached without its interface"
            return ""
        out = Left(found[0], result.data, result.mark, result.priority, gso_size)
        assert self.shown(out).counted == {}, "a fast packet proves a way"
        assert not any(self.overlay.crossings())
        return found[0]
