/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a processor remembers of the established flows that it saw last, so that most packets need no lookup in a hash:
 * that is half of what a packet costs. `flows` stays the truth. A key has one place here (its bucket), and whatever
 * changes or removes a flow makes the version of its bucket grow, which all processors see; a record is filled with the
 * version that was read *before* `flows` was. (The sweep need not: what it removes is of another session or round.)
 * Records are written and read by one processor only, so none is ever torn.
 */
#pragma once

/* Asked again after so many packets whatever happened, so that what is removed from `flows` by hand is noticed too. */
#define RECENT_PACKETS 255

/* The upper bits tell keys apart and spread them. Not secret: who finds keys of one bucket makes them slower only. */
static __always_inline __u64 mix(const struct flow_key *key)
{
	__u64 ports = (__u64)key->workload_port << 16 | key->remote_port;

	return (key->remote.halves[0] ^ key->remote.halves[1] ^ ports ^
		(key->workload.halves[0] ^ key->workload.halves[1]) >> 7) * 0x9e3779b97f4a7c15ULL;
}

static __always_inline __u32 bucket_of(const struct flow_key *key)
{
	return mix(key) >> (64 - __builtin_ctz(OVERLAY_RECENT));
}

static __always_inline __u32 tag_of(const struct flow_key *key)
{
	return mix(key) >> 32;
}

/*
 * An entry of a hash is used again as soon as it is removed, also while a program on another processor reads it. The tag is
 * what the kernel writes first into an entry that it uses again: if it is still that of the key after everything else
 * was read, what was read belongs to the key.
 */
static __always_inline bool belongs_to(const struct flow *flow, const struct flow_key *key)
{
	asm volatile("" ::: "memory");
	return READ_ONCE(flow->tag) == tag_of(key);
}

/* After a flow of this key was changed in `flows` or removed from it. */
static __always_inline void changed(const struct flow_key *key)
{
	__u32 bucket = bucket_of(key);
	__u32 *version = versions.lookup(&bucket);

	if (version)
		__sync_fetch_and_add(version, 1);
}

static __always_inline bool same_key(const struct flow_key *one, const struct flow_key *other)
{
	return same_address(&one->workload, &other->workload) && same_address(&one->remote, &other->remote) &&
	       one->workload_port == other->workload_port && one->remote_port == other->remote_port &&
	       one->protocol == other->protocol;
}

/*
 * Whether a flow, or what is remembered of it, still leads where it led: the interface on the way is there, and that and
 * the workload's are those of the epochs in which the flow was made.
 */
#define STILL_LEADS(flow, direction)                                                                                  \
	(is_epoch((flow)->workload_place, (flow)->workload_epoch) &&                                                 \
	 ((direction) == FROM_WORKLOAD                                                                               \
		  ? is_epoch((flow)->uplink_place, (flow)->uplink_epoch) && is_at((flow)->uplink, (flow)->uplink_place) \
		  : is_at((flow)->ifindex, (flow)->workload_place)))

/* What this processor remembers of the flow, unless there is any doubt. */
static __always_inline bool recall(const struct __sk_buff *skb, const struct packet *packet, const struct control *active,
				  __u32 bucket, __u32 version, struct way *way)
{
	struct recent *known = recent.lookup(&bucket);
	__u32 zero = 0;
	struct sweep *now = sweep.lookup(&zero);

	if (!known || !now || !same_key(&known->key, packet->key))
		return false;
	if (known->version != version || known->session != active->session || known->round != now->round || !known->left)
		return false;
	if (packet->direction == FROM_WORKLOAD && known->ifindex != skb->ifindex)
		return false;
	if (!STILL_LEADS(known, packet->direction))
		return false;
	if (packet->direction == FROM_WORKLOAD) {
		way->ifindex = known->uplink;
		way->mtu = known->uplink_mtu;
		way->next_hop = known->next_hop;
	} else {
		way->ifindex = known->ifindex;
		way->mtu = known->workload_mtu;
	}
	way->transient = false;
	known->left--;
	return true;
}

/* `version`: that of the bucket before the flow was looked up. */
static __always_inline void remember(const struct flow_key *key, const struct flow *flow, __u32 bucket, __u32 version)
{
	struct recent *known = recent.lookup(&bucket);

	if (!known)
		return;
	known->key = *key;
	known->version = version;
	known->session = flow->session;
	known->round = flow->round;
	known->left = RECENT_PACKETS;
	known->ifindex = flow->ifindex;
	known->uplink = flow->uplink;
	known->next_hop = flow->next_hop;
	known->workload_epoch = flow->workload_epoch;
	known->uplink_epoch = flow->uplink_epoch;
	known->workload_place = flow->workload_place;
	known->uplink_place = flow->uplink_place;
	known->workload_mtu = flow->workload_mtu;
	known->uplink_mtu = flow->uplink_mtu;
}
