// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * The overlay: TCP flows of listed services go from the uplink straight to the workload's interface and back.
 *
 *   uplink ----> from_uplink    (TC ingress of the NIC)  ----> workload
 *   uplink <---- from_workload  (TC ingress of the veth) <---- workload
 *
 * Read top to bottom: settings, types, maps, parse, recent, flows, decide, act.
 * Any doubt returns TC_ACT_UNSPEC: the packet takes the kernel's own path and other filters still run.
 * Nothing here drops a packet.
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
#include "maps.h"
#include "parse.h"
#include "recent.h"
#include "flows.h"
#include "decide.h"
#include "act.h"

static __always_inline int overlay(struct __sk_buff *skb, enum direction direction)
{
	struct flow_key key;
	struct packet packet = {.direction = direction, .key = &key};
	struct way way;

	if (parse(skb, &packet) && decide(skb, &packet, &way))
		return redirect(skb, &packet, &way);
	return pass(skb, &packet);
}

int from_uplink(struct __sk_buff *skb)
{
	return overlay(skb, FROM_UPLINK);
}

int from_workload(struct __sk_buff *skb)
{
	return overlay(skb, FROM_WORKLOAD);
}
