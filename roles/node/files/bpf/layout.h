/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Written by tools/generate from plugins/module_utils/_layout.py. */
#pragma once

enum direction { FROM_UPLINK, FROM_WORKLOAD };
enum mode { MODE_OFF, MODE_DRAIN, MODE_ON };
enum peer_kind { OWN, PEER };
enum handshake_step { STEP_none, STEP_syn_in, STEP_syn_out, STEP_answer_in, STEP_answer_out, STEP_ack_in };
enum trial_state { TRIAL_none, TRIAL_running, TRIAL_proven, TRIAL_broken };

#define SERVICE_TCP 1
#define WORKLOAD_NEVER_PEER 1
#define DEVICES 8192
#define DEVICE_PROBES 16
#define STATS 512

_Static_assert(__builtin_offsetof(struct flow_key, workload) == 0, "_layout.py says 0");
_Static_assert(__builtin_offsetof(struct flow_key, remote) == 16, "_layout.py says 16");
_Static_assert(__builtin_offsetof(struct flow_key, workload_port) == 32, "_layout.py says 32");
_Static_assert(__builtin_offsetof(struct flow_key, remote_port) == 34, "_layout.py says 34");
_Static_assert(__builtin_offsetof(struct flow_key, protocol) == 36, "_layout.py says 36");
_Static_assert(sizeof(struct flow_key) == 40, "_layout.py says 40");
_Static_assert(__builtin_offsetof(struct opener, address) == 0, "_layout.py says 0");
_Static_assert(__builtin_offsetof(struct opener, sequence) == 16, "_layout.py says 16");
_Static_assert(__builtin_offsetof(struct opener, port) == 20, "_layout.py says 20");
_Static_assert(__builtin_offsetof(struct opener, protocol) == 22, "_layout.py says 22");
_Static_assert(sizeof(struct opener) == 24, "_layout.py says 24");
_Static_assert(__builtin_offsetof(struct way, proven) == 0, "_layout.py says 0");
_Static_assert(__builtin_offsetof(struct way, asked) == 8, "_layout.py says 8");
_Static_assert(__builtin_offsetof(struct way, in) == 16, "_layout.py says 16");
_Static_assert(__builtin_offsetof(struct way, out) == 20, "_layout.py says 20");
_Static_assert(__builtin_offsetof(struct way, place) == 24, "_layout.py says 24");
_Static_assert(__builtin_offsetof(struct way, largest) == 28, "_layout.py says 28");
_Static_assert(__builtin_offsetof(struct way, mark) == 32, "_layout.py says 32");
_Static_assert(__builtin_offsetof(struct way, priority) == 36, "_layout.py says 36");
_Static_assert(__builtin_offsetof(struct way, sequence) == 40, "_layout.py says 40");
_Static_assert(__builtin_offsetof(struct way, acknowledgement) == 44, "_layout.py says 44");
_Static_assert(__builtin_offsetof(struct way, length) == 48, "_layout.py says 48");
_Static_assert(__builtin_offsetof(struct way, header) == 52, "_layout.py says 52");
_Static_assert(__builtin_offsetof(struct way, tos) == 64, "_layout.py says 64");
_Static_assert(__builtin_offsetof(struct way, ttl) == 65, "_layout.py says 65");
_Static_assert(__builtin_offsetof(struct way, missed) == 66, "_layout.py says 66");
_Static_assert(__builtin_offsetof(struct way, owed) == 67, "_layout.py says 67");
_Static_assert(__builtin_offsetof(struct way, flags) == 68, "_layout.py says 68");
_Static_assert(sizeof(struct way) == 72, "_layout.py says 72");
_Static_assert(__builtin_offsetof(struct flow, tag) == 0, "_layout.py says 0");
_Static_assert(__builtin_offsetof(struct flow, epoch) == 4, "_layout.py says 4");
_Static_assert(__builtin_offsetof(struct flow, seen) == 8, "_layout.py says 8");
_Static_assert(__builtin_offsetof(struct flow, initial[0]) == 16, "_layout.py says 16");
_Static_assert(__builtin_offsetof(struct flow, initial[1]) == 20, "_layout.py says 20");
_Static_assert(__builtin_offsetof(struct flow, ended_at[0]) == 24, "_layout.py says 24");
_Static_assert(__builtin_offsetof(struct flow, ended_at[1]) == 28, "_layout.py says 28");
_Static_assert(__builtin_offsetof(struct flow, tried_from[0]) == 32, "_layout.py says 32");
_Static_assert(__builtin_offsetof(struct flow, tried_from[1]) == 36, "_layout.py says 36");
_Static_assert(__builtin_offsetof(struct flow, tried_until[0]) == 40, "_layout.py says 40");
_Static_assert(__builtin_offsetof(struct flow, tried_until[1]) == 44, "_layout.py says 44");
_Static_assert(__builtin_offsetof(struct flow, tried_first[0]) == 48, "_layout.py says 48");
_Static_assert(__builtin_offsetof(struct flow, tried_first[1]) == 52, "_layout.py says 52");
_Static_assert(__builtin_offsetof(struct flow, ended) == 56, "_layout.py says 56");
_Static_assert(__builtin_offsetof(struct flow, opened_by) == 57, "_layout.py says 57");
_Static_assert(__builtin_offsetof(struct flow, trial) == 58, "_layout.py says 58");
_Static_assert(__builtin_offsetof(struct flow, tried) == 59, "_layout.py says 59");
_Static_assert(__builtin_offsetof(struct flow, ways[0]) == 64, "_layout.py says 64");
_Static_assert(__builtin_offsetof(struct flow, ways[1]) == 136, "_layout.py says 136");
_Static_assert(sizeof(struct flow) == 208, "_layout.py says 208");
_Static_assert(__builtin_offsetof(struct pending, key) == 0, "_layout.py says 0");
_Static_assert(__builtin_offsetof(struct pending, step) == 40, "_layout.py says 40");
_Static_assert(__builtin_offsetof(struct pending, flow) == 48, "_layout.py says 48");
_Static_assert(sizeof(struct pending) == 256, "_layout.py says 256");
_Static_assert(__builtin_offsetof(struct recent, addresses) == 0, "_layout.py says 0");
_Static_assert(__builtin_offsetof(struct recent, ports) == 32, "_layout.py says 32");
_Static_assert(__builtin_offsetof(struct recent, ethertype) == 36, "_layout.py says 36");
_Static_assert(__builtin_offsetof(struct recent, proven) == 40, "_layout.py says 40");
_Static_assert(__builtin_offsetof(struct recent, since) == 48, "_layout.py says 48");
_Static_assert(__builtin_offsetof(struct recent, there) == 56, "_layout.py says 56");
_Static_assert(__builtin_offsetof(struct recent, version) == 64, "_layout.py says 64");
_Static_assert(__builtin_offsetof(struct recent, epoch) == 68, "_layout.py says 68");
_Static_assert(__builtin_offsetof(struct recent, in) == 72, "_layout.py says 72");
_Static_assert(__builtin_offsetof(struct recent, out) == 76, "_layout.py says 76");
_Static_assert(__builtin_offsetof(struct recent, place) == 80, "_layout.py says 80");
_Static_assert(__builtin_offsetof(struct recent, largest) == 84, "_layout.py says 84");
_Static_assert(__builtin_offsetof(struct recent, mark) == 88, "_layout.py says 88");
_Static_assert(__builtin_offsetof(struct recent, priority) == 92, "_layout.py says 92");
_Static_assert(__builtin_offsetof(struct recent, header) == 96, "_layout.py says 96");
_Static_assert(__builtin_offsetof(struct recent, next) == 108, "_layout.py says 108");
_Static_assert(__builtin_offsetof(struct recent, packets) == 112, "_layout.py says 112");
_Static_assert(__builtin_offsetof(struct recent, tos) == 116, "_layout.py says 116");
_Static_assert(__builtin_offsetof(struct recent, peer) == 117, "_layout.py says 117");
_Static_assert(__builtin_offsetof(struct recent, key) == 120, "_layout.py says 120");
_Static_assert(sizeof(struct recent) == 160, "_layout.py says 160");
_Static_assert(__builtin_offsetof(struct workload, ifindex) == 0, "_layout.py says 0");
_Static_assert(__builtin_offsetof(struct workload, flags) == 4, "_layout.py says 4");
_Static_assert(sizeof(struct workload) == 8, "_layout.py says 8");
_Static_assert(__builtin_offsetof(struct peer, kind) == 0, "_layout.py says 0");
_Static_assert(sizeof(struct peer) == 4, "_layout.py says 4");
_Static_assert(__builtin_offsetof(struct beat, version) == 0, "_layout.py says 0");
_Static_assert(__builtin_offsetof(struct beat, awaited) == 4, "_layout.py says 4");
_Static_assert(sizeof(struct beat) == 8, "_layout.py says 8");
_Static_assert(__builtin_offsetof(struct control, deadline) == 0, "_layout.py says 0");
_Static_assert(__builtin_offsetof(struct control, mode) == 8, "_layout.py says 8");
_Static_assert(__builtin_offsetof(struct control, epoch) == 12, "_layout.py says 12");
_Static_assert(__builtin_offsetof(struct control, generation) == 16, "_layout.py says 16");
_Static_assert(__builtin_offsetof(struct control, second) == 20, "_layout.py says 20");
_Static_assert(sizeof(struct control) == 24, "_layout.py says 24");
_Static_assert(__builtin_offsetof(struct counter, packets) == 0, "_layout.py says 0");
_Static_assert(__builtin_offsetof(struct counter, bytes) == 8, "_layout.py says 8");
_Static_assert(sizeof(struct counter) == 16, "_layout.py says 16");
_Static_assert(__builtin_offsetof(struct trial_key, workload) == 0, "_layout.py says 0");
_Static_assert(__builtin_offsetof(struct trial_key, uplink) == 4, "_layout.py says 4");
_Static_assert(__builtin_offsetof(struct trial_key, next_hop) == 8, "_layout.py says 8");
_Static_assert(sizeof(struct trial_key) == 16, "_layout.py says 16");
_Static_assert(__builtin_offsetof(struct trial, since) == 0, "_layout.py says 0");
_Static_assert(__builtin_offsetof(struct trial, tag) == 8, "_layout.py says 8");
_Static_assert(__builtin_offsetof(struct trial, state) == 12, "_layout.py says 12");
_Static_assert(sizeof(struct trial) == 16, "_layout.py says 16");
