# SPDX-License-Identifier: GPL-3.0-or-later
"""The overlay's own names: where it pins, and what its maps hold (in C: ``roles/node/files/bpf/types.h``)."""

from __future__ import annotations

from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._reasons import LABELS

OWNER = "ebpf.overlay"
BPFFS = "/sys/fs/bpf"
PIN_DIR = f"{BPFFS}/ebpf-overlay"
STATE_DIR = "/var/lib/ebpf-overlay"
RUN_DIR = "/run/ebpf-overlay"

MODES = ("off", "drain", "on")
PROTOCOLS = {"tcp": 1}
FLOW_STATES = ("opening", "answered", "established", "closing")
DIRECTIONS = ("uplink", "workload")

# A device is in one of the places (ifindex ^ probe) % DEVICES, probe below DEVICE_PROBES (place_of in maps.h).
DEVICES = 8192
DEVICE_PROBES = 4

_FLOW_KEY: list[dict[str, Any]] = [
    {"name": "workload", "type": "ip"},
    {"name": "remote", "type": "ip"},
    {"name": "workload_port", "type": "be16"},
    {"name": "remote_port", "type": "be16"},
    {"name": "protocol", "type": "u8"},
    {"type": "pad:3"},
]
_FLOW: list[dict[str, Any]] = [
    {"name": "tag", "type": "u32"},
    {"name": "ifindex", "type": "ifindex"},
    {"name": "uplink", "type": "ifindex"},
    {"name": "session", "type": "u32"},
    {"name": "next_hop", "type": "ip"},
    {"name": "since", "type": "u64"},
    {"name": "round", "type": "u32"},
    {"name": "slot", "type": "u32"},
    {"name": "workload_epoch", "type": "u32"},
    {"name": "uplink_epoch", "type": "u32"},
    {"name": "workload_place", "type": "u16"},
    {"name": "uplink_place", "type": "u16"},
    {"name": "workload_mtu", "type": "u16"},
    {"name": "uplink_mtu", "type": "u16"},
    {"name": "opened_by", "type": {"type": "u8", "labels": list(DIRECTIONS)}},
    {"name": "state", "type": {"type": "u8", "labels": list(FLOW_STATES)}},
    {"name": "fin_from_remote", "type": "u8"},
    {"name": "fin_from_workload", "type": "u8"},
    {"type": "pad:4"},
]
_RECENT: list[dict[str, Any]] = [
    {"name": "key", "type": _FLOW_KEY},
    *({"name": name, "type": "u32"} for name in ("version", "session", "round", "left")),
    {"name": "ifindex", "type": "ifindex"},
    {"name": "uplink", "type": "ifindex"},
    {"name": "next_hop", "type": "ip"},
    *({"name": name, "type": "u32"} for name in ("workload_epoch", "uplink_epoch")),
    *({"name": name, "type": "u16"} for name in ("workload_place", "uplink_place", "workload_mtu", "uplink_mtu")),
]

# Map name -> (schema of the key, schema of the value).
SCHEMAS: dict[str, tuple[Any, Any]] = {
    "ifindex_map": (
        "ip",
        [{"name": "ifindex", "type": "ifindex"}, {"name": "flags", "type": "u32"}],
    ),
    "services": ("u32", "u32"),
    "peers": ("cidr", "u32"),
    "devices": ("u32", "ifindex"),
    "device_epochs": ("u32", "u32"),
    "control": (
        "u32",
        [
            {"name": "deadline", "type": "u64"},
            {"name": "mode", "type": {"type": "u32", "labels": list(MODES)}},
            {"name": "session", "type": "u32"},
            {"name": "generation", "type": "u32"},
            {"type": "pad:4"},
        ],
    ),
    "flows": (_FLOW_KEY, _FLOW),
    "transient": (_FLOW_KEY, _FLOW),
    "silent": ("ip", "u64"),
    "slots": ("u32", _FLOW_KEY),
    "recent": ("u32", _RECENT),
    "versions": ("u32", "u32"),
    "sweep": (
        "u32",
        [
            {"name": "round_began", "type": "u64"},
            {"name": "round", "type": "u32"},
            {"name": "hand", "type": "u32"},
        ],
    ),
    "stats": (
        {"type": "u32", "labels": list(LABELS)},
        [{"name": "packets", "type": "u64"}, {"name": "bytes", "type": "u64"}],
    ),
}
