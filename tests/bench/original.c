// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The design that the overlay grew out of, to compare with: stateless, IPv4 only, one port, one hash lookup per packet,
 * neigh in both directions. No flows, no modes, no guards, no TTL: do not use it for anything else.
 */
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>

#define PORT 8080

BPF_TABLE("hash", __be32, __u32, ifindex_map, 1024); /* workload -> its interface; 0.0.0.0 -> the uplink */

/* bcc declares bpf_redirect_neigh with three parameters; the kernel takes four. */
static long (*const redirect_neigh)(__u32 ifindex, void *parameters, int size, __u64 flags) =
	(void *)BPF_FUNC_redirect_neigh;

static __always_inline int redirect(struct __sk_buff *skb, bool is_reply)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	struct tcphdr *tcp = (void *)(ip + 1);
	__be32 address;
	__u32 *ifindex;

	if ((void *)(tcp + 1) > end)
		return TC_ACT_UNSPEC;
	if (eth->h_proto != bpf_htons(ETH_P_IP) || ip->ihl != 5 || ip->protocol != IPPROTO_TCP)
		return TC_ACT_UNSPEC;
	if ((is_reply ? tcp->source : tcp->dest) != bpf_htons(PORT))
		return TC_ACT_UNSPEC;
	address = is_reply ? 0 : ip->daddr;
	ifindex = ifindex_map.lookup(&address);
	if (!ifindex)
		return TC_ACT_UNSPEC;
	return redirect_neigh(*ifindex, NULL, 0, 0);
}

int request(struct __sk_buff *skb)
{
	return redirect(skb, false);
}

int reply(struct __sk_buff *skb)
{
	return redirect(skb, true);
}
