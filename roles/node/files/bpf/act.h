/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Pass, or make of the packet what the kernel would have made, and redirect it. */
#pragma once

static __always_inline int pass(struct __sk_buff *skb, const struct packet *packet)
{
	count(packet->direction, packet->reason, skb->len);
	return TC_ACT_UNSPEC;
}

/* In place: bpf_skb_store_bytes takes some 20 ns more. IPv4: RFC 1624, as ip_decrease_ttl() in include/net/ip.h. */
static __always_inline bool forward(struct __sk_buff *skb, const struct recent *recent)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u32 *header = data;

	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = data + ETH_HLEN;

		if ((void *)(ip + 1) > end)
			return false;
		ip->hop_limit--;
		bpf_csum_update(skb, ~(__u32)bpf_htons(1)); /* the NIC's sum, if it gave one: no header checksum absorbs it */
	} else {
		struct iphdr *ip = data + ETH_HLEN;
		__u32 sum;

		if ((void *)(ip + 1) > end)
			return false;
		sum = ip->check + bpf_htons(0x0100);
		ip->check = sum + (sum >= 0xffff);
		ip->ttl--;
	}
	header[0] = recent->header[0];
	header[1] = recent->header[1];
	header[2] = recent->header[2];
	return true;
}

static __always_inline int redirect(struct __sk_buff *skb, struct packet *packet, struct recent *recent)
{
	__u32 zero = 0, *own;

	if (!forward(skb, recent)) {
		refuse(packet, REASON_malformed);
		return pass(skb, packet);
	}
	count(packet->direction, packet->direction == FROM_WORKLOAD ? REASON_to_uplink : REASON_to_workload, skb->len);
	/* A packet must not overtake one that waits in the backlog of the veth: not in the tick in which it went there. */
	if (recent->peer && bpf_jiffies64() != recent->since)
		return bpf_redirect_peer(recent->out, 0);
	own = crossing.lookup(&zero);
	if (own)
		*own = recent->out;
	skb->mark = recent->mark;
	skb->priority = recent->priority;
	return bpf_redirect(recent->out, 0);
}
