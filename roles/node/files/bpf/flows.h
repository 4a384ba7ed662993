/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The flow table. A flow is made from its first packet and lives in `transient` (an LRU) until its handshake is
 * completed, in `flows` while it is established, and in `transient` again from the second FIN on, for the last
 * packets of both ends. So first packets that nobody follows up never displace an established flow.
 */
#pragma once

#define SWEEP_STEPS 4

static __always_inline void forget_transient(struct packet *packet)
{
	if (transient.delete(&packet->key) == 0)
		count(packet->direction, REASON_transient_removed, 0);
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

	if (!now)
		return false;
	if (time - now->round_began > OVERLAY_IDLE_NS) {
		now->round_began = time;
		now->round++;
	}
	flow->round = now->round;
#pragma unroll
	for (int step = 0; step < SWEEP_STEPS; step++) {
		__u32 slot = (now->hand++ + (bpf_get_smp_processor_id() << 8)) & (OVERLAY_FLOWS - 1);
		struct flow_key *held = slots.lookup(&slot);
		struct flow *holder;

		if (!held)
			return false;
		holder = held->protocol ? flows.lookup(held) : NULL;
		if (holder && holder->slot == slot && holder->session == flow->session) {
			if (now->round - holder->round < 2)
				continue;
		}
		if (holder && holder->slot == slot && flows.delete(held) == 0)
			count(packet->direction, REASON_flow_swept, 0);
		*held = packet->key;
		flow->slot = slot;
		return true;
	}
	return false;
}

/* From `transient` to `flows`. Without room the flow stays where it is: still known, but it may be evicted. */
static __always_inline void establish(struct packet *packet, struct flow *flow)
{
	struct flow copy = *flow;

	flow->state = FLOW_ESTABLISHED;
	copy.state = FLOW_ESTABLISHED;
	if (take_slot(packet, &copy) && flows.update(&packet->key, &copy) == 0) {
		forget_transient(packet);
		count(packet->direction, REASON_flow_established, 0);
	} else {
		count(packet->direction, REASON_flows_full, 0);
	}
}

/* From `flows` to `transient`, for the acknowledgements that are still to come. */
static __always_inline void close(struct packet *packet, struct flow *flow)
{
	struct flow copy = *flow;

	copy.state = FLOW_CLOSING;
	if (transient.update(&packet->key, &copy) == 0)
		flows.delete(&packet->key);
	count(packet->direction, REASON_flow_closed, 0);
}

static __always_inline void reset(struct packet *packet)
{
	flows.delete(&packet->key);
	forget_transient(packet);
	count(packet->direction, REASON_flow_reset, 0);
}

/* A packet of an established flow that ends it. */
static __always_inline void track_established(struct packet *packet)
{
	struct flow *flow = flows.lookup(&packet->key);

	if (!flow)
		return;
	flow->fin[packet->direction & 1] = 1;
	if (flow->fin[FROM_UPLINK] && flow->fin[FROM_WORKLOAD])
		close(packet, flow);
}

/* A packet of a flow in `transient`. A flow that is closing stays until it is evicted or its ports are used again. */
static __always_inline void track_transient(struct packet *packet)
{
	struct flow *flow = transient.lookup(&packet->key);

	if (!flow)
		return;
	if (packet->direction == flow->opened_by) {
		if (flow->state == FLOW_ANSWERED && (packet->tcp_flags & TCP_ACK))
			establish(packet, flow);
	} else if (flow->state == FLOW_OPENING && (packet->tcp_flags & TCP_SYN)) {
		flow->state = FLOW_ANSWERED;
	}
}
