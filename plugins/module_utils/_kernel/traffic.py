# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel hangs on traffic-control hooks: qdiscs, filters, TCX links, and the names that ours have. Pure.

A *hook* is one direction of one interface. On it run, in this order: TCX links, then the filters of the clsact (or
ingress) qdisc by ascending priority.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

INGRESS = "ingress"
EGRESS = "egress"
DIRECTIONS = (INGRESS, EGRESS)
CLSACT = "clsact"
TCX = "tcx"
PROTOCOL_ALL = 3
"""ETH_P_ALL, host byte order. The kernel's record holds it in network byte order; only the wrappers convert."""

Hook = tuple[int, str]
"""(ifindex, direction)."""


@dataclass(frozen=True)
class Qdisc:
    """A qdisc. ``clsact`` has hooks for filters in both directions, ``ingress`` in one; a block number other than 0
    means that these filters are shared with other interfaces."""

    ifindex: int
    kind: str
    ingress_block: int = 0
    egress_block: int = 0
    handle: int = 0
    parent: int = 0

    @property
    def has_hooks(self) -> bool:
        return self.kind in (CLSACT, "ingress")

    def serves(self, direction: str) -> bool:
        return self.kind == CLSACT or direction == INGRESS

    def block(self, direction: str) -> int:
        return self.ingress_block if direction == INGRESS else self.egress_block


@dataclass(frozen=True)
class Filter:
    """A filter of a clsact or ingress qdisc. ``handle`` 0: no filter, but the list of a priority's filters."""

    ifindex: int
    direction: str
    priority: int
    handle: int
    protocol: int = PROTOCOL_ALL
    chain: int = 0
    kind: str = "bpf"
    name: str = ""
    program_id: int | None = None
    tag: str = ""
    direct_action: bool = False
    has_actions: bool = False
    skips_software: bool = False
    continues: bool = False
    """No packet's way ends here: its only action is ``continue``, or it is no filter but a hash table of u32."""

    @property
    def hook(self) -> Hook:
        return self.ifindex, self.direction


@dataclass(frozen=True)
class Link:
    """A TCX link on a hook. ``pin`` and ``program`` (its name) are set only for links of the owner that looks.

    ``neighbour``: of another owner who attaches through this collection, and so wants to be last as well: among these
    whoever came first stays first, or each run of one would move the others.
    """

    ifindex: int
    direction: str
    id: int
    program_id: int
    pin: str = ""
    program: str = ""
    neighbour: bool = False

    @property
    def hook(self) -> Hook:
        return self.ifindex, self.direction


def filter_name(owner: str, program: str) -> str:
    return f"{owner}:{program}"


def place_of(interface: str, direction: str, priority: int, handle: int, protocol: int = PROTOCOL_ALL) -> str:
    """A filter's place, for people; all filters of a priority are for one protocol."""
    told = "" if protocol == PROTOCOL_ALL else f", protocol {protocol:#06x}"
    return f"filter on {interface} {direction}, priority {priority}, handle {handle:#x}{told}"


def owner_of(name: str) -> str | None:
    """``ebpf.overlay:from_uplink`` -> ``ebpf.overlay``; None for a name that does not say who owns it.

    tc(8) gives names such as ``overlay.o:[classifier]`` and ``pin:[*fsobj]``: a file and a section, no owner.
    """
    owner, _colon, program = name.partition(":")
    return owner if owner and program and not program.startswith("[") else None


def program_of(name: str) -> str:
    return name.partition(":")[2]


def escape(text: str) -> str:
    """A form of ``text`` that a bpffs takes as a name (no dots) and that differs for different texts.

    Bytes other than letters and digits become ``_`` and two hexadecimal digits; "-" stays free as a separator.
    """
    return re.sub(rb"[^A-Za-z0-9]", lambda found: b"_%02x" % found.group()[0], os.fsencode(text)).decode("ascii")


def unescape(text: str) -> str:
    raw = re.sub(rb"_([0-9a-f]{2})", lambda found: bytes([int(found.group(1), 16)]), os.fsencode(text))
    return os.fsdecode(raw)


def link_pin_name(
    namespace: str, ifindex: int, interface: str, direction: str, program: str, second: bool = False
) -> str:
    """The name of a TCX link's pin in the owner's folder.

    The ifindex tells renamed interfaces apart; one bpffs can be visible in several namespaces. ``second``: for a link
    that is made while an older one still has the first name.
    """
    parts = [escape(namespace), str(ifindex), escape(interface), direction, *(["2"] if second else []), escape(program)]
    return "-".join(parts)


def program_of_link_pin(name: str) -> str:
    return unescape(name.rsplit("-", 1)[-1])
