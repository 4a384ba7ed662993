/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Written by tools/generate from plugins/module_utils/_reasons.py. */
#pragma once

#define REASONS_STRIDE 256

enum reason {
	REASON_to_workload = 0, /* sent straight to the workload's interface */
	REASON_to_uplink = 1, /* sent straight to the uplink */
	REASON_not_ip = 2, /* neither IPv4 nor IPv6, or behind a VLAN tag */
	REASON_not_tcp = 3, /* another protocol than TCP, or an IPv6 extension header before it */
	REASON_malformed = 4, /* a header is truncated, has options, or contradicts itself */
	REASON_fragment = 5, /* a fragment of a datagram */
	REASON_not_service = 6, /* neither port is a listed service */
	REASON_lease_expired = 7, /* nobody confirmed the mode before its deadline */
	REASON_other_host = 8, /* the frame was addressed to another host: the interface is promiscuous, or a switch flooded it */
	REASON_ttl = 9, /* TTL or hop limit used up: the kernel answers */
	REASON_exempt = 10, /* the mark says that the packet stays with the kernel */
	REASON_handshake = 11, /* SYN, SYN-ACK, or the ACK that completes a handshake: always the kernel's way */
	REASON_ending = 12, /* FIN or RST: always the kernel's way */
	REASON_heartbeat = 13, /* the packet that asks the kernel for the way anew */
	REASON_waiting = 14, /* a heartbeat is under way: until it comes out, the others follow it */
	REASON_unknown_flow = 15, /* its connection was not admitted: it is older than the overlay, translated, or not eligible */
	REASON_unproven = 16, /* the way is tried by another flow first, or data was lost on it a moment ago */
	REASON_interface_gone = 17, /* the interface on the way is gone, or does not carry the overlay's program */
	REASON_spoofed = 18, /* the source address does not belong to the interface that the packet came from */
	REASON_draining = 19, /* a new connection while the mode is drain */
	REASON_not_workload = 20, /* the address is no workload of this node */
	REASON_same_node = 21, /* the other end is a workload of this node too */
	REASON_not_peer = 22, /* the other end is in none of the listed prefixes */
	REASON_host_address = 23, /* the other end is an address of this very node */
	REASON_syn_in = 32, /* the SYN of an eligible connection went in */
	REASON_syn_out = 33, /* it came out, forwarded and otherwise unchanged */
	REASON_answer_in = 34, /* its SYN-ACK went in */
	REASON_answer_out = 35, /* the SYN-ACK came out */
	REASON_ack_in = 36, /* the ACK that completes the handshake went in */
	REASON_admitted = 37, /* the ACK came out: a flow */
	REASON_renewed = 48, /* a heartbeat came out */
	REASON_way_changed = 49, /* a heartbeat came out elsewhere, or with another frame: the flow follows it */
	REASON_suspended = 50, /* two heartbeats in a row did not come out: all of the flow takes the kernel's path until two do */
	REASON_way_proven = 51, /* data that went a new way was acknowledged */
	REASON_way_broken = 52, /* data that went a new way was lost before any was acknowledged: left alone for a while */
	REASON_finished = 53, /* FIN of a flow came out */
	REASON_reset = 54, /* RST of a flow came out */
};
