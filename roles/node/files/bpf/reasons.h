/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Written by tools/generate from plugins/module_utils/_reasons.py. */
#pragma once

enum reason {
	REASON_to_workload, /* redirected to the workload's interface */
	REASON_to_uplink, /* redirected to the uplink */
	REASON_icmp_to_workload, /* ICMP error about a known flow, redirected to the workload */
	REASON_not_ip, /* neither IPv4 nor IPv6, or behind a VLAN tag */
	REASON_not_tcp, /* another protocol than TCP, or an IPv6 extension header before it */
	REASON_malformed, /* a header is truncated, has options, or contradicts itself */
	REASON_fragment, /* a fragment of a datagram */
	REASON_not_service, /* neither port is a listed service */
	REASON_mode_off, /* the mode is off */
	REASON_lease_expired, /* nobody confirmed the mode before its deadline */
	REASON_other_host, /* the frame was addressed to another host: the interface is promiscuous, or a switch flooded it */
	REASON_draining, /* a new flow while the mode is drain */
	REASON_unknown_flow, /* not a first packet, and its flow is not known: it began in the kernel's path */
	REASON_not_workload, /* the address is no workload of this node */
	REASON_not_peer, /* the other end is in none of the listed prefixes */
	REASON_host_address, /* the other end is an address of this very node */
	REASON_same_node, /* the other end is a workload of this node too */
	REASON_spoofed, /* the source address does not belong to the interface that the packet came from */
	REASON_wrong_uplink, /* the packet came in by another uplink than the way back to its source */
	REASON_interface_gone, /* the interface in the map is gone, replaced, or does not carry the overlay's program */
	REASON_route_differs, /* the kernel's routes lead elsewhere than the maps, or have a smaller MTU */
	REASON_silent, /* an earlier first packet to the same address got no answer through the overlay */
	REASON_first_packet_repeated, /* the first packet came again without an answer: the flow goes to the kernel's path */
	REASON_ttl, /* TTL or hop limit used up: the kernel answers */
	REASON_too_big, /* larger than the MTU of the way out: the kernel answers */
	REASON_flows_full, /* no room for one more flow */
	REASON_flow_opened, /* a flow was made from its first packet */
	REASON_flow_established, /* the handshake of a flow was completed */
	REASON_flow_renewed, /* a first packet came for an established flow, which stays: its receiver knows what it means */
	REASON_flow_closed, /* an established flow ended: both ends sent FIN, or one sent RST */
	REASON_flow_reset, /* RST came for a flow that was being opened or was established */
	REASON_flow_replaced, /* an established flow was forgotten, because a first packet with its ports took the kernel's path */
	REASON_flow_swept, /* an idle flow was removed to make room */
	REASON_transient_removed, /* an entry of `transient` was removed on purpose (the rest of the shrinkage is eviction) */
	REASON_COUNT
};
