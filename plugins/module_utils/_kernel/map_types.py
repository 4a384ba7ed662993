# SPDX-License-Identifier: GPL-3.0-or-later
"""What each type of map can do: the one table of them. Pure. Numbers: ``enum bpf_map_type`` in linux/bpf.h."""

from __future__ import annotations

from dataclasses import dataclass

NAMES = (
    "unspec", "hash", "array", "prog_array", "perf_event_array", "percpu_hash", "percpu_array", "stack_trace",
    "cgroup_array", "lru_hash", "lru_percpu_hash", "lpm_trie", "array_of_maps", "hash_of_maps", "devmap", "sockmap",
    "cpumap", "xskmap", "sockhash", "cgroup_storage", "reuseport_sockarray", "percpu_cgroup_storage", "queue",
    "stack", "sk_storage", "devmap_hash", "struct_ops", "ringbuf", "inode_storage", "task_storage", "bloom_filter",
    "user_ringbuf", "cgrp_storage", "arena",
)  # fmt: skip


@dataclass(frozen=True)
class MapType:
    """``known``: it holds entries of a key and a value, which can be read and written.

    ``indexed``: keys are the host's u32 below the capacity, and every slot exists, of zeros until it is written.
    ``evicts``: a full map throws old entries out. ``hashed``: a batch takes whole buckets, each once and under its
    lock, so no key comes twice (__htab_map_lookup_and_delete_batch). ``per_cpu``: a value for each CPU. ``devices``: a
    value begins with an ifindex. ``copyable``: entries can be read and written back as they are.
    """

    name: str
    known: bool = True
    indexed: bool = False
    evicts: bool = False
    hashed: bool = False
    per_cpu: bool = False
    devices: bool = False
    copyable: bool = False


_TYPES = {
    told.name: told
    for told in (
        MapType("hash", hashed=True, copyable=True),
        MapType("percpu_hash", hashed=True, per_cpu=True, copyable=True),
        MapType("lru_hash", hashed=True, evicts=True, copyable=True),
        MapType("lru_percpu_hash", hashed=True, evicts=True, per_cpu=True, copyable=True),
        MapType("lpm_trie", copyable=True),
        MapType("array", indexed=True, copyable=True),
        MapType("percpu_array", indexed=True, per_cpu=True, copyable=True),
        MapType("devmap", indexed=True, devices=True, copyable=True),
        MapType("devmap_hash", devices=True),
    )
}
KNOWN = tuple(name for name in NAMES if name in _TYPES)


def map_type(name: str) -> MapType:
    return _TYPES.get(name, MapType(name, known=False))


def name_of(number: int) -> str:
    return NAMES[number] if number < len(NAMES) else f"type {number}"
