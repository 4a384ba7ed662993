// SPDX-License-Identifier: GPL-2.0-or-later
/* Ways to the workload and back, each taken by every IPv4 packet without looking at it: which helper costs what. */
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>

/* bcc declares bpf_redirect_neigh with three parameters; the kernel takes four. */
static long (*const redirect_neigh)(__u32 ifindex, struct bpf_redir_neigh *parameters, int size, __u64 flags) =
	(void *)BPF_FUNC_redirect_neigh;

/* To the device's egress, with a frame header that is written here: destination and source as 48-bit numbers. */
static __always_inline int by_frame(struct __sk_buff *skb, __u32 ifindex, __u64 destination, __u64 source)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP))
		return TC_ACT_UNSPEC;
#pragma unroll
	for (int i = 0; i < ETH_ALEN; i++) {
		eth->h_dest[i] = destination >> (40 - 8 * i);
		eth->h_source[i] = source >> (40 - 8 * i);
	}
	return bpf_redirect(ifindex, 0);
}

static __always_inline int by_neigh(struct __sk_buff *skb, __u32 ifindex, __u32 next_hop)
{
	struct bpf_redir_neigh parameters = {.nh_family = 2 /* AF_INET */};

	parameters.ipv4_nh = bpf_htonl(next_hop);
	return skb->protocol == bpf_htons(ETH_P_IP) ? redirect_neigh(ifindex, &parameters, sizeof(parameters), 0)
						    : TC_ACT_UNSPEC;
}

int to_peer(struct __sk_buff *skb)
{
	return skb->protocol == bpf_htons(ETH_P_IP) ? bpf_redirect_peer(HOST_SIDE, 0) : TC_ACT_UNSPEC;
}

int to_neigh(struct __sk_buff *skb)
{
	return by_neigh(skb, HOST_SIDE, WORKLOAD);
}

int to_frame(struct __sk_buff *skb)
{
	return by_frame(skb, HOST_SIDE, WORKLOAD_MAC, HOST_SIDE_MAC);
}

int back_neigh(struct __sk_buff *skb)
{
	return by_neigh(skb, UPLINK, CLIENT);
}

int back_frame(struct __sk_buff *skb)
{
	return by_frame(skb, UPLINK, CLIENT_MAC, UPLINK_MAC);
}
