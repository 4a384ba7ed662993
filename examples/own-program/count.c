// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Counts IPv4 packets by their source address, and lets every packet go on its way.
 */
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>

/* How many addresses are remembered; those that were silent for longest go first. */
#ifndef SOURCES
#define SOURCES 4096
#endif

/* IPv4 address, its four bytes as they are in the packet -> packets; filled by the program */
BPF_TABLE("lru_hash", u32, u64, packets, SOURCES);

/* IPv4 address -> 1: is not counted; filled by the playbook */
BPF_TABLE("hash", u32, u8, ignored, 256);

int count(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + sizeof(*eth);
	u64 one = 1, *known;
	u32 source;

	if ((void *)(ip + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP))
		return TC_ACT_UNSPEC;
	source = ip->saddr;
	if (ignored.lookup(&source))
		return TC_ACT_UNSPEC;
	known = packets.lookup(&source);
	if (known)
		__sync_fetch_and_add(known, 1);
	else
		packets.update(&source, &one);
	return TC_ACT_UNSPEC;
}
