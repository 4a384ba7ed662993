/* SPDX-License-Identifier: GPL-2.0-or-later */
/* May this packet leave the kernel's path, and which way? Every "no" has its reason. */
#pragma once

/* The MTU of an interface: the kernel's own word where we may ask, else `mtu`, which is that of the facts. */
static __always_inline __u32 mtu_of(struct __sk_buff *skb, __u32 ifindex, __u32 mtu)
{
#if OVERLAY_CHECK_MTU
	long (*check_mtu)(void *, __u32, __u32 *, __s32, __u64) = (void *)163; /* BPF_FUNC_check_mtu */

	mtu = 0;
	check_mtu(skb, ifindex, &mtu, 0, 0); /* sets it whatever the verdict, which is wrong for GSO packets at ingress */
#endif
	return mtu;
}

/*
 * Where would the kernel forward a packet of `mtu` bytes from `source` to `destination` that came in by `input`?
 * Returns the interface, 0 for "nowhere" and for a route whose own MTU is smaller. Before Linux 5.12 the helper names
 * no interface while the neighbour is unknown; then `ifindex` still holds the input, and the answer matches nothing.
 */
static __always_inline __u32 route(struct __sk_buff *skb, struct bpf_fib_lookup *fib, __u32 input, __u32 mtu,
				   const union address *source, const union address *destination)
{
	long result;

	__builtin_memset(fib, 0, sizeof(*fib));
	fib->ifindex = input;
	fib->l4_protocol = IPPROTO_TCP;
	fib->tot_len = mtu;
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		fib->family = 10; /* AF_INET6 */
		__builtin_memcpy(fib->ipv6_src, source, sizeof(*source));
		__builtin_memcpy(fib->ipv6_dst, destination, sizeof(*destination));
	} else {
		fib->family = 2; /* AF_INET */
		fib->ipv4_src = source->words[3];
		fib->ipv4_dst = destination->words[3];
	}
	result = bpf_fib_lookup(skb, fib, sizeof(*fib), 0);
	if (result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH)
		return 0;
	return fib->ifindex;
}

static __always_inline bool same_words(const __u32 *one, const __u32 *other)
{
	return one[0] == other[0] && one[1] == other[1] && one[2] == other[2] && one[3] == other[3];
}

/* After route(): does the kernel use the next hop of the maps too? */
static __always_inline bool same_next_hop(struct __sk_buff *skb, const struct bpf_fib_lookup *fib,
					  const union address *next_hop)
{
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return same_words(fib->ipv6_dst, next_hop->words);
	return fib->family == 2 && fib->ipv4_dst == next_hop->words[3]; /* an IPv6 one (RFC 5549) is not for us */
}

static __always_inline void set_way(struct way *way, const struct packet *packet, const struct flow *flow)
{
	if (packet->direction == FROM_WORKLOAD) {
		way->ifindex = flow->uplink;
		way->mtu = flow->uplink_mtu;
		way->next_hop = flow->next_hop;
	} else {
		way->ifindex = flow->ifindex;
		way->mtu = flow->workload_mtu;
	}
}

/* Where both interfaces are, and in which epoch, which is read first: what happens afterwards makes the flow an old one. */
static __always_inline bool locate(struct flow *flow)
{
	__u32 workload_place = place_of(flow->ifindex), uplink_place = place_of(flow->uplink);

	flow->workload_place = workload_place;
	flow->uplink_place = uplink_place;
	flow->workload_epoch = epoch_of(workload_place);
	flow->uplink_epoch = epoch_of(uplink_place);
	return is_at(flow->ifindex, workload_place) && is_at(flow->uplink, uplink_place);
}

/* A first packet: makes the flow, or says why not. */
static __always_inline bool open_flow(struct __sk_buff *skb, struct packet *packet, const struct control *active,
				     struct flow *flow, struct way *way)
{
	bool from_workload = packet->direction == FROM_WORKLOAD;
	union address *other_end = from_workload ? &packet->key->remote : &packet->key->workload;
	struct prefix prefix = {.length = 128};
	struct bpf_fib_lookup fib;
	struct workload *workload;
	struct flow *known;
	struct peer *peer;
	__u64 *silent_since;
	__u64 now = bpf_ktime_get_ns();

	/* First of all, so that nobody touches the flows of others. */
	workload = ifindex_map.lookup(&packet->key->workload);
	if (from_workload && (!workload || workload->ifindex != skb->ifindex))
		return refuse(packet, REASON_spoofed);

	/* The same first packet again, and no answer came by here: something on the way is missing. Leave this
	 * flow, and for a while whoever did not answer, to the kernel. */
	known = transient.lookup(packet->key);
	if (known && known->session == active->session && known->opened_by == packet->direction &&
	    known->state <= FLOW_ANSWERED && now - known->since < OVERLAY_SILENT_NS) {
		if (known->state == FLOW_OPENING)
			silent.update(other_end, &now);
		return refuse(packet, REASON_first_packet_repeated);
	}
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
	if (!peer->ifindex)
		return refuse(packet, REASON_host_address);
	if (!from_workload && peer->ifindex != skb->ifindex)
		return refuse(packet, REASON_wrong_uplink);
	flow->ifindex = workload->ifindex;
	flow->uplink = peer->ifindex;
	if (!locate(flow))
		return refuse(packet, REASON_interface_gone);
	silent_since = silent.lookup(other_end);
	if (silent_since && now - *silent_since < OVERLAY_SILENT_NS)
		return refuse(packet, REASON_silent);

	flow->workload_mtu = workload->mtu;
	flow->uplink_mtu = peer->mtu;
	flow->next_hop = peer->next_hop;
	if (!(flow->next_hop.halves[0] | flow->next_hop.halves[1]))
		flow->next_hop = packet->key->remote;
	if (route(skb, &fib, flow->uplink, mtu_of(skb, flow->ifindex, flow->workload_mtu), &packet->key->remote,
		  &packet->key->workload) != flow->ifindex || !same_next_hop(skb, &fib, &packet->key->workload))
		return refuse(packet, REASON_route_differs);
	if (route(skb, &fib, flow->ifindex, mtu_of(skb, flow->uplink, flow->uplink_mtu), &packet->key->workload,
		  &packet->key->remote) != flow->uplink || !same_next_hop(skb, &fib, &flow->next_hop))
		return refuse(packet, REASON_route_differs);

	flow->tag = tag_of(packet->key);
	flow->session = active->session;
	flow->since = now;
	flow->opened_by = packet->direction;
	flow->state = FLOW_OPENING;
	set_way(way, packet, flow);
	return true;
}

static __always_inline bool too_big(struct __sk_buff *skb, const struct packet *packet, __u32 ifindex, __u32 mtu)
{
	/* Of a GSO packet, one segment counts (skb_gso_network_seglen in net/core/gso.c). */
	__u32 length = skb->gso_size ? skb->gso_size + packet->header_length : packet->length;

	if (length <= OVERLAY_ALWAYS_FITS)
		return false;
	return length > mtu_of(skb, ifindex, mtu);
}

/* Not a first packet: the way of its flow, if the flow is known. */
static __always_inline bool follow(struct __sk_buff *skb, struct packet *packet, const struct control *active,
				  __u32 bucket, const __u32 *version, struct way *way)
{
	__u32 before = READ_ONCE(*version);
	struct flow *found = flows.lookup(packet->key);
	struct flow flow;
	struct sweep *now;
	__u32 zero = 0;

	way->transient = !found;
	if (!found)
		found = transient.lookup(packet->key);
	if (!found)
		return refuse(packet, REASON_unknown_flow);
	flow = *found;
	if (!belongs_to(found, packet->key) || flow.session != active->session)
		return refuse(packet, REASON_unknown_flow);
	if (packet->direction == FROM_WORKLOAD && flow.ifindex != skb->ifindex)
		return refuse(packet, REASON_spoofed);
	now = sweep.lookup(&zero);
	if (now && flow.round != now->round) {
		flow.round = now->round;
		found->round = flow.round;
	}
	if (!STILL_LEADS(&flow, packet->direction))
		return refuse(packet, REASON_interface_gone);
	set_way(way, packet, &flow);
	if (!way->transient && !(packet->tcp_flags & (TCP_FIN | TCP_RST)) && READ_ONCE(*version) == before)
		remember(packet->key, &flow, bucket, before);
	return true;
}

/* A packet that wants to begin a flow. */
static __always_inline bool first_packet(struct __sk_buff *skb, struct packet *packet, const struct control *active,
					struct way *way)
{
	struct flow flow = {};

	if (packet->length > OVERLAY_ALWAYS_FITS) /* SYN with much data (RFC 7413) */
		return refuse(packet, REASON_too_big);
	if (!open_flow(skb, packet, active, &flow, way)) {
		/* If the kernel makes a connection of it now, an old flow must not catch its replies. */
		if (packet->reason != REASON_spoofed)
			forget(packet);
		return false;
	}
	if (renew(packet, &flow))
		return true;
	forget(packet);
	if (transient.update(packet->key, &flow))
		return refuse(packet, REASON_flows_full);
	count(packet->direction, REASON_flow_opened, 0);
	return true;
}

static __always_inline bool decide(struct __sk_buff *skb, struct packet *packet, struct way *way)
{
	struct control *active;
	__u32 zero = 0, bucket, *version;

	active = control.lookup(&zero);
	if (!active || READ_ONCE(active->mode) == MODE_OFF)
		return refuse(packet, REASON_mode_off);
	if (READ_ONCE(active->deadline) && bpf_ktime_get_ns() >= active->deadline)
		return refuse(packet, REASON_lease_expired);
	if (skb->pkt_type != PACKET_HOST)
		return refuse(packet, REASON_other_host);
	if (packet->ttl <= 1)
		return refuse(packet, REASON_ttl);

	if ((packet->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN)
		return first_packet(skb, packet, active, way);

	bucket = bucket_of(packet->key);
	version = versions.lookup(&bucket);
	if (!version)
		return refuse(packet, REASON_unknown_flow);
	if ((packet->tcp_flags & (TCP_FIN | TCP_RST)) ||
	    !recall(skb, packet, active, bucket, READ_ONCE(*version), way))
		if (!follow(skb, packet, active, bucket, version, way))
			return false;
	if (too_big(skb, packet, way->ifindex, way->mtu))
		return refuse(packet, REASON_too_big);
	if (way->transient)
		track_transient(packet);
	else if (packet->tcp_flags & (TCP_FIN | TCP_RST))
		track_established(packet);
	return true;
}
