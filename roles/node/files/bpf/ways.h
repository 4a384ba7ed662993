/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A way is what the kernel did with a packet of one direction of a flow: it went in at one hook (`expect`) and came out
 * at another (`is_awaited`, `learn`). A way is proven for less than a second; until it is proven again, everything in
 * that direction takes the kernel's path. So what the kernel does differently later is followed, or left, in a second.
 */
#pragma once

static __always_inline bool before(__u32 one, __u32 other)
{
	return (__s32)(one - other) < 0;
}

/* A packet takes this long at most until it must come out, and is the third part of a heartbeat's period. */
static __always_inline __u32 patience(const struct control *active)
{
	return active->second >> 2;
}

/* Between heartbeats: less than a second, so that with all that may come in between it is one. */
static __always_inline __u32 period(const struct control *active)
{
	return active->second - (active->second >> 2);
}

/*
 * The upper bits tell directions of flows apart and spread them. An address is given as the exclusive or of its halves,
 * the ports as they stand in the packet. Not secret: who finds packets of one bucket makes them slower only.
 */
static __always_inline __u64 mix(__u64 source, __u64 destination, __u32 ports)
{
	return (source ^ destination >> 7 ^ ports) * 0x9e3779b97f4a7c15ULL;
}

static __always_inline __u64 mix_key(const struct flow_key *key, enum direction direction)
{
	__u64 workload = key->workload.halves[0] ^ key->workload.halves[1];
	__u64 remote = key->remote.halves[0] ^ key->remote.halves[1];
	__u32 ports = *(const __u32 *)&key->workload_port;

	return direction == FROM_WORKLOAD ? mix(workload, remote, ports)
					  : mix(remote, workload, ports << 16 | ports >> 16);
}

static __always_inline __u32 bucket_of(const struct flow_key *key, enum direction direction)
{
	return mix_key(key, direction) >> (64 - __builtin_ctz(OVERLAY_RECENT));
}

static __always_inline __u32 tag_of(const struct flow_key *key)
{
	return *(const __u32 *)&key->workload_port ^ key->workload.words[3] ^ key->remote.words[3] * 31;
}

/*
 * An entry of an LRU is used again as soon as it is removed, also while a program on another processor reads it. The tag
 * is what the kernel writes first into an entry that it uses again: if it is still that of the key after everything
 * else was read, what was read belongs to the key.
 */
static __always_inline bool belongs_to(const struct flow *flow, const struct flow_key *key)
{
	BARRIER();
	return READ_ONCE(flow->tag) == tag_of(key);
}

/* Nothing that a processor remembers of this flow is believed any more. */
static __always_inline void changed(const struct flow_key *key)
{
	__u32 bucket = bucket_of(key, FROM_UPLINK);
	struct beat *beat = beats.lookup(&bucket);

	if (beat)
		__sync_fetch_and_add(&beat->version, 1);
	bucket = bucket_of(key, FROM_WORKLOAD);
	beat = beats.lookup(&bucket);
	if (beat)
		__sync_fetch_and_add(&beat->version, 1);
}

/* Of TCP both. */
static __always_inline bool same_key(const struct flow_key *one, const struct flow_key *other)
{
	return same_address(&one->workload, &other->workload) && same_address(&one->remote, &other->remote) &&
	       *(const __u32 *)&one->workload_port == *(const __u32 *)&other->workload_port;
}

static __always_inline __u32 data_length(const struct packet *packet)
{
	return packet->length - packet->header_length;
}

/* Of a GSO packet, one segment counts (skb_gso_network_seglen in net/core/gso.c). */
static __always_inline __u32 size_of(const struct __sk_buff *skb, const struct packet *packet)
{
	return skb->gso_size ? skb->gso_size + packet->header_length : packet->length;
}

/* This packet takes the kernel's path, and must come out as it says. */
static __always_inline void note(const struct __sk_buff *skb, const struct packet *packet, struct way *way, __u64 now)
{
	__u32 zero = 0, *own = crossing.lookup(&zero);

	if (own) /* left by a packet that never came to its interface: this one must not be taken for it */
		*own = 0;
	WRITE_ONCE(way->proven, 0);
	BARRIER();
	way->largest = 0; /* the largest packet must be seen again, too: it may have become smaller */
	way->in = skb->ifindex;
	way->sequence = packet->sequence;
	way->acknowledgement = packet->acknowledgement;
	way->length = data_length(packet);
	way->tos = packet->tos;
	way->ttl = packet->ttl;
	way->asked = now;
}

/* The same, for a packet that is nothing but an acknowledgement or data: at the egress hook, it is told by `beats`. */
static __always_inline void expect(const struct __sk_buff *skb, const struct packet *packet, struct way *way, __u64 now)
{
	__u32 bucket = bucket_of(packet->key, packet->direction);
	struct beat *beat = beats.lookup(&bucket);

	note(skb, packet, way, now);
	if (beat) {
		WRITE_ONCE(beat->awaited, packet->sequence ^ packet->acknowledgement);
		__sync_fetch_and_add(&beat->version, 1);
	}
}

static __always_inline bool is_exempt(const struct __sk_buff *skb)
{
	return OVERLAY_EXEMPT_MARK && (skb->mark & OVERLAY_EXEMPT_MARK) == OVERLAY_EXEMPT_MARK;
}

/* Whether this is the packet that went in: the same one, untranslated, forwarded once, and as it was but for ECN. */
static __always_inline bool is_awaited(const struct __sk_buff *skb, const struct packet *packet, const struct way *way)
{
	return way->asked && way->sequence == packet->sequence && way->acknowledgement == packet->acknowledgement &&
	       way->length == data_length(packet) && !((way->tos ^ packet->tos) & DSCP) &&
	       way->ttl == packet->ttl + 1 && !is_exempt(skb);
}

/* What the kernel did with it. False: the frame, or the interface, is none that we could send others by. */
static __always_inline bool learn(struct __sk_buff *skb, const struct packet *packet, struct way *way)
{
	void *data = (void *)(long)skb->data;
	__u32 *header = data, size = size_of(skb, packet);
	struct ethhdr *frame = data;

	way->asked = 0;
	way->missed = 0;
	if (data + sizeof(*frame) > (void *)(long)skb->data_end || frame->h_proto != skb->protocol)
		return false;
	way->header[0] = header[0];
	way->header[1] = header[1];
	way->header[2] = header[2];
	way->out = skb->ifindex;
	way->place = place_of(skb->ifindex);
	way->mark = skb->mark;
	way->priority = skb->priority;
	if (size > way->largest)
		way->largest = size;
	return way->place != NOWHERE;
}

/* Both directions take the kernel's path until heartbeats came out, each as often as `owed` says. */
static __always_inline void suspend(struct packet *packet, struct flow *flow, __u8 owed)
{
	flow->ways[FROM_UPLINK].owed = owed;
	flow->ways[FROM_WORKLOAD].owed = owed;
	WRITE_ONCE(flow->ways[FROM_UPLINK].proven, 0);
	WRITE_ONCE(flow->ways[FROM_WORKLOAD].proven, 0);
	changed(packet->key);
}
