/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The flow table. A flow is made from its first packet and lives in `transient` (an LRU) until its handshake is
 * completed, in `flows` while it is established, and in `transient` again from the second FIN or an RST on, for the
 * last packets of both ends. So first packets that nobody follows up never displace an established flow, and a forged
 * SYN or RST, whose sequence number nobody checks here, cuts no connection: the flow stays known.
 */
#pragma once

#define SWEEP_STEPS 4

static __always_inline void forget_transient(struct packet *packet)
{
	if (transient.delete(packet->key) == 0)
		count(packet->direction, REASON_transient_removed, 0);
}

static __always_inline void forget(struct packet *packet)
{
	if (flows.delete(packet->key) == 0) {
		changed(packet->key);
		count(packet->direction, REASON_flow_replaced, 0);
	}
	forget_transient(packet);
}

/*
 * Finds a place in `flows`. Every place has a holder in `slots`; a new flow looks at a few places and takes the first
 * whose holder is gone or idle. That is the sweep: it runs when room is needed, needs no process and no timer.
 * A round lasts at least OVERLAY_IDLE_NS and every packet stamps its flow with the round, so a flow that is two rounds
 * behind was idle for one whole round. Processors look at different places, and a lost update of `hand` does no harm.
 */
static __always_inline bool take_slot(struct packet *packet, struct flow *flow)
{
	__u32 zero = 0;
	struct sweep *now = sweep.lookup(&zero);
	__u64 time = bpf_ktime_get_ns();
	struct flow_key *held;
	struct flow *holder;
	__u32 round, slot;

	if (!now)
		return false;
	/* `round` is read first and `round_began` written first, so that two processors never begin two rounds at once. */
	round = READ_ONCE(now->round);
	if ((__s64)(time - READ_ONCE(now->round_began)) > (__s64)OVERLAY_IDLE_NS) {
		WRITE_ONCE(now->round_began, time);
		WRITE_ONCE(now->round, ++round);
	}
	flow->round = round;
#pragma unroll
	for (int step = 0; step < SWEEP_STEPS; step++) {
		slot = (now->hand++ + (bpf_get_smp_processor_id() << 8)) & (OVERLAY_FLOWS - 1);
		held = slots.lookup(&slot);
		if (!held)
			return false;
		holder = flows.lookup(held);
		if (!holder || holder->slot != slot)
			goto free;
		if (holder->session != flow->session || round - holder->round >= 2)
			goto idle;
	}
	return false;
idle:
	if (flows.delete(held) == 0)
		count(packet->direction, REASON_flow_swept, 0);
free:
	*held = *packet->key;
	flow->slot = slot;
	return true;
}

/* A first packet of an established flow changes its way at most: the workload knows whether somebody uses the ports
 * again (and answers with SYN-ACK) or forged it (RFC 5961 section 4). */
static __always_inline bool renew(struct packet *packet, struct flow *fresh)
{
	struct flow *known = flows.lookup(packet->key);

	if (!known || known->session != fresh->session)
		return false;
	fresh->since = known->since;
	fresh->round = known->round;
	fresh->slot = known->slot;
	fresh->opened_by = known->opened_by;
	fresh->state = known->state;
	fresh->fin[FROM_UPLINK] = known->fin[FROM_UPLINK];
	fresh->fin[FROM_WORKLOAD] = known->fin[FROM_WORKLOAD];
	if (!belongs_to(known, packet->key) || flows.update(packet->key, fresh))
		return false;
	changed(packet->key);
	count(packet->direction, REASON_flow_renewed, 0);
	return true;
}

/* From `transient` to `flows`. Without room the flow stays where it is: still known, but it may be evicted. It tries
 * again with its next packets. */
static __always_inline void establish(struct packet *packet, struct flow *flow)
{
	struct flow copy = *flow;

	if (!belongs_to(flow, packet->key))
		return;
	copy.state = FLOW_ESTABLISHED;
	if (take_slot(packet, &copy) && flows.update(packet->key, &copy) == 0) {
		forget_transient(packet);
		count(packet->direction, REASON_flow_established, 0);
	} else if (flow->state != FLOW_ESTABLISHED) {
		flow->state = FLOW_ESTABLISHED;
		count(packet->direction, REASON_flows_full, 0);
	}
}

/* FIN or RST of a flow in `flows`. */
static __always_inline void track_established(struct packet *packet)
{
	struct flow *flow = flows.lookup(packet->key);
	struct flow copy;

	if (!flow)
		return;
	if (packet->tcp_flags & TCP_RST)
		count(packet->direction, REASON_flow_reset, 0);
	else
		flow->fin[packet->direction & 1] = 1;
	if (!(packet->tcp_flags & TCP_RST) && !(flow->fin[FROM_UPLINK] && flow->fin[FROM_WORKLOAD]))
		return;
	copy = *flow;
	if (!belongs_to(flow, packet->key))
		return;
	copy.state = FLOW_CLOSING;
	if (transient.update(packet->key, &copy) == 0 && flows.delete(packet->key) == 0) {
		changed(packet->key);
		count(packet->direction, REASON_flow_closed, 0);
	}
}

/* A packet of a flow in `transient`. One that is closing stays until it is evicted or its ports are used again. */
static __always_inline void track_transient(struct packet *packet)
{
	struct flow *flow = transient.lookup(packet->key);

	if (!flow || !packet->tcp_flags || flow->state == FLOW_CLOSING)
		return;
	if (packet->tcp_flags & TCP_FIN)
		flow->fin[packet->direction & 1] = 1;
	if (packet->tcp_flags & TCP_RST) {
		flow->state = FLOW_CLOSING;
		count(packet->direction, REASON_flow_reset, 0);
	} else if (flow->fin[FROM_UPLINK] && flow->fin[FROM_WORKLOAD]) {
		flow->state = FLOW_CLOSING;
	} else if (packet->direction != flow->opened_by) {
		if (flow->state == FLOW_OPENING)
			flow->state = FLOW_ANSWERED;
	} else if (flow->state != FLOW_OPENING && (packet->tcp_flags & TCP_ACK)) {
		establish(packet, flow);
	}
}
