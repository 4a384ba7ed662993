/* SPDX-License-Identifier: GPL-2.0-or-later */
/* May this packet leave the kernel's path, and which way? Every "no" has its reason. */
#pragma once

/* A packet of a known flow takes the kernel's path and asks it for the way, unless one that does is under way. */
static __always_inline void ask(struct __sk_buff *skb, struct packet *packet, struct flow *flow, struct way *way,
				const struct control *active, __u64 now)
{
	if (way->asked && now - way->asked < patience(active))
		return (void)refuse(packet, REASON_waiting);
	if (way->asked && way->missed < 2 && ++way->missed == 2) {
		suspend(packet, flow, 2);
		count(packet->direction, REASON_suspended, 0);
	}
	expect(skb, packet, way, now);
	refuse(packet, REASON_heartbeat);
}

/* At an egress hook: a heartbeat came out. */
static __always_inline bool renew(struct __sk_buff *skb, struct packet *packet, const struct control *active)
{
	struct flow *flow = flows.lookup(packet->key);
	__u8 side = packet->direction & 1;
	__u64 now = bpf_jiffies64();
	struct way *way;
	__u32 out, first, second;

	if (!flow || !belongs_to(flow, packet->key))
		return false;
	way = &flow->ways[side];
	if (!is_awaited(skb, packet, way))
		return false;
	if (side == FROM_UPLINK && flow->ways[FROM_WORKLOAD].in != skb->ifindex)
		return true;
	out = way->out;
	first = way->header[0];
	second = way->header[1];
	if (!learn(skb, packet, way))
		return true;
	if (out != way->out || first != way->header[0] || second != way->header[1]) {
		flow->trial = TRIAL_none;
		count(side, REASON_way_changed, 0);
	}
	flow->seen = now;
	/* Whoever goes on after his FIN or RST did not send it, or took it back. */
	if (flow->ended & 4 << side || (flow->ended & 1 << side && packet->sequence != flow->ended_at[side]))
		flow->ended &= ~(5 << side);
	if (way->owed)
		way->owed--;
	if (!way->owed && !flow->ended && flow->epoch == active->epoch) {
		BARRIER();
		WRITE_ONCE(way->proven, now);
	}
	count(side, REASON_renewed, 0);
	return true;
}

/* At an egress hook: FIN or RST came out. Whether it was forged, what comes next tells. */
static __always_inline void end(struct packet *packet)
{
	struct flow *flow = flows.lookup(packet->key);
	__u8 side = packet->direction & 1;

	if (!flow || !belongs_to(flow, packet->key))
		return;
	if (packet->flags & TCP_RST) {
		flow->ended |= 4 << side;
	} else {
		flow->ended_at[side] = packet->sequence + data_length(packet) + 1;
		flow->ended |= 1 << side;
	}
	suspend(packet, flow, 0);
	count(side, packet->flags & TCP_RST ? REASON_reset : REASON_finished, 0);
}

static __always_inline void came_out(struct __sk_buff *skb, struct packet *packet, const struct control *active)
{
	__u32 bucket;
	struct beat *beat;

	if (packet->flags & TCP_SYN) {
		if (packet->flags & TCP_ACK)
			answer_out(skb, packet);
		else
			syn_out(skb, packet);
		return;
	}
	if (packet->flags & (TCP_FIN | TCP_RST))
		return end(packet);
	bucket = bucket_of(packet->key, packet->direction);
	beat = beats.lookup(&bucket);
	if (!beat || READ_ONCE(beat->awaited) != (packet->sequence ^ packet->acknowledgement))
		return;
	if (!renew(skb, packet, active))
		admit(skb, packet, active);
}

/* Handshakes and ends: always the kernel's way. */
static __always_inline void follow(struct __sk_buff *skb, struct packet *packet, const struct control *active)
{
	struct flow *flow;

	if (packet->flags & TCP_SYN) {
		if (packet->flags & TCP_ACK)
			answer_in(skb, packet);
		else
			syn_in(skb, packet, active);
		return;
	}
	flow = flows.lookup(packet->key);
	if (flow && flow->trial == TRIAL_running && packet->flags & TCP_ACK)
		note_proof(packet, flow);
	refuse(packet, REASON_ending);
}

/* What the flow says. */
static __always_inline bool judge(struct __sk_buff *skb, struct packet *packet, const struct control *active,
				  struct recent *known, struct flow *flow, struct way *way, __u64 now)
{
	__u32 length = data_length(packet);

	if (flow->epoch != active->epoch) {
		flow->epoch = active->epoch;
		suspend(packet, flow, 0);
	}
	if (flow->trial == TRIAL_running) {
		note_proof(packet, flow);
		note_loss(packet, flow);
	}
	/* 0 is longer ago than any period: jiffies begin at 2^32 - 300 s. And a workload's interface was compared. */
	packet->proven = now - way->proven < period(active) &&
				 (packet->direction == FROM_WORKLOAD || way->in == skb->ifindex) ? YES : NO;
	/* Data again: whatever went wrong, the kernel must know it first. */
	packet->again = packet->same == YES && length && before(packet->sequence, known->next) ? YES : NO;
	if (packet->again == YES)
		known->next = packet->sequence + length;
	if (packet->proven == NO && completes(skb, packet))
		return refuse(packet, REASON_handshake);
	if (packet->proven == NO || (packet->again == YES && flow->trial == TRIAL_proven) ||
	    size_of(skb, packet) > way->largest || (way->tos ^ packet->tos) & DSCP) {
		ask(skb, packet, flow, way, active, now);
		return false;
	}
	if (flow->trial != TRIAL_proven && !may_try(packet, flow, active, now))
		return refuse(packet, REASON_unproven);
	return refuse(packet, LEAVES);
}

/* From `flows` to what this processor remembers, or the reason why the packet takes the kernel's path. */
static __always_inline bool look_up(struct __sk_buff *skb, struct packet *packet, const struct control *active,
				    struct recent *known, const struct beat *beat, __u64 now)
{
	__u32 version = READ_ONCE(beat->version);
	struct flow *flow = flows.lookup(packet->key);
	struct way *way;

	if (!flow || !belongs_to(flow, packet->key) || now - flow->seen > (__u64)OVERLAY_IDLE * active->second)
		return refuse(packet, completes(skb, packet) ? REASON_handshake : REASON_unknown_flow);
	way = &flow->ways[packet->direction & 1];
	if (packet->direction == FROM_WORKLOAD && way->in != skb->ifindex)
		return refuse(packet, REASON_spoofed);
	packet->same = known->in == skb->ifindex && same_key(&known->key, packet->key) ? YES : NO;
	judge(skb, packet, active, known, flow, way, now);
	if (packet->reason != LEAVES)
		return false;
	if (!is_at(way->out, way->place)) {
		WRITE_ONCE(way->proven, 0);
		return refuse(packet, REASON_interface_gone);
	}
	if (packet->same == NO)
		known->packets = 0;
	known->key = *packet->key;
	known->in = way->in;
	known->out = way->out;
	known->place = way->place;
	known->largest = way->largest;
	known->mark = way->mark;
	known->priority = way->priority;
	known->header[0] = way->header[0];
	known->header[1] = way->header[1];
	known->header[2] = way->header[2];
	known->tos = way->tos;
	known->peer = OVERLAY_REDIRECT == REDIRECT_PEER && packet->direction == FROM_UPLINK &&
		       !(way->flags & WORKLOAD_NEVER_PEER);
	known->epoch = active->epoch;
	known->proven = way->proven;
	known->since = flow->trial == TRIAL_proven ? now : way->proven;
	/* While the way is on trial, every packet comes here. */
	known->version = flow->trial == TRIAL_proven ? version : version - 1;
	if (!belongs_to(flow, packet->key) || READ_ONCE(beat->version) != version || !known->proven)
		return refuse(packet, REASON_waiting);
	return true;
}

static __always_inline struct recent *shortcut(struct __sk_buff *skb, struct packet *packet, const struct control *active)
{
	__u64 now = bpf_jiffies64();
	struct recent *known;
	struct beat *beat;
	__u32 bucket;

	if (READ_ONCE(active->deadline) && bpf_ktime_get_ns() >= active->deadline) {
		refuse(packet, REASON_lease_expired);
		return 0;
	}
	if (skb->pkt_type != PACKET_HOST) {
		refuse(packet, REASON_other_host);
		return 0;
	}
	if (packet->ttl <= 1) {
		refuse(packet, REASON_ttl);
		return 0;
	}
	if (is_exempt(skb)) {
		refuse(packet, REASON_exempt);
		return 0;
	}
	if ((packet->flags & (TCP_SYN | TCP_FIN | TCP_RST))) {
		follow(skb, packet, active);
		return 0;
	}
	bucket = bucket_of(packet->key, packet->direction);
	known = recent.lookup(&bucket);
	beat = beats.lookup(&bucket);
	if (!known || !beat)
		return 0;
	if (known->in == skb->ifindex && known->version == READ_ONCE(beat->version) && known->epoch == active->epoch &&
	      now - known->proven < period(active) && same_key(&known->key, packet->key) &&
	      !((known->tos ^ packet->tos) & DSCP) && size_of(skb, packet) <= known->largest &&
	      !(data_length(packet) && before(packet->sequence, known->next)) && is_at(known->out, known->place))
		refuse(packet, LEAVES);
	else
		look_up(skb, packet, active, known, beat, now);
	if (packet->reason != LEAVES)
		return 0;
	known->next = packet->sequence + data_length(packet);
	known->packets++;
	return known;
}
