# SPDX-License-Identifier: GPL-3.0-or-later
"""Types of BPF maps: the kernel's names of all, and what those can do whose entries we know. Pure."""

from __future__ import annotations

from dataclasses import dataclass

# By number: enum bpf_map_type in include/uapi/linux/bpf.h.
NAMES = (
    "unspec", "hash", "array", "prog_array", "perf_event_array", "percpu_hash", "percpu_array", "stack_trace",
    "cgroup_array", "lru_hash", "lru_percpu_hash", "lpm_trie", "array_of_maps", "hash_of_maps", "devmap", "sockmap",
    "cpumap", "xskmap", "sockhash", "cgroup_storage", "reuseport_sockarray", "percpu_cgroup_storage", "queue",
    "stack", "sk_storage", "devmap_hash", "struct_ops", "ringbuf", "inode_storage", "task_storage", "bloom_filter",
    "user_ringbuf", "cgrp_storage", "arena",
)  # fmt: skip


@dataclass(frozen=True)
class MapType:
    """``indexed``: keys are the host's u32 below the capacity; a slot of zeros counts as absent. ``evicts``: a full map
    forgets entries. ``per_cpu``: each processor has a value of its own. ``devices``: values name interfaces.

    ``hashed``: a batch takes whole buckets, each once and under its lock, so no key comes twice
    (__htab_map_lookup_and_delete_batch). ``copyable``: entries can be read and written back as they are.
    """

    name: str
    indexed: bool = False
    evicts: bool = False
    per_cpu: bool = False
    devices: bool = False
    hashed: bool = False
    copyable: bool = True


KNOWN = (
    MapType("hash", hashed=True),
    MapType("array", indexed=True),
    MapType("percpu_hash", hashed=True, per_cpu=True),
    MapType("percpu_array", indexed=True, per_cpu=True),
    MapType("lru_hash", hashed=True, evicts=True),
    MapType("lru_percpu_hash", hashed=True, evicts=True, per_cpu=True),
    MapType("lpm_trie"),
    MapType("devmap", indexed=True, devices=True),
    MapType("devmap_hash", devices=True, copyable=False),
)
_OTHER = MapType("", copyable=False)
_BY_NAME = {one.name: one for one in KNOWN}


def number_of(name: str) -> int:
    """Raises :class:`ValueError`."""
    return NAMES.index(name)


def name_of(number: int) -> str:
    return NAMES[number] if number < len(NAMES) else f"type {number}"


def type_of(name: str | None) -> MapType:
    """One that can nothing where the type's entries are not known."""
    return _BY_NAME.get(name or "", _OTHER)
