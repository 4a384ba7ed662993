/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The short way may be broken where the kernel's is not: a program of somebody else that we know nothing of, a guest
 * behind a bridge. So between an uplink, a next hop and a workload, one flow tries it first. Data that is acknowledged proves
 * it, for all flows; data that is sent again before that leaves it to the kernel for a while.
 */
#pragma once

#define TRIAL_PATIENCE 2 /* seconds in which nothing was sent again, where one end only acknowledges */

static __always_inline void name_trial(const struct flow *flow, struct trial_key *key)
{
	key->workload = flow->ways[FROM_UPLINK].out;
	key->uplink = flow->ways[FROM_WORKLOAD].out;
	key->next_hop[0] = flow->ways[FROM_WORKLOAD].header[0];
	key->next_hop[1] = flow->ways[FROM_WORKLOAD].header[1] & bpf_htonl(0xffff0000);
}

/*
 * An acknowledgement of data that went the short way, whichever way it goes itself. No jumps, here and in note_loss(): the
 * verifier would look at what follows once for each.
 */
static __always_inline void note_proof(const struct packet *packet, struct flow *flow)
{
	enum direction sender = (packet->direction ^ 1) & 1;

	flow->tried |= (~(packet->acknowledgement - flow->tried_first[sender]) >> 31 & flow->tried >> sender) << (2 + sender);
}

/*
 * Data that went the short way comes again, whichever way it goes now: if it does so as a heartbeat, its acknowledgement is
 * no proof.
 */
static __always_inline void note_loss(const struct packet *packet, struct flow *flow)
{
	enum direction side = packet->direction & 1;
	__u32 within = (packet->sequence - flow->tried_until[side]) & ~(packet->sequence - flow->tried_from[side]);

	flow->tried |= ((within & -data_length(packet)) >> 31 & flow->tried >> side) << 4;
}

/* What goes the short way. */
static __always_inline void note_data(const struct packet *packet, struct flow *flow)
{
	enum direction side = packet->direction & 1;
	__u32 length = data_length(packet), end = packet->sequence + length;

	if (!length)
		return;
	if (!(flow->tried & 1 << side)) {
		flow->tried |= 1 << side;
		flow->tried_from[side] = packet->sequence;
		flow->tried_first[side] = end;
		flow->tried_until[side] = end;
	} else if (packet->sequence == flow->tried_until[side]) {
		flow->tried_until[side] = end;
	}
}

static __always_inline void fail(struct packet *packet, struct flow *flow, struct trial *trial, __u64 now)
{
	trial->state = TRIAL_broken;
	trial->since = now;
	flow->trial = TRIAL_none;
	flow->tried = 0;
	packet->event = REASON_way_broken;
}

/* Whoever lost data says so, also where another flow tries by now, and when he has ended. */
static __always_inline void tell_loss(struct packet *packet, struct flow *flow, __u64 now)
{
	struct trial_key key;
	struct trial *trial;

	name_trial(flow, &key);
	trial = trials.lookup(&key);
	if (trial && trial->state == TRIAL_running)
		fail(packet, flow, trial, now);
}

/* Whether this packet may go the short way: it is proven, or this flow is the one that tries. */
static __always_inline bool may_try(struct packet *packet, struct flow *flow, const struct control *active, __u64 now)
{
	struct trial begun = {.since = now, .tag = flow->tag, .state = TRIAL_running};
	struct trial_key key;
	struct trial *trial;
	__u64 age;

	name_trial(flow, &key);
	trial = trials.lookup(&key);
	age = trial ? now - trial->since : 0;
	if (trial && trial->state == TRIAL_proven && age < (__u64)OVERLAY_PROVEN * active->second) {
		flow->trial = TRIAL_proven;
		return true;
	}
	if (trial && trial->state == TRIAL_broken && age < (__u64)OVERLAY_BROKEN * active->second)
		return false;
	if (!trial || trial->state != TRIAL_running || (trial->tag != flow->tag && !(flow->tried & 16))) {
		if (trial && trial->state == TRIAL_running && age < active->second)
			return false;
		flow->tried = 0;
		flow->trial = TRIAL_running;
		trials.update(&key, &begun);
		trial = 0;
	}
	note_data(packet, flow);
	if (!trial)
		return true;
	if (flow->tried & 16) {
		fail(packet, flow, trial, now);
		return false;
	}
	if ((flow->tried & 12) == 12 || ((flow->tried & 12) && age >= TRIAL_PATIENCE * active->second)) {
		trial->state = TRIAL_proven;
		trial->since = now;
		flow->trial = TRIAL_proven;
		packet->event = REASON_way_proven;
	}
	return true;
}
