// SPDX-License-Identifier: GPL-2.0-or-later
/* Counts packets, and those of listed ports of its table apart. */
#include <linux/pkt_cls.h>

BPF_TABLE("hash", __u32, __u32, ports, 4);
BPF_TABLE("percpu_array", __u32, __u64, packets, 1);

int count(struct __sk_buff *skb)
{
	__u32 zero = 0;
	__u64 *counter = packets.lookup(&zero);

	if (counter)
		*counter += 1;
	ports.lookup(&zero);
	return TC_ACT_UNSPEC;
}
