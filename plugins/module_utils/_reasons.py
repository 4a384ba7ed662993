# SPDX-License-Identifier: GPL-3.0-or-later
"""Every reason that the datapath counts: the one list behind ``reasons.h``, the statistics and the documents.

``tools/generate`` writes ``reasons.h`` and the table in ``docs/datapath.md`` from it.
"""

from __future__ import annotations

# (name, what it means). The order is the order in the map `stats`.
REASONS: tuple[tuple[str, str], ...] = (
    # What the overlay did.
    ("to_workload", "redirected to the workload's interface"),
    ("to_uplink", "redirected to the uplink"),
    ("icmp_to_workload", "ICMP error about a known flow, redirected to the workload"),
    # Why a packet took the kernel's own path.
    ("not_ip", "neither IPv4 nor IPv6, or behind a VLAN tag"),
    ("not_tcp", "another protocol than TCP, or an IPv6 extension header before it"),
    ("malformed", "a header is truncated, has options, or contradicts itself"),
    ("fragment", "a fragment of a datagram"),
    ("not_service", "neither port is a listed service"),
    ("mode_off", "the mode is off"),
    ("lease_expired", "nobody confirmed the mode before its deadline"),
    ("other_host", "the frame was addressed to another host: the interface is promiscuous, or a switch flooded it"),
    ("draining", "a new flow while the mode is drain"),
    ("unknown_flow", "not a first packet, and its flow is not known: it began in the kernel's path"),
    ("not_workload", "the address is no workload of this node"),
    ("not_peer", "the other end is in none of the listed prefixes"),
    ("host_address", "the other end is an address of this very node"),
    ("same_node", "the other end is a workload of this node too"),
    ("spoofed", "the source address does not belong to the interface that the packet came from"),
    ("wrong_uplink", "the packet came in by another uplink than the way back to its source"),
    ("interface_gone", "the interface in the map is gone, replaced, or does not carry the overlay's program"),
    ("route_differs", "the kernel's routes lead elsewhere than the maps, or have a smaller MTU"),
    ("silent", "an earlier first packet to the same address got no answer through the overlay"),
    ("first_packet_repeated", "the first packet came again without an answer: the flow goes to the kernel's path"),
    ("ttl", "TTL or hop limit used up: the kernel answers"),
    ("too_big", "larger than the MTU of the way out: the kernel answers"),
    ("flows_full", "no room for one more flow"),
    # What became of flows.
    ("flow_opened", "a flow was made from its first packet"),
    ("flow_established", "the handshake of a flow was completed"),
    ("flow_renewed", "a first packet came for an established flow, which stays: its receiver knows what it means"),
    ("flow_closed", "an established flow ended: both ends sent FIN, or one sent RST"),
    ("flow_reset", "RST came for a flow that was being opened or was established"),
    (
        "flow_replaced",
        "an established flow was forgotten, because a first packet with its ports took the kernel's path",
    ),
    ("flow_swept", "an idle flow was removed to make room"),
    ("transient_removed", "an entry of `transient` was removed on purpose (the rest of the shrinkage is eviction)"),
)

DIRECTIONS = ("uplink", "workload")

# Index in the map `stats` -> label, such as "uplink.not_service".
LABELS: tuple[str, ...] = tuple(f"{direction}.{name}" for direction in DIRECTIONS for name, _ in REASONS)
