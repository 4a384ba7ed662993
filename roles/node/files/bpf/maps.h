/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

/* Filled from the facts. */
BPF_TABLE("hash", union address, struct workload, ifindex_map, OVERLAY_WORKLOADS);
BPF_TABLE("array", __u32, __u32, services, 65536); /* port -> protocols; an array, so that its lookup is inlined */
BPF_LPM_TRIE(peers, struct prefix, struct peer, OVERLAY_PEERS);

/* Interfaces that carry our programs, each in one of a few places that follow from its ifindex. A devmap, because the
 * kernel itself takes an interface out of it when the interface goes away. */
BPF_TABLE("devmap", __u32, __u32, devices, DEVICES);

/* Written on activation: one entry. */
BPF_TABLE("array", __u32, struct control, control, 1);

/* The datapath's own. What is evicted takes the kernel's path, and nothing is lost by it. */
BPF_TABLE("lru_hash", struct flow_key, struct flow, flows, OVERLAY_FLOWS);
BPF_TABLE("lru_hash", struct opener, struct pending, pending, OVERLAY_PENDING);	   /* begun behind an uplink */
BPF_TABLE("lru_hash", struct opener, struct pending, pending_out, OVERLAY_PENDING); /* begun by a workload */
BPF_TABLE("lru_hash", struct trial_key, struct trial, trials, 4096);
BPF_TABLE("percpu_array", __u32, struct recent, recent, OVERLAY_RECENT);
BPF_TABLE("array", __u32, struct beat, beats, OVERLAY_RECENT);
BPF_TABLE("percpu_array", __u32, __u32, crossing, 1); /* the interface that a packet was just redirected to */
BPF_TABLE("percpu_array", __u32, struct pending, fresh, 2); /* by direction; too large for the stack */
BPF_TABLE("percpu_array", __u32, struct counter, stats, STATS);

static __always_inline void count(enum direction direction, enum reason reason, __u32 bytes)
{
	__u32 index = direction * REASONS_STRIDE + reason;
	struct counter *counter = stats.lookup(&index);

	if (counter) {
		counter->packets++;
		counter->bytes += bytes;
	}
}

static __always_inline bool is_at(__u32 ifindex, __u32 place)
{
	__u32 *device = devices.lookup(&place);

	return device && *device == ifindex;
}

/* The place of an interface in `devices`; NOWHERE: it is gone, or does not carry our programs. */
#define NOWHERE DEVICES
static __always_inline __u32 place_of(__u32 ifindex)
{
	__u32 hashed = ifindex;

#pragma unroll
	for (int probe = 0; probe < DEVICE_PROBES; probe++, hashed += 0x9e3779b9) {
		__u32 place = hashed * 0x85ebca6b >> 19;

		if (is_at(ifindex, place))
			return place;
	}
	return NOWHERE;
}
