/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Keys and values of the maps. plugins/module_utils/_layout.py describes the same layouts to Python. */
#pragma once

#ifndef true
#define true 1
#define false 0
#endif
#define READ_ONCE(x) (*(volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, value) (*(volatile typeof(x) *)&(x) = (value))
#define OFFSET_OF(type, member) __builtin_offsetof(type, member)

enum direction { FROM_UPLINK, FROM_WORKLOAD };

enum mode { MODE_OFF, MODE_DRAIN, MODE_ON };

/* Sixteen bytes as in the packet; IPv4 as ::ffff:a.b.c.d (RFC 4291 section 2.5.5.2). */
union address {
	__u8 bytes[16];
	__u32 words[4];
	__u64 halves[2];
};

static __always_inline bool same_address(const union address *one, const union address *other)
{
	return one->halves[0] == other->halves[0] && one->halves[1] == other->halves[1];
}

struct workload {
	__u32 ifindex;
	__u32 mtu;
	__u32 flags; /* none defined yet */
};

struct prefix {
	__u32 length;     /* of the sixteen bytes: IPv4 prefixes count from 96 */
	__u32 address[4]; /* no union address: its alignment would put a gap before it, and the trie knows no gaps */
};

struct peer {
	__u32 ifindex; /* uplink; 0: an address of this very node, never a peer */
	__u32 mtu;
	union address next_hop; /* all zero: on link */
};

struct flow_key {
	union address workload;
	union address remote;
	__be16 workload_port;
	__be16 remote_port;
	__u8 protocol;
	__u8 pad[3];
};

enum flow_state { FLOW_OPENING, FLOW_ANSWERED, FLOW_ESTABLISHED, FLOW_CLOSING };

struct flow {
	__u32 tag;     /* of its key; first, see belongs_to() */
	__u32 ifindex; /* of the workload */
	__u32 uplink;
	__u32 session;          /* the control entry's when the flow was made: an older one is not known any more */
	union address next_hop; /* from the uplink towards the remote end */
	__u64 since;            /* ns, CLOCK_MONOTONIC */
	__u32 round;            /* the sweep's when the latest packet was seen */
	__u32 slot;             /* in `slots` */
	__u32 workload_epoch;   /* of its place in `devices`, when the flow was made */
	__u32 uplink_epoch;
	__u16 workload_place; /* in `devices` */
	__u16 uplink_place;
	__u16 workload_mtu;
	__u16 uplink_mtu;
	__u8 opened_by; /* enum direction of the first packet */
	__u8 state;
	__u8 fin[2]; /* by direction; each is written by one direction only */
	__u8 pad[4];
};

/* What one processor remembers of an established flow, valid while nothing that it depends on has changed. */
struct recent {
	struct flow_key key;
	__u32 version; /* that of its bucket in `versions` */
	__u32 session;
	__u32 round; /* the sweep's: every flow must be stamped with each round that it lives through */
	__u32 left;  /* packets until `flows` is asked again, whatever happened */
	__u32 ifindex;
	__u32 uplink;
	union address next_hop;
	__u32 workload_epoch;
	__u32 uplink_epoch;
	__u16 workload_place;
	__u16 uplink_place;
	__u16 workload_mtu;
	__u16 uplink_mtu;
};

/* One write changes the mode. The kernel copies eight bytes at a time, in this order, and the program reads the
 * second word first: whoever sees a new mode sees its deadline too. */
struct control {
	__u64 deadline; /* ns, CLOCK_MONOTONIC; 0: confirmed, no deadline */
	__u32 mode;
	__u32 session; /* grows with every change from off: flows of earlier sessions are forgotten */
	__u32 generation;
	__u32 pad;
};

struct counter {
	__u64 packets;
	__u64 bytes;
};

struct sweep {
	__u64 round_began; /* ns, CLOCK_MONOTONIC */
	__u32 round;
	__u32 hand; /* the slot to look at next */
};

/* Where a packet is redirected to. */
struct way {
	__u32 ifindex;
	__u32 mtu;
	union address next_hop; /* towards the uplink */
	bool transient;         /* the flow is being opened or closed */
};
