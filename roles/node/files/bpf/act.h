/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Pass, or lower the TTL and redirect. */
#pragma once

/* bcc declares bpf_redirect_neigh with three parameters; the kernel takes four. */
static long (*const redirect_neigh)(__u32 ifindex, struct bpf_redir_neigh *parameters, int size, __u64 flags) =
	(void *)BPF_FUNC_redirect_neigh;

static __always_inline int pass(struct __sk_buff *skb, const struct packet *packet)
{
	count(packet->direction, packet->reason, skb->len);
	return TC_ACT_UNSPEC;
}

/* In place: bpf_skb_store_bytes takes some 20 ns more. IPv4: RFC 1624, as ip_decrease_ttl() in include/net/ip.h. */
static __always_inline bool lower_ttl(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

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
	return true;
}

static __always_inline int neigh(struct __sk_buff *skb, __u32 ifindex, const union address *next_hop)
{
	struct bpf_redir_neigh parameters = {};

	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		parameters.nh_family = 10; /* AF_INET6 */
		__builtin_memcpy(parameters.ipv6_nh, next_hop, sizeof(*next_hop));
	} else {
		parameters.nh_family = 2; /* AF_INET */
		parameters.ipv4_nh = next_hop->words[3];
	}
	return redirect_neigh(ifindex, &parameters, sizeof(parameters), 0);
}

static __always_inline int redirect(struct __sk_buff *skb, struct packet *packet, struct way *way)
{
	bool to_uplink = packet->direction == FROM_WORKLOAD;

	if (!lower_ttl(skb)) {
		refuse(packet, REASON_malformed);
		return pass(skb, packet);
	}
	count(packet->direction,
	      to_uplink ? REASON_to_uplink : packet->tcp_flags ? REASON_to_workload : REASON_icmp_to_workload, skb->len);
#if OVERLAY_REDIRECT == REDIRECT_PLAIN
	return bpf_redirect(way->ifindex, 0);
#else
	if (to_uplink)
		return neigh(skb, way->ifindex, &way->next_hop);
#if OVERLAY_REDIRECT == REDIRECT_PEER
	return bpf_redirect_peer(way->ifindex, 0);
#else
	return neigh(skb, way->ifindex, &packet->key->workload);
#endif
#endif
}
