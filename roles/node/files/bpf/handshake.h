/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Admission. SYN, SYN-ACK and the ACK that completes the handshake take the kernel's path. Each must go in at one hook and
 * come out at the other with the numbers that follow from the one before. Nothing is inferred. What never completes is
 * evicted, from a table of its own side: a flood displaces no flow, and no handshake of the other side.
 */
#pragma once

static __always_inline void name_opener(const struct packet *packet, struct opener *opener, enum direction opened_by,
					__u32 sequence)
{
	opener->address = opened_by == FROM_WORKLOAD ? packet->key->workload : packet->key->remote;
	opener->port = opened_by == FROM_WORKLOAD ? packet->key->workload_port : packet->key->remote_port;
	opener->sequence = sequence;
	opener->protocol = IPPROTO_TCP;
	opener->pad = 0;
}

/* The handshake that began with this SYN, if it is between these very ends. */
static __always_inline struct pending *find_pending(const struct packet *packet, enum direction opened_by, __u32 sequence)
{
	struct pending *found;
	struct opener opener;

	name_opener(packet, &opener, opened_by, sequence);
	found = opened_by == FROM_WORKLOAD ? pending_out.lookup(&opener) : pending.lookup(&opener);
	return found && same_key(&found->key, packet->key) && belongs_to(&found->flow, packet->key) ? found : 0;
}

/* May this SYN begin a flow? */
static __always_inline bool is_eligible(struct __sk_buff *skb, struct packet *packet, const struct control *active)
{
	bool from_workload = packet->direction == FROM_WORKLOAD;
	struct prefix prefix = {.length = 128};
	struct workload *workload;
	struct peer *peer;

	workload = ifindex_map.lookup(&packet->key->workload);
	if (from_workload && (!workload || workload->ifindex != skb->ifindex))
		return refuse(packet, REASON_spoofed);
	if (active->mode != MODE_ON)
		return refuse(packet, REASON_draining);
	if (!is_service(from_workload ? packet->key->remote_port : packet->key->workload_port))
		return refuse(packet, REASON_not_service);
	if (!workload)
		return refuse(packet, REASON_not_workload);
	if (ifindex_map.lookup(&packet->key->remote))
		return refuse(packet, from_workload ? REASON_same_node : REASON_spoofed);
	__builtin_memcpy(prefix.address, &packet->key->remote, sizeof(prefix.address));
	peer = peers.lookup(&prefix);
	if (!peer)
		return refuse(packet, REASON_not_peer);
	if (peer->kind != PEER)
		return refuse(packet, REASON_host_address);
	return true;
}

static __always_inline void syn_in(struct __sk_buff *skb, struct packet *packet, const struct control *active)
{
	enum direction side = packet->direction;
	struct pending *made;
	struct opener opener;
	__u32 zero = 0;

	if (side == FROM_WORKLOAD) { /* which knows: whatever had these ports is over, in every mode */
		struct flow *flow = flows.lookup(packet->key);

		if (flow && flow->ways[FROM_WORKLOAD].in == skb->ifindex)
			suspend(packet, flow, 2);
	}
	if (!is_eligible(skb, packet, active))
		return;
	refuse(packet, REASON_handshake);
	if (find_pending(packet, side, packet->sequence))
		return; /* sent again: if this one comes out too, well */
	made = fresh.lookup(&zero);
	if (!made)
		return;
	__builtin_memset(made, 0, sizeof(*made));
	made->key = *packet->key;
	made->step = STEP_syn_in;
	made->flow.tag = tag_of(packet->key);
	made->flow.epoch = active->epoch;
	made->flow.opened_by = side;
	made->flow.initial[side & 1] = packet->sequence;
	expect(skb, packet, &made->flow.ways[side & 1], bpf_jiffies64());
	name_opener(packet, &opener, side, packet->sequence);
	if (side == FROM_WORKLOAD)
		pending_out.update(&opener, made);
	else
		pending.update(&opener, made);
	count(side, REASON_syn_in, 0);
}

static __always_inline void syn_out(struct __sk_buff *skb, struct packet *packet)
{
	enum direction side = packet->direction;
	struct pending *known = find_pending(packet, side, packet->sequence);

	if (!known || known->step > STEP_syn_out || !is_awaited(skb, packet, &known->flow.ways[side & 1]))
		return;
	if (!learn(skb, packet, &known->flow.ways[side & 1]))
		return;
	known->step = STEP_syn_out;
	count(side, REASON_syn_out, 0);
}

static __always_inline void answer_in(struct __sk_buff *skb, struct packet *packet)
{
	enum direction side = packet->direction, opened_by = side ^ 1;
	struct pending *known = find_pending(packet, opened_by, packet->acknowledgement - 1);
	struct flow *flow;

	if (side == FROM_WORKLOAD) { /* another connection with these ports */
		flow = flows.lookup(packet->key);
		if (flow && flow->ways[FROM_WORKLOAD].in == skb->ifindex && flow->initial[FROM_WORKLOAD] != packet->sequence)
			suspend(packet, flow, 2);
	}
	refuse(packet, REASON_handshake);
	if (!known || known->step < STEP_syn_out || known->step > STEP_answer_out)
		return;
	/* The workload's answer comes from the interface that the SYN went to. */
	if (side == FROM_WORKLOAD && known->flow.ways[FROM_UPLINK].out != skb->ifindex)
		return (void)refuse(packet, REASON_spoofed);
	known->flow.initial[side & 1] = packet->sequence;
	expect(skb, packet, &known->flow.ways[side & 1], bpf_jiffies64());
	if (known->step < STEP_answer_in)
		count(side, REASON_answer_in, 0);
	known->step = STEP_answer_in;
}

static __always_inline void answer_out(struct __sk_buff *skb, struct packet *packet)
{
	enum direction side = packet->direction, opened_by = side ^ 1;
	struct pending *known = find_pending(packet, opened_by, packet->acknowledgement - 1);

	if (!known || known->step != STEP_answer_in || !is_awaited(skb, packet, &known->flow.ways[side & 1]))
		return;
	/* To the interface that the workload's SYN came from. */
	if (side == FROM_UPLINK && known->flow.ways[FROM_WORKLOAD].in != skb->ifindex)
		return;
	if (!learn(skb, packet, &known->flow.ways[side & 1]))
		return;
	known->step = STEP_answer_out;
	count(side, REASON_answer_out, 0);
}

/* The ACK that completes a handshake, with data or without. */
static __always_inline bool completes(struct __sk_buff *skb, struct packet *packet)
{
	enum direction side = packet->direction;
	struct pending *known = find_pending(packet, side, packet->sequence - 1);

	if (!known || known->step < STEP_answer_out || packet->acknowledgement != known->flow.initial[(side ^ 1) & 1] + 1)
		return false;
	if (side == FROM_WORKLOAD && known->flow.ways[FROM_WORKLOAD].in != skb->ifindex)
		return false;
	expect(skb, packet, &known->flow.ways[side & 1], bpf_jiffies64());
	if (known->step < STEP_ack_in)
		count(side, REASON_ack_in, 0);
	known->step = STEP_ack_in;
	return true;
}

static __always_inline void admit(struct __sk_buff *skb, struct packet *packet, const struct control *active)
{
	enum direction side = packet->direction;
	struct pending *known = find_pending(packet, side, packet->sequence - 1);
	__u64 now = bpf_jiffies64();
	struct workload *workload;
	struct opener opener;

	if (!known || known->step != STEP_ack_in || !is_awaited(skb, packet, &known->flow.ways[side & 1]) ||
	    !learn(skb, packet, &known->flow.ways[side & 1]))
		return;
	workload = ifindex_map.lookup(&packet->key->workload);
	if (!workload || workload->ifindex != known->flow.ways[FROM_UPLINK].out ||
	    workload->ifindex != known->flow.ways[FROM_WORKLOAD].in)
		return;
	known->flow.ways[FROM_UPLINK].flags = workload->flags;
	known->flow.ways[FROM_UPLINK].proven = now;
	known->flow.ways[FROM_WORKLOAD].proven = now;
	known->flow.seen = now;
	known->flow.epoch = active->epoch;
	if (!belongs_to(&known->flow, packet->key) || flows.update(packet->key, &known->flow))
		return;
	changed(packet->key);
	name_opener(packet, &opener, side, packet->sequence - 1);
	if (side == FROM_WORKLOAD)
		pending_out.delete(&opener);
	else
		pending.delete(&opener);
	count(side, REASON_admitted, 0);
}
