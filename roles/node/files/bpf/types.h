/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Keys and values of the maps. layout.h holds them to what plugins/module_utils/_layout.py says. */
#pragma once

#ifndef true
#define true 1
#define false 0
#endif
#define READ_ONCE(x) (*(volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, value) (*(volatile typeof(x) *)&(x) = (value))
#define BARRIER() asm volatile("" ::: "memory")

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
	__u32 flags; /* enum workload_flag */
};

struct prefix {
	__u32 length;	  /* of the sixteen bytes: IPv4 prefixes count from 96 */
	__u32 address[4]; /* no union address: its alignment would put a gap before it, and the trie knows no gaps */
};

struct peer {
	__u32 kind; /* enum peer_kind */
};

struct flow_key {
	union address workload;
	union address remote;
	__be16 workload_port;
	__be16 remote_port;
	__u8 protocol;
	__u8 pad[3];
};

/* Who begins a connection, and with which sequence number: address translation changes neither on the way in. */
struct opener {
	union address address;
	__u32 sequence;
	__be16 port;
	__u8 protocol;
	__u8 pad;
};

/*
 * One direction of a flow: what the kernel did with the latest packet that it was seen to let out.
 * Times are jiffies. `sequence` to `ttl` identify the packet that went in and is awaited.
 */
struct way {
	__u64 proven; /* when that packet came out; 0: the way must be proven again */
	__u64 asked;  /* when the packet went in that is awaited; 0: none is */
	__u32 in;     /* interface */
	__u32 out;    /* interface */
	__u32 place;  /* of `out` in `devices` */
	__u32 largest; /* IP packet (of GSO, one segment) that came out, bytes */
	__u32 mark;
	__u32 priority;
	__u32 sequence;
	__u32 acknowledgement;
	__u32 length; /* of the data, bytes */
	__u32 header[3]; /* destination and source MAC */
	__u8 tos;	 /* of the packets that may go this way, too */
	__u8 ttl;	 /* before the kernel lowered it */
	__u8 missed;	 /* heartbeats in a row that did not come out */
	__u8 owed;	 /* heartbeats that must come out before the way is proven again */
	__u8 flags;	 /* enum workload_flag of the workload, towards which it leads */
	__u8 pad[3];
};

struct flow {
	__u32 tag; /* of its key; first, see belongs_to() */
	__u32 epoch;
	__u64 seen;	    /* jiffies, when a heartbeat came out */
	__u32 initial[2];   /* sequence numbers of SYN and SYN-ACK, by direction */
	__u32 ended_at[2];  /* sequence number behind a FIN, by direction */
	__u32 tried_from[2];  /* data that went the short way while that was unproven, by direction: its beginning, */
	__u32 tried_until[2]; /* its end, */
	__u32 tried_first[2]; /* and the end of its first packet, whose acknowledgement is the proof */
	__u8 ended;	    /* FIN (bits 0, 1) or RST (bits 2, 3) came out, by direction */
	__u8 opened_by;	    /* enum direction */
	__u8 trial;	    /* enum trial_state, as the flow knows it */
	__u8 tried;	    /* data went the short way (bits 0, 1) and was acknowledged (bits 2, 3), by direction;
			     or comes again (bit 4) */
	__u8 pad[4];
	struct way ways[2]; /* by direction */
};

/* A handshake: a flow that is not admitted yet. */
struct pending {
	struct flow_key key;
	__u64 step; /* enum handshake_step */
	struct flow flow;
};

/* What one processor remembers of one direction of a flow. It is told by what stands in its packets, as it stands there. */
struct recent {
	__u64 addresses[4]; /* source and destination; of IPv4 the first half of the first two words is all there is */
	__u32 ports;
	__u32 ethertype;
	__u64 proven;
	__u64 since;   /* jiffies, when this was written */
	__u64 there;   /* jiffies, when `out` was seen to be at its place */
	__u32 version; /* that of its bucket in `beats` */
	__u32 epoch;
	__u32 in;
	__u32 out;
	__u32 place;
	__u32 largest;
	__u32 mark;
	__u32 priority;
	__u32 header[3];
	__u32 next;    /* sequence number behind the latest data */
	__u32 packets; /* that left by it, since the flow is remembered here */
	__u8 tos;
	__u8 peer; /* by bpf_redirect_peer */
	__u8 pad[2];
	struct flow_key key;
};

/* By bucket of a direction of a flow. */
struct beat {
	__u32 version; /* grows whenever a way of the bucket changes: what processors remember is old then */
	__u32 awaited; /* sequence ^ acknowledgement number of a packet that is awaited: all others cost no lookup */
};

/* One write changes the mode. The kernel copies eight bytes at a time, in this order, and the program reads the
 * second word first: whoever sees a new mode sees its deadline too. */
struct control {
	__u64 deadline; /* ns, CLOCK_MONOTONIC; 0: confirmed, no deadline */
	__u32 mode;
	__u32 epoch; /* grows with every write: flows must be proven again */
	__u32 generation;
	__u32 second; /* jiffies in a second */
};

struct counter {
	__u64 packets;
	__u64 bytes;
};

/* Where packets leave the kernel's path and come back to it. */
struct trial_key {
	__u32 workload; /* interface */
	__u32 uplink;	/* interface */
	__u32 next_hop[2]; /* MAC, and two bytes of zero */
};

struct trial {
	__u64 since; /* jiffies */
	__u32 tag;   /* of the flow that tries */
	__u32 state; /* enum trial_state */
};
