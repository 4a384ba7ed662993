// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The overlay: a shortcut for packets of TCP connections that the kernel has admitted and keeps admitting.
 *
 *   uplink ----> from_uplink  - - - shortcut - - ->  to_workload ----> workload
 *                     \---- the kernel's own path ----/
 *   uplink <---- to_uplink    < - - shortcut - - -   from_workload <-- workload
 *
 * The kernel owns every connection. Its handshake, its end and a heartbeat of each direction always take the kernel's
 * path; from_* see them go in, to_* see them come out, and packets in between are sent the way that those took.
 *
 * Read top to bottom: settings, types, maps, parse, ways, handshake, trial, shortcut, act.
 * Any doubt returns TC_ACT_UNSPEC: the packet takes the kernel's path and other filters still run. Nothing here drops.
 */
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>

#include "settings.h"
#include "reasons.h"
#include "types.h"
#include "layout.h"
#include "maps.h"
#include "parse.h"
#include "ways.h"
#include "handshake.h"
#include "trial.h"
#include "shortcut.h"
#include "act.h"

/*
 * Parses a packet of a listed service. With `active`, asks first what this processor remembers: most packets need no
 * more, and `known` is set. False: the packet is nothing to look at, for a reason.
 */
static __always_inline bool parse(struct __sk_buff *skb, struct packet *packet, const struct control *active,
				  struct recent **known)
{
	void *data, *end;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (!holds(skb, ETH_HLEN + sizeof(struct iphdr) + sizeof(struct tcphdr), &data, &end))
			return refuse_short(packet, true, (void *)(long)skb->data, (void *)(long)skb->data_end);
		if (!is_ours_ipv4(packet, data + ETH_HLEN))
			return false;
		if (active && (*known = recall_ipv4(skb, packet, active, data + ETH_HLEN)))
			return true;
		if (!parse_ipv4(skb, packet, data + ETH_HLEN))
			return false;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (!holds(skb, ETH_HLEN + sizeof(struct ipv6hdr) + sizeof(struct tcphdr), &data, &end))
			return refuse_short(packet, false, (void *)(long)skb->data, (void *)(long)skb->data_end);
		if (!is_ours_ipv6(packet, data + ETH_HLEN))
			return false;
		if (active && (*known = recall_ipv6(skb, packet, active, data + ETH_HLEN)))
			return true;
		if (!parse_ipv6(skb, packet, data + ETH_HLEN))
			return false;
	} else {
		return refuse(packet, REASON_not_ip);
	}
	return !skb->vlan_present || refuse(packet, REASON_not_ip);
}

/* TC ingress: the shortcut, or the kernel's path. */
static __always_inline int decide(struct __sk_buff *skb, enum direction direction)
{
	struct flow_key key;
	struct packet packet = {.direction = direction, .key = &key};
	struct recent *known = 0;
	__u32 zero = 0;
	struct control *active = control.lookup(&zero);

	if (!active || READ_ONCE(active->mode) == MODE_OFF)
		return TC_ACT_UNSPEC;
	if (parse(skb, &packet, active, &known) && !known)
		known = shortcut(skb, &packet, active);
	return known ? redirect(skb, &packet, known) : pass(skb, &packet);
}

/* TC egress: what the kernel let out. Only looks. */
static __always_inline int watch(struct __sk_buff *skb, enum direction direction)
{
	struct flow_key key;
	struct packet packet = {.direction = direction, .key = &key};
	__u32 zero = 0, *own;
	struct control *active = control.lookup(&zero);

	if (!active || READ_ONCE(active->mode) == MODE_OFF)
		return TC_ACT_UNSPEC;
	own = crossing.lookup(&zero);
	if (own && *own == skb->ifindex) { /* redirected by us a moment ago: proves nothing */
		*own = 0;
		return TC_ACT_UNSPEC;
	}
	if (parse(skb, &packet, 0, 0))
		came_out(skb, &packet, active);
	if (packet.event)
		count(direction, packet.event, 0);
	return TC_ACT_UNSPEC;
}

int from_uplink(struct __sk_buff *skb)
{
	return decide(skb, FROM_UPLINK);
}

int from_workload(struct __sk_buff *skb)
{
	return decide(skb, FROM_WORKLOAD);
}

int to_workload(struct __sk_buff *skb)
{
	return watch(skb, FROM_UPLINK);
}

int to_uplink(struct __sk_buff *skb)
{
	return watch(skb, FROM_WORKLOAD);
}
