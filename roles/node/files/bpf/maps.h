/* SPDX-License-Identifier: GPL-2.0-or-later */
#pragma once

/* Filled from the facts. */
BPF_TABLE("hash", union address, struct workload, ifindex_map, OVERLAY_WORKLOADS);
BPF_TABLE("array", __u32, __u32, services, 65536); /* port -> protocols; an array, so that its lookup is inlined */
BPF_LPM_TRIE(peers, struct prefix, struct peer, OVERLAY_PEERS);
#define SERVICE_TCP 1

/* Interfaces that carry our programs, each in one of a few places that its ifindex names. A devmap, because the kernel
 * itself takes an interface out of it when the interface goes away: an entry proves that it is still the one we attached
 * to. Whoever writes a place increases its epoch first: a flow made in an earlier one led to an interface that is gone. */
#define DEVICES 8192
#define DEVICE_PROBES 4
BPF_TABLE("devmap", __u32, __u32, devices, DEVICES);
BPF_TABLE("array", __u32, __u32, device_epochs, DEVICES);

/* Written on activation: one entry. */
BPF_TABLE("array", __u32, struct control, control, 1);

/* The datapath's own. Established flows are never evicted; a flood of first packets churns `transient` only. */
BPF_TABLE("hash", struct flow_key, struct flow, flows, OVERLAY_FLOWS);
BPF_TABLE("lru_hash", struct flow_key, struct flow, transient, OVERLAY_TRANSIENT);
BPF_TABLE("array", __u32, struct flow_key, slots, OVERLAY_FLOWS); /* who holds which place in `flows` */
BPF_TABLE("array", __u32, struct sweep, sweep, 1);
BPF_TABLE("percpu_array", __u32, struct recent, recent, OVERLAY_RECENT);
BPF_TABLE("array", __u32, __u32, versions, OVERLAY_RECENT); /* grows whenever a flow of the bucket changes or ends */
BPF_TABLE("lru_hash", union address, __u64, silent, 1024); /* workload -> when it did not answer, ns */
BPF_TABLE("percpu_array", __u32, struct counter, stats, 2 * REASON_COUNT);

static __always_inline void count(enum direction direction, enum reason reason, __u32 bytes)
{
	__u32 index = direction * REASON_COUNT + reason;
	struct counter *counter = stats.lookup(&index);

	if (counter) {
		counter->packets++;
		counter->bytes += bytes;
	}
}

static __always_inline __u32 epoch_of(__u32 place)
{
	__u32 *epoch = device_epochs.lookup(&place);

	return epoch ? READ_ONCE(*epoch) : 0;
}

static __always_inline bool is_epoch(__u32 place, __u32 expected)
{
	__u32 *epoch = device_epochs.lookup(&place);

	return epoch && READ_ONCE(*epoch) == expected;
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
#pragma unroll
	for (__u32 probe = 0; probe < DEVICE_PROBES; probe++) {
		__u32 place = (ifindex ^ probe) & (DEVICES - 1);

		if (is_at(ifindex, place))
			return place;
	}
	return NOWHERE;
}
