# SPDX-License-Identifier: GPL-3.0-or-later
"""Maps of each type with entries that fit them, for the tests of ``bpf_map_sync``."""

from __future__ import annotations

from itertools import count
from typing import Any

from integration.maps_kernel import Kernel, Outcome

from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._maps.codec import Codec, encode_entries, in_blocks

names = (f"m{number}" for number in count())
CPUS = bpf.possible_cpus()
VALUE = [{"name": "n", "type": "u32"}, {"name": "port", "type": "be16"}, {"type": "pad:2"}]
NO_PREALLOC = bpf.F_NO_PREALLOC


def addresses(numbers: Any, n: int = 1) -> list[dict[str, Any]]:
    return [{"key": f"10.0.{i >> 8}.{i & 255}", "value": {"n": n + i, "port": 8080}} for i in numbers]


class Held:
    """A map in the kernel, and the arguments that fit it."""

    def __init__(self, kernel: Kernel, type_: int = bpf.MAP_TYPE_HASH, key: Any = "ip", key_size: int = 16,
                 value: Any = ..., value_size: int = 8, room: int = 64, flags: int = 0) -> None:  # fmt: skip
        self.kernel, self.name, self.key = kernel, next(names), key
        self.value = VALUE if value is ... else value  # None: without a schema
        self.pin = kernel.create(self.name, type_, key_size, value_size, room, flags)

    def sync(self, entries: list[Any], check: bool = False, **options: Any) -> Outcome:
        args = {"map": self.pin, "key": self.key, "value": self.value, "entries": entries, **options}
        return self.kernel.run("bpf_map_sync", check, **args)

    def info(self, **options: Any) -> dict[str, Any]:
        return self.kernel.run("bpf_map_info", map=self.pin, key=self.key, value=self.value, **options).result

    def holds(self) -> dict[Any, Any]:
        found = self.info()
        assert found["count"] == len(found["entries"])
        return {entry["key"]: entry["value"] for entry in found["entries"]}


def as_table(entries: list[dict[str, Any]]) -> dict[Any, Any]:
    return {entry["key"]: entry["value"] for entry in entries}


def raw_of(entries: list[dict[str, Any]]) -> dict[bytes, bytes]:
    return encode_entries(in_blocks(entries), Codec("ip", "key"), Codec(VALUE, "value"))


TYPES: dict[str, dict[str, Any]] = {
    "hash": {},
    "lru_hash": {"type_": bpf.MAP_TYPE_LRU_HASH, "room": 4096},
    "percpu_hash": {"type_": bpf.MAP_TYPE_PERCPU_HASH},
    "lru_percpu_hash": {"type_": bpf.MAP_TYPE_LRU_PERCPU_HASH, "room": 4096},
    "lpm_trie": {"type_": bpf.MAP_TYPE_LPM_TRIE, "key": "cidr", "key_size": 20, "flags": NO_PREALLOC},
    "array": {"type_": bpf.MAP_TYPE_ARRAY, "key": None, "key_size": 4},
    "percpu_array": {"type_": bpf.MAP_TYPE_PERCPU_ARRAY, "key": "u32", "key_size": 4},
    "devmap": {"type_": bpf.MAP_TYPE_DEVMAP, "key": None, "key_size": 4, "value": None, "value_size": 4},
    "devmap_hash": {"type_": bpf.MAP_TYPE_DEVMAP_HASH, "key": "u32", "key_size": 4, "value": None, "value_size": 4},
}


def entries_for(type_: str, numbers: Any, n: int = 1) -> list[dict[str, Any]]:
    if type_.startswith("devmap"):
        return [{"key": i, "value": "lo"} for i in numbers]
    if type_.endswith("array"):
        return [{"key": i, "value": {"n": n + i, "port": 80}} for i in numbers]
    if type_ == "lpm_trie":
        return [{"key": f"10.0.{i}.0/24", "value": {"n": n + i, "port": 80}} for i in numbers]
    return addresses(numbers, n)


def four_parts(outcome: Outcome, reason: str) -> dict[str, Any]:
    error = outcome.error
    assert all(error[part] for part in ("doing", "target", "reason", "advice"))
    assert reason in error["reason"]
    assert all(str(error[part]) in outcome.result["msg"] for part in ("doing", "target", "reason", "advice"))
    return error
