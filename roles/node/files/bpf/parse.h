/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Parsing is strict: what is not plain TCP over plain IP, whole and consistent, is left to the kernel. */
#pragma once

struct packet {
	enum direction direction;
	volatile __u8 reason; /* why it stays on the kernel's path, or LEAVES */
	volatile __u8 same;   /* YES or NO: this processor remembers this direction of the flow */
	volatile __u8 again;  /* YES or NO: its data went this way before */
	volatile __u8 proven; /* YES or NO: its way is */
	volatile __u8 event;  /* what is counted besides, or 0 */
	volatile __u8 flags;  /* of TCP; what is not plain is looked at once for both families */
	volatile __u8 ttl;
	volatile __u8 tos;
	__u32 length;	      /* of the IP packet, bytes */
	__u32 header_length;  /* IP and TCP headers, bytes */
	__u32 sequence;
	__u32 acknowledgement;
	struct flow_key *key; /* apart, so that the rest may live in registers: map functions are given its address */
};

#define LEAVES 255 /* nothing speaks against the short way */

/*
 * Answers go through bytes of memory, whose values the verifier forgets (unless they are zero): so all refusals are one
 * path to it, and it looks at what follows once instead of once per reason.
 */
enum answer { NO = 1, YES = 2 };

static __always_inline bool refuse(struct packet *packet, enum reason reason)
{
	packet->reason = reason;
	return false;
}

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define DSCP 0xfc /* of TOS or traffic class; the rest is ECN, which every packet may set as it likes */
#define LINEAR 128 /* bytes that hold every header looked at here */

static __always_inline bool is_service(__be16 port)
{
	__u32 index = bpf_ntohs(port);
	__u32 *protocols = services.lookup(&index);

	return protocols && *protocols & SERVICE_TCP;
}

/* The workload's port first: most workloads serve. */
static __always_inline bool concerns_service(__be16 source, __be16 destination, bool outbound)
{
	return is_service(outbound ? source : destination) || is_service(outbound ? destination : source);
}

/*
 * The other half is zero. The verifier must not know: it would look at everything that follows once for each family. So
 * it is computed from the header's first byte, which is 0x45.
 */
static __always_inline void set_ipv4(union address *address, __be32 ipv4, const struct iphdr *ip)
{
	address->halves[0] = *(const volatile __u8 *)ip ^ 0x45;
	address->halves[1] = (__u64)ipv4 << 32 | bpf_htonl(0xffff); /* little-endian, as every machine that this runs on */
}

static __always_inline void set_ipv6(union address *address, const struct in6_addr *ipv6, const void *ip)
{
	(void)ip;
	*address = *(const union address *)ipv6;
}

/* What IPv4 addresses look like here. The kernel drops IPv6 packets from such addresses (ip6_rcv_core). */
static __always_inline bool is_mapped(const union address *address)
{
	return !address->halves[0] && address->words[2] == bpf_htonl(0xffff);
}

/* Source and destination become workload and remote end. */
#define SET_KEY(packet, set, ip, source_address, destination_address, tcp)                                            \
	do {                                                                                                         \
		bool outbound_ = (packet)->direction == FROM_WORKLOAD;                                               \
		struct flow_key *key_ = (packet)->key;                                                               \
		set(outbound_ ? &key_->workload : &key_->remote, source_address, ip);                                \
		set(outbound_ ? &key_->remote : &key_->workload, destination_address, ip);                           \
		key_->workload_port = outbound_ ? (tcp)->source : (tcp)->dest;                                       \
		key_->remote_port = outbound_ ? (tcp)->dest : (tcp)->source;                                         \
		key_->protocol = IPPROTO_TCP;                                                                        \
		key_->pad[0] = key_->pad[1] = key_->pad[2] = 0;                                                      \
	} while (0)

static __always_inline bool parse_tcp(struct packet *packet, const struct tcphdr *tcp, __u32 ip_header)
{
	__u8 flags = ((const __u8 *)tcp)[13];
	__u32 header = tcp->doff * 4;

	if (header < sizeof(*tcp) || packet->length < ip_header + header)
		return refuse(packet, REASON_malformed);
	if (!(flags & (TCP_SYN | TCP_RST | TCP_ACK)) || ((flags & TCP_SYN) && (flags & (TCP_FIN | TCP_RST))))
		return refuse(packet, REASON_malformed);
	packet->flags = flags;
	packet->header_length = ip_header + header;
	/* Read here and now: kept for later, the pointer would make each family a state of its own to the verifier. */
	packet->sequence = bpf_ntohl(READ_ONCE(tcp->seq));
	packet->acknowledgement = bpf_ntohl(READ_ONCE(tcp->ack_seq));
	return true;
}

/*
 * Ports come before whatever else may be wrong, because most packets are not ours and have only these to tell it by.
 * These functions are given frames that hold an IP and a TCP header.
 */
static __always_inline bool is_ours_ipv4(struct packet *packet, const struct iphdr *ip)
{
	const struct tcphdr *tcp = (void *)(ip + 1);

	if (*(__u8 *)ip != 0x45)
		return refuse(packet, REASON_malformed);
	if (ip->protocol != IPPROTO_TCP)
		return refuse(packet, REASON_not_tcp);
	if (!concerns_service(tcp->source, tcp->dest, packet->direction == FROM_WORKLOAD))
		return refuse(packet, REASON_not_service);
	packet->ttl = ip->ttl;
	packet->tos = ip->tos;
	packet->length = bpf_ntohs(ip->tot_len);
	return true;
}

static __always_inline bool is_ours_ipv6(struct packet *packet, const struct ipv6hdr *ip)
{
	const struct tcphdr *tcp = (void *)(ip + 1);
	__u8 protocol = ip->nexthdr;

	if (*(__u8 *)ip >> 4 != 6)
		return refuse(packet, REASON_malformed);
	if (protocol != IPPROTO_TCP)
		return refuse(packet, protocol == IPPROTO_FRAGMENT ? REASON_fragment : REASON_not_tcp);
	if (!concerns_service(tcp->source, tcp->dest, packet->direction == FROM_WORKLOAD))
		return refuse(packet, REASON_not_service);
	packet->ttl = ip->hop_limit;
	packet->tos = bpf_ntohl(*(__be32 *)ip) >> 20;
	packet->length = sizeof(*ip) + bpf_ntohs(ip->payload_len);
	return true;
}

static __always_inline bool parse_ipv4(struct __sk_buff *skb, struct packet *packet, const struct iphdr *ip)
{
	const struct tcphdr *tcp = (void *)(ip + 1);

	if (ip->frag_off & bpf_htons(0x3fff)) /* more fragments, or an offset */
		return refuse(packet, REASON_fragment);
	if (!packet->length && skb->gso_size) /* more than the field holds (BIG TCP, iph_set_totlen) */
		packet->length = skb->len - ETH_HLEN;
	if (packet->length + ETH_HLEN > skb->len)
		return refuse(packet, REASON_malformed);
	SET_KEY(packet, set_ipv4, ip, ip->saddr, ip->daddr, tcp);
	return parse_tcp(packet, tcp, sizeof(*ip));
}

static __always_inline bool parse_ipv6(struct __sk_buff *skb, struct packet *packet, const struct ipv6hdr *ip)
{
	const struct tcphdr *tcp = (void *)(ip + 1);

	if (packet->length == sizeof(*ip) && skb->gso_size) /* more than the field holds, with no option that tells */
		packet->length = skb->len - ETH_HLEN;
	if (packet->length + ETH_HLEN > skb->len)
		return refuse(packet, REASON_malformed);
	SET_KEY(packet, set_ipv6, ip, &ip->saddr, &ip->daddr, tcp);
	if (is_mapped(&packet->key->workload))
		return refuse(packet, REASON_malformed);
	return parse_tcp(packet, tcp, sizeof(*ip));
}

/* Too short for an IP and a TCP header. Only the reason is of interest. */
static __always_inline bool refuse_short(struct packet *packet, bool ipv4, void *data, void *end)
{
	struct iphdr *ip = data + ETH_HLEN;
	struct ipv6hdr *ipv6 = data + ETH_HLEN;
	__u8 protocol;

	if (ipv4 ? (void *)(ip + 1) > end || *(__u8 *)ip != 0x45 : (void *)(ipv6 + 1) > end || *(__u8 *)ipv6 >> 4 != 6)
		return refuse(packet, REASON_malformed);
	protocol = ipv4 ? ip->protocol : ipv6->nexthdr;
	return refuse(packet, protocol == IPPROTO_TCP ? REASON_malformed : REASON_not_tcp);
}

/* Whether a frame begins with so many bytes of headers, all of them at hand. */
static __always_inline bool holds(struct __sk_buff *skb, __u32 headers, void **data, void **end)
{
	*data = (void *)(long)skb->data;
	*end = (void *)(long)skb->data_end;
	if (*data + headers <= *end)
		return true;
	/* Only when they are not linear: a partial pull corrupts some GRO packets (projectcalico/calico #11424). */
	if (skb->len < headers || bpf_skb_pull_data(skb, skb->len < LINEAR ? skb->len : LINEAR))
		return false;
	*data = (void *)(long)skb->data;
	*end = (void *)(long)skb->data_end;
	return *data + headers <= *end;
}
