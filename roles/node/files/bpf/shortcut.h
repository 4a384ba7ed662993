/* SPDX-License-Identifier: GPL-2.0-or-later */
/* May this packet leave the kernel's path, and which way? Every "no" has its reason. */
#pragma once

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
	if (flow->trial == TRIAL_running && flow->tried & 16)
		tell_loss(packet, flow, now);
	if (side == FROM_UPLINK && flow->ways[FROM_WORKLOAD].in != skb->ifindex)
		return true;
	out = way->out;
	first = way->header[0];
	second = way->header[1];
	if (!learn(skb, packet, way))
		return true;
	if (out != way->out || first != way->header[0] || second != way->header[1]) {
		flow->trial = TRIAL_none;
		flow->tried = 0;
		packet->event = REASON_way_changed;
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
	struct trial_key key;
	struct trial *trial;

	if (!flow || !belongs_to(flow, packet->key))
		return changed(packet->key); /* evicted: processors may remember it */
	if (packet->flags & TCP_RST) {
		flow->ended |= 4 << side;
	} else {
		flow->ended_at[side] = packet->sequence + data_length(packet) + 1;
		flow->ended |= 1 << side;
	}
	if (flow->trial == TRIAL_running && !(flow->tried & 3)) { /* it tried with nothing: another may */
		name_trial(flow, &key);
		trial = trials.lookup(&key);
		if (trial && trial->tag == flow->tag)
			trials.delete(&key);
		flow->trial = TRIAL_none;
	}
	suspend(packet, flow, 0);
	packet->event = packet->flags & TCP_RST ? REASON_reset : REASON_finished;
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

/*
 * Handshakes and ends: always the kernel's way. A workload that sends a SYN, or a SYN-ACK with another number, knows that
 * whatever had these ports is over. Returns the way of a packet that must come out now.
 */
static __always_inline struct way *follow(struct __sk_buff *skb, struct packet *packet, const struct control *active,
					  __u64 now)
{
	bool from_workload = packet->direction == FROM_WORKLOAD;
	struct flow *flow = 0;

	if (from_workload || !(packet->flags & TCP_SYN))
		flow = flows.lookup(packet->key);
	if (flow && from_workload && packet->flags & TCP_SYN && flow->ways[FROM_WORKLOAD].in == skb->ifindex &&
	    (!(packet->flags & TCP_ACK) || flow->initial[FROM_WORKLOAD] != packet->sequence))
		suspend(packet, flow, 2);
	if (!(packet->flags & TCP_SYN)) {
		if (flow && flow->trial == TRIAL_running && packet->flags & TCP_ACK)
			note_proof(packet, flow);
		refuse(packet, REASON_ending);
		return 0;
	}
	if (packet->flags & TCP_ACK)
		return answer_in(skb, packet);
	syn_in(skb, packet, active, now);
	return 0;
}

/* As they stand in the packets of this direction. */
static __always_inline void set_addresses(struct recent *known, const struct packet *packet)
{
	bool outbound = packet->direction == FROM_WORKLOAD;
	const union address *source = outbound ? &packet->key->workload : &packet->key->remote;
	const union address *destination = outbound ? &packet->key->remote : &packet->key->workload;
	__u32 ports = *(const __u32 *)&packet->key->workload_port;

	known->ports = outbound ? ports : ports << 16 | ports >> 16;
	if (known->ethertype == bpf_htons(ETH_P_IP)) {
		__builtin_memset(known->addresses, 0, sizeof(known->addresses));
		((__u32 *)known->addresses)[0] = source->words[3];
		((__u32 *)known->addresses)[1] = destination->words[3];
	} else {
		*(union address *)&known->addresses[0] = *source;
		*(union address *)&known->addresses[2] = *destination;
	}
}

/*
 * From `flows` to what this processor remembers, or the reason why the packet takes the kernel's path. Returns the way of
 * a packet that must come out there now: of a handshake's end, or a heartbeat, which asks the kernel for the way anew.
 */
static __always_inline struct way *look_up(struct __sk_buff *skb, struct packet *packet, const struct control *active,
					   struct recent *known, const struct beat *beat, __u64 now)
{
	__u32 version = READ_ONCE(beat->version), length = data_length(packet);
	struct flow *flow = flows.lookup(packet->key);
	struct way *way = 0, *last;

	packet->proven = NO;
	if (flow && (!belongs_to(flow, packet->key) || now - flow->seen > (__u64)OVERLAY_IDLE * active->second))
		flow = 0;
	if (flow) {
		way = &flow->ways[packet->direction & 1];
		if (packet->direction == FROM_WORKLOAD && way->in != skb->ifindex) {
			refuse(packet, REASON_spoofed);
			return 0;
		}
		if (flow->epoch != active->epoch) {
			flow->epoch = active->epoch;
			WRITE_ONCE(flow->ways[FROM_UPLINK].proven, 0);
			WRITE_ONCE(flow->ways[FROM_WORKLOAD].proven, 0);
		}
		if (flow->trial == TRIAL_running) {
			note_proof(packet, flow);
			note_loss(packet, flow);
		}
		/* 0 is longer ago than any period: jiffies begin at 2^32 - 300 s. */
		if (now - way->proven < period(active) && way->in == skb->ifindex)
			packet->proven = YES;
	}
	if (packet->proven == NO && (last = completes(skb, packet)))
		return last;
	if (!flow) {
		refuse(packet, REASON_unknown_flow);
		return 0;
	}
	way = &flow->ways[packet->direction & 1];
	packet->same = known->in == skb->ifindex && same_key(&known->key, packet->key) ? YES : NO;
	/* Data again: whatever went wrong, the kernel must know it first. */
	packet->again = packet->same == YES && length && before(packet->sequence, known->next) ? YES : NO;
	if (packet->again == YES)
		known->next = packet->sequence + length;
	if (packet->proven == NO || (packet->again == YES && flow->trial == TRIAL_proven) ||
	    size_of(skb, packet) > way->largest || (way->tos ^ packet->tos) & DSCP) {
		if (way->asked && now - way->asked < patience(active)) {
			refuse(packet, REASON_waiting);
			return 0;
		}
		if (way->asked && way->missed < 2 && ++way->missed == 2) {
			suspend(packet, flow, 2);
			packet->event = REASON_suspended;
		}
		refuse(packet, REASON_heartbeat);
		return way;
	}
	refuse(packet, LEAVES);
	if (flow->trial != TRIAL_proven && !may_try(packet, flow, active, now))
		refuse(packet, REASON_unproven);
	if (packet->reason != LEAVES)
		return 0;
	if (!is_at(way->out, way->place)) {
		WRITE_ONCE(way->proven, 0);
		refuse(packet, REASON_interface_gone);
		return 0;
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
	known->there = now;
	known->ethertype = skb->protocol;
	set_addresses(known, packet);
	/* While the way is on trial, every packet comes here. */
	known->version = flow->trial == TRIAL_proven ? version : version - 1;
	if (!belongs_to(flow, packet->key) || READ_ONCE(beat->version) != version || !known->proven)
		refuse(packet, REASON_waiting);
	return 0;
}

/* Whether a packet may be looked at: what is said of all packets of listed services. */
static __always_inline bool may_leave(const struct __sk_buff *skb, struct packet *packet, const struct control *active)
{
	if (READ_ONCE(active->deadline) && bpf_ktime_get_ns() >= active->deadline)
		return refuse(packet, REASON_lease_expired);
	if (skb->pkt_type != PACKET_HOST)
		return refuse(packet, REASON_other_host);
	if (is_exempt(skb))
		return refuse(packet, REASON_exempt);
	return true;
}

/*
 * Most packets: what this processor remembers, unless there is any doubt. `addresses`: source and destination in the
 * packet, `words` of eight bytes. Sets what redirect() needs of the packet.
 */
static __always_inline struct recent *recall(const struct __sk_buff *skb, struct packet *packet,
					     const struct control *active, const __u64 *addresses, int words,
					     const struct tcphdr *tcp, __u64 header)
{
	__u64 source, destination, payload, now = bpf_jiffies64();
	__u32 ports = *(const __u32 *)tcp, bucket;
	struct recent *known;
	struct beat *beat;

	if (words == 1) {
		source = addresses[0] << 32 | bpf_htonl(0xffff);
		destination = (addresses[0] & 0xffffffff00000000ULL) | bpf_htonl(0xffff);
	} else {
		source = addresses[0] ^ addresses[1];
		destination = addresses[2] ^ addresses[3];
	}
	bucket = mix(source, destination, ports) >> (64 - __builtin_ctz(OVERLAY_RECENT));
	known = recent.lookup(&bucket);
	if (!known || known->ports != ports || known->addresses[0] != addresses[0])
		return 0;
	if (words == 4 && (known->addresses[1] != addresses[1] || known->addresses[2] != addresses[2] ||
			   known->addresses[3] != addresses[3]))
		return 0;
	header += tcp->doff * 4;
	payload = packet->length - header;
	packet->sequence = bpf_ntohl(tcp->seq);
	if (READ_ONCE(active->deadline) || skb->pkt_type != PACKET_HOST || skb->vlan_present || is_exempt(skb))
		return 0; /* shortcut() asks in full */
	if (known->in != skb->ifindex || known->ethertype != skb->protocol || known->epoch != active->epoch ||
	    now - known->proven >= period(active) || (known->tos ^ packet->tos) & DSCP)
		return 0;
	if (tcp->doff < 5 || payload >> 63 || (payload && before(packet->sequence, known->next)))
		return 0;
	if (packet->length > known->largest && !(skb->gso_size && skb->gso_size + header <= known->largest))
		return 0;
	beat = beats.lookup(&bucket);
	if (!beat || known->version != READ_ONCE(beat->version))
		return 0;
	if (known->there != now) { /* once in a tick: the lookup is a third of what a packet costs */
		if (!is_at(known->out, known->place))
			return 0;
		known->there = now;
	}
	known->next = packet->sequence + payload;
	known->packets++;
	return known;
}

static __always_inline bool is_plain(const struct tcphdr *tcp)
{
	return (((const __u8 *)tcp)[13] & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK)) == TCP_ACK;
}

static __always_inline struct recent *recall_ipv4(const struct __sk_buff *skb, struct packet *packet,
						  const struct control *active, const struct iphdr *ip)
{
	const struct tcphdr *tcp = (void *)(ip + 1);

	if (ip->frag_off & bpf_htons(0x3fff) || packet->length + ETH_HLEN != skb->len || packet->ttl <= 1 || !is_plain(tcp))
		return 0;
	return recall(skb, packet, active, (const __u64 *)&ip->saddr, 1, tcp, sizeof(*ip));
}

static __always_inline struct recent *recall_ipv6(const struct __sk_buff *skb, struct packet *packet,
						  const struct control *active, const struct ipv6hdr *ip)
{
	const struct tcphdr *tcp = (void *)(ip + 1);

	if (packet->length + ETH_HLEN != skb->len || packet->ttl <= 1 || !is_plain(tcp))
		return 0;
	return recall(skb, packet, active, (const __u64 *)&ip->saddr, 4, tcp, sizeof(*ip));
}

static __always_inline struct recent *shortcut(struct __sk_buff *skb, struct packet *packet, const struct control *active)
{
	__u64 now = bpf_jiffies64();
	struct recent *known;
	struct way *awaited;
	struct beat *beat;
	__u32 bucket;

	if (!may_leave(skb, packet, active))
		return 0;
	if (packet->ttl <= 1) {
		refuse(packet, REASON_ttl);
		return 0;
	}
	bucket = bucket_of(packet->key, packet->direction);
	known = recent.lookup(&bucket);
	beat = beats.lookup(&bucket);
	refuse(packet, REASON_unknown_flow);
	if (!known || !beat)
		return 0;
	if (packet->flags & (TCP_SYN | TCP_FIN | TCP_RST)) {
		__sync_fetch_and_add(&beat->version, 1); /* processors may remember a flow that was evicted */
		awaited = follow(skb, packet, active, now);
	} else
		awaited = look_up(skb, packet, active, known, beat, now);
	if (awaited)
		expect(skb, packet, awaited, now);
	if (packet->event)
		count(packet->direction, packet->event, 0);
	if (packet->reason != LEAVES)
		return 0;
	/* What the link padded a short frame with: the kernel cuts it off (ip_rcv_core, ip6_rcv_core). */
	if (skb->len > ETH_HLEN + packet->length && bpf_skb_change_tail(skb, ETH_HLEN + packet->length, 0)) {
		refuse(packet, REASON_malformed);
		return 0;
	}
	known->next = packet->sequence + data_length(packet);
	known->packets++;
	return known;
}
