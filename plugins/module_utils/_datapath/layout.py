# SPDX-License-Identifier: GPL-3.0-or-later
"""The overlay's own names: where it pins, and what its maps hold (in C: ``roles/node/files/bpf/types.h``)."""

from __future__ import annotations

import os
from typing import Any

from .reasons import LABELS

OWNER = "ebpf.overlay"
BPFFS = "/sys/fs/bpf"
PIN_DIR = f"{BPFFS}/ebpf-overlay"
STATE_DIR = "/var/lib/ebpf-overlay"
RUN_DIR = "/run/ebpf-overlay"

MODES = ("off", "drain", "on")
PROTOCOLS = {"tcp": 1}
DIRECTIONS = ("uplink", "workload")  # where a packet came from
PEER_KINDS = ("own", "peer")  # an address of this very node is never a peer
STEPS = ("none", "syn_in", "syn_out", "answer_in", "answer_out", "ack_in")
TRIALS = ("none", "running", "proven", "broken")
NEVER_PEER = 1  # flag of a workload: never by bpf_redirect_peer

# A device is in one of the places that place_of() in maps.h looks at.
DEVICES = 8192
DEVICE_PROBES = 16

Schema = list[dict[str, Any]]


def _u32(*names: str) -> Schema:
    return [{"name": name, "type": "u32"} for name in names]


FLOW_KEY: Schema = [
    {"name": "workload", "type": "ip"},
    {"name": "remote", "type": "ip"},
    {"name": "workload_port", "type": "be16"},
    {"name": "remote_port", "type": "be16"},
    {"name": "protocol", "type": "u8"},
    {"type": "pad:3"},
]
OPENER: Schema = [
    {"name": "address", "type": "ip"},
    {"name": "sequence", "type": "u32"},
    {"name": "port", "type": "be16"},
    {"name": "protocol", "type": "u8"},
    {"type": "pad:1"},
]
WAY: Schema = [
    {"name": "proven", "type": "u64"},
    {"name": "asked", "type": "u64"},
    {"name": "in", "type": "ifindex"},
    {"name": "out", "type": "ifindex"},
    *_u32("place", "largest", "mark", "priority", "sequence", "acknowledgement", "length"),
    {"name": "header", "type": "bytes:12"},
    *({"name": name, "type": "u8"} for name in ("tos", "ttl", "missed", "owed", "flags")),
    {"type": "pad:3"},
]
FLOW: Schema = [
    *_u32("tag", "epoch"),
    {"name": "seen", "type": "u64"},
    *(
        {"name": f"{name}[{direction}]", "type": "u32"}
        for name in ("initial", "ended_at", "tried_from", "tried_until", "tried_first")
        for direction in range(2)
    ),
    {"name": "ended", "type": "u8"},
    {"name": "opened_by", "type": {"type": "u8", "labels": list(DIRECTIONS)}},
    {"name": "trial", "type": {"type": "u8", "labels": list(TRIALS)}},
    {"name": "tried", "type": "u8"},
    {"type": "pad:4"},
    {"name": "ways[0]", "type": WAY},
    {"name": "ways[1]", "type": WAY},
]
PENDING: Schema = [
    {"name": "key", "type": FLOW_KEY},
    {"name": "step", "type": {"type": "u64", "labels": list(STEPS)}},
    {"name": "flow", "type": FLOW},
]
RECENT: Schema = [
    {"name": "addresses", "type": "bytes:32"},
    *_u32("ports", "ethertype"),
    {"name": "proven", "type": "u64"},
    {"name": "since", "type": "u64"},
    {"name": "there", "type": "u64"},
    *_u32("version", "epoch"),
    {"name": "in", "type": "ifindex"},
    {"name": "out", "type": "ifindex"},
    *_u32("place", "largest", "mark", "priority"),
    {"name": "header", "type": "bytes:12"},
    *_u32("next", "packets"),
    {"name": "tos", "type": "u8"},
    {"name": "peer", "type": "u8"},
    {"type": "pad:2"},
    {"name": "key", "type": FLOW_KEY},
]
WORKLOAD: Schema = [{"name": "ifindex", "type": "ifindex"}, {"name": "flags", "type": "u32"}]
PEER: Schema = [{"name": "kind", "type": {"type": "u32", "labels": list(PEER_KINDS)}}]
BEAT: Schema = _u32("version", "awaited")
CONTROL: Schema = [
    {"name": "deadline", "type": "u64"},
    {"name": "mode", "type": {"type": "u32", "labels": list(MODES)}},
    *_u32("epoch", "generation", "second"),
]
COUNTER: Schema = [{"name": "packets", "type": "u64"}, {"name": "bytes", "type": "u64"}]
TRIAL_KEY: Schema = [
    {"name": "workload", "type": "ifindex"},
    {"name": "uplink", "type": "ifindex"},
    {"name": "next_hop", "type": "mac"},
    {"type": "pad:2"},
]
TRIAL: Schema = [
    {"name": "since", "type": "u64"},
    *_u32("tag"),
    {"name": "state", "type": {"type": "u32", "labels": list(TRIALS)}},
]

# The structs of types.h; tools/generate writes assertions for them into layout.h.
STRUCTS: dict[str, Schema] = {
    "flow_key": FLOW_KEY,
    "opener": OPENER,
    "way": WAY,
    "flow": FLOW,
    "pending": PENDING,
    "recent": RECENT,
    "workload": WORKLOAD,
    "peer": PEER,
    "beat": BEAT,
    "control": CONTROL,
    "counter": COUNTER,
    "trial_key": TRIAL_KEY,
    "trial": TRIAL,
}

# Map name -> (schema of the key, schema of the value).
SCHEMAS: dict[str, tuple[Any, Any]] = {
    "ifindex_map": ("ip", WORKLOAD),
    "services": ("u32", "u32"),
    "peers": ("cidr", PEER[0]["type"]),
    "devices": ("u32", "ifindex"),
    "control": ("u32", CONTROL),
    "flows": (FLOW_KEY, FLOW),
    "pending": (OPENER, PENDING),
    "pending_out": (OPENER, PENDING),
    "trials": (TRIAL_KEY, TRIAL),
    "recent": ("u32", RECENT),
    "beats": ("u32", BEAT),
    "crossing": ("u32", "u32"),
    "fresh": ("u32", PENDING),
    "stats": ({"type": "u32", "labels": list(LABELS)}, COUNTER),
}


def schemas_at(path: str) -> tuple[Any, Any]:
    """Those of the key and the value of the map pinned at ``path``; None where it is none of ours."""
    folder, name = os.path.split(path)
    return SCHEMAS.get(name, (None, None)) if f"{folder}/".startswith(f"{PIN_DIR}/") else (None, None)
