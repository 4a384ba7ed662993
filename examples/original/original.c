// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The experiment that the overlay grew from: TCP port 8080, one hash map, no state.
 * REDIRECT_PLAIN=1 selects bpf_redirect, otherwise it is bpf_redirect_neigh.
 */
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>

#ifndef REDIRECT_PLAIN
#define REDIRECT_PLAIN 0
#endif

#define PORT 8080

/* IPv4 address, its four bytes as they are in the packet -> ifindex */
BPF_HASH(ifindex_map, u32, u32, 1024);

/* bcc declares bpf_redirect_neigh with three parameters; the kernel takes four. */
static long (*const redirect_neigh)(u32 ifindex, void *parameters, int size, u64 flags) =
	(void *)BPF_FUNC_redirect_neigh;

int redirect(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + sizeof(*eth);
	struct tcphdr *tcp = data + sizeof(*eth) + sizeof(*ip);
	u32 address, *ifindex;

	if ((void *)(tcp + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP) || ip->ihl != 5 || ip->protocol != IPPROTO_TCP)
		return TC_ACT_UNSPEC;
	if (tcp->dest != bpf_htons(PORT) && tcp->source != bpf_htons(PORT))
		return TC_ACT_UNSPEC;

	address = ip->daddr;
	ifindex = ifindex_map.lookup(&address);
	if (!ifindex)
		return TC_ACT_UNSPEC;
#if REDIRECT_PLAIN
	return bpf_redirect(*ifindex, 0);
#else
	return redirect_neigh(*ifindex, NULL, 0, 0);
#endif
}
