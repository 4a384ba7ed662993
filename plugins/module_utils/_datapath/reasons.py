# SPDX-License-Identifier: GPL-3.0-or-later
"""Every reason that the datapath counts: the one list behind ``reasons.h``, the statistics and the documents.

``tools/generate`` writes ``reasons.h`` and the table in ``docs/datapath.md`` from it.
"""

from __future__ import annotations

# Number -> (name, what it means). A number is given once: append, and move to RETIRED what is not counted any more.
REASONS: dict[int, tuple[str, str]] = {
    # What the overlay did.
    0: ("to_workload", "sent straight to the workload's interface"),
    1: ("to_uplink", "sent straight to the uplink"),
    # Why a packet took the kernel's own path.
    2: ("not_ip", "neither IPv4 nor IPv6, or behind a VLAN tag"),
    3: ("not_tcp", "another protocol than TCP, or an IPv6 extension header before it"),
    4: ("malformed", "a header is truncated, has options, or contradicts itself"),
    5: ("fragment", "a fragment of a datagram"),
    6: ("not_service", "neither port is a listed service"),
    7: ("lease_expired", "nobody confirmed the mode before its deadline"),
    8: ("other_host", "the frame was addressed to another host: the interface is promiscuous, or a switch flooded it"),
    9: ("ttl", "TTL or hop limit used up: the kernel answers"),
    10: ("exempt", "the mark says that the packet stays with the kernel"),
    11: ("handshake", "SYN, SYN-ACK, or the ACK that completes a handshake: always the kernel's way"),
    12: ("ending", "FIN or RST: always the kernel's way"),
    13: ("heartbeat", "the packet that asks the kernel for the way anew"),
    14: ("waiting", "a heartbeat is under way: until it comes out, the others follow it"),
    15: ("unknown_flow", "its connection was not admitted: it is older than the overlay, translated, or not eligible"),
    16: ("unproven", "the way is tried by another flow first, or data was lost on it a moment ago"),
    17: ("interface_gone", "the interface on the way is gone, or does not carry the overlay's program"),
    18: ("spoofed", "the source address does not belong to the interface that the packet came from"),
    19: ("draining", "a new connection while the mode is drain"),
    20: ("not_workload", "the address is no workload of this node"),
    21: ("same_node", "the other end is a workload of this node too"),
    22: ("not_peer", "the other end is in none of the listed prefixes"),
    23: ("host_address", "the other end is an address of this very node"),
    # How far handshakes came: each was seen going in, and coming out as it must.
    32: ("syn_in", "the SYN of an eligible connection went in"),
    33: ("syn_out", "it came out, forwarded and otherwise unchanged"),
    34: ("answer_in", "its SYN-ACK went in"),
    35: ("answer_out", "the SYN-ACK came out"),
    36: ("ack_in", "the ACK that completes the handshake went in"),
    37: ("admitted", "the ACK came out: a flow"),
    # What became of flows.
    48: ("renewed", "a heartbeat came out"),
    49: ("way_changed", "a heartbeat came out elsewhere, or with another frame: the flow follows it"),
    50: ("suspended", "two heartbeats in a row did not come out: all of the flow takes the kernel's path until two do"),
    51: ("way_proven", "data that went a new way was acknowledged"),
    52: ("way_broken", "data that went a new way was lost before any was acknowledged: left alone for a while"),
    53: ("finished", "FIN of a flow came out"),
    54: ("reset", "RST of a flow came out"),
}

PASSED, EVENTS = 2, 32  # where the packets that took the kernel's path begin, and what is no packet

# Numbers that must not be given again.
RETIRED: frozenset[int] = frozenset()

DIRECTIONS = ("uplink", "workload")
STRIDE = 256  # numbers of a direction in the map `stats`: room for years

# Index in the map `stats` -> label, such as "uplink.not_service"; for a number without a reason, "uplink.24".
LABELS: tuple[str, ...] = tuple(
    f"{direction}.{REASONS[number][0] if number in REASONS else number}"
    for direction in DIRECTIONS
    for number in range(STRIDE)
)
