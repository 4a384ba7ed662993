// SPDX-License-Identifier: GPL-2.0-or-later
/* Redirect whatever is IPv4 without looking at it: what no overlay can be faster than. */
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>

/* bcc declares bpf_redirect_neigh with three parameters; the kernel takes four. */
static long (*const redirect_neigh)(__u32 ifindex, struct bpf_redir_neigh *parameters, int size, __u64 flags) =
	(void *)BPF_FUNC_redirect_neigh;

int blind_request(struct __sk_buff *skb)
{
	return skb->protocol == bpf_htons(ETH_P_IP) ? bpf_redirect_peer(HOST_SIDE, 0) : TC_ACT_UNSPEC;
}

int blind_reply(struct __sk_buff *skb)
{
	struct bpf_redir_neigh parameters = {.nh_family = 2 /* AF_INET */};

	parameters.ipv4_nh = bpf_htonl(CLIENT);
	return skb->protocol == bpf_htons(ETH_P_IP) ? redirect_neigh(UPLINK, &parameters, sizeof(parameters), 0)
						    : TC_ACT_UNSPEC;
}
