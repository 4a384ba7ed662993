/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a build can choose. Every setting can be given with -D. */
#pragma once

#define REDIRECT_NEIGH 1 /* by way of the interface, with the frame header that the kernel gave the flow's packets */
#define REDIRECT_PEER 2	 /* straight into the workload's end of its veth */

#ifndef OVERLAY_REDIRECT /* towards the workload */
#define OVERLAY_REDIRECT REDIRECT_NEIGH
#endif

#ifndef OVERLAY_FLOWS /* room for connections; one that is evicted takes the kernel's path */
#define OVERLAY_FLOWS 65536
#endif

#ifndef OVERLAY_PENDING /* room for handshakes, for each side that may begin one; what a SYN flood can take */
#define OVERLAY_PENDING 8192
#endif

#ifndef OVERLAY_RECENT /* directions of flows that each processor remembers, a power of two */
#define OVERLAY_RECENT 4096
#endif

#ifndef OVERLAY_WORKLOADS
#define OVERLAY_WORKLOADS 4096
#endif

#ifndef OVERLAY_PEERS
#define OVERLAY_PEERS 65536
#endif

#ifndef OVERLAY_IDLE /* a flow without a heartbeat for so many seconds is forgotten */
#define OVERLAY_IDLE 86400
#endif

#ifndef OVERLAY_EXEMPT_MARK /* packets with all of these bits in their mark stay with the kernel; 0: none */
#define OVERLAY_EXEMPT_MARK 0
#endif

#ifndef OVERLAY_BROKEN /* how long a way on which data was lost before anything arrived is left alone, seconds */
#define OVERLAY_BROKEN 30
#endif

#ifndef OVERLAY_PROVEN /* how long a way that carried data counts as proven for further flows, seconds */
#define OVERLAY_PROVEN 60
#endif
