/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a build can choose. Every setting can be given with -D. */
#pragma once

#define REDIRECT_PLAIN 0 /* fails, kept for the test that shows why */
#define REDIRECT_NEIGH 1
#define REDIRECT_PEER 2

#ifndef OVERLAY_REDIRECT /* towards the workload; towards the uplink it is neigh, unless this is plain */
#define OVERLAY_REDIRECT REDIRECT_NEIGH
#endif

#ifndef OVERLAY_CHECK_MTU /* 1: ask the kernel for an interface's MTU (Linux 5.12), 0: take the one in the maps */
#define OVERLAY_CHECK_MTU 0
#endif

#ifndef OVERLAY_FLOWS /* room for established flows, a power of two, four times as many as are expected */
#define OVERLAY_FLOWS 65536
#endif

#ifndef OVERLAY_TRANSIENT /* room for flows that are being opened or closed; what a SYN flood can take */
#define OVERLAY_TRANSIENT 16384
#endif

#ifndef OVERLAY_RECENT /* flows that each processor remembers without a lookup in `flows`, a power of two; 96 bytes each */
#define OVERLAY_RECENT 2048
#endif

#ifndef OVERLAY_WORKLOADS
#define OVERLAY_WORKLOADS 4096
#endif

#ifndef OVERLAY_PEERS
#define OVERLAY_PEERS 65536
#endif

#ifndef OVERLAY_IDLE_NS /* an established flow without a packet for this long may be swept: one day */
#define OVERLAY_IDLE_NS 86400000000000ULL
#endif

#ifndef OVERLAY_SILENT_NS /* how long a workload that did not answer through the overlay is left to the kernel */
#define OVERLAY_SILENT_NS 30000000000ULL
#endif

/* Smaller packets fit every interface that carries IP in practice (RFC 791, RFC 1122 section 3.3.2): no MTU check. */
#define OVERLAY_ALWAYS_FITS 576
