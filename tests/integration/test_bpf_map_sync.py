# SPDX-License-Identifier: GPL-3.0-or-later
"""bpf_map_sync and bpf_map_info on the kernel's own maps."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from btf_blob import STRUCT, TYPEDEF, Blob
from integration.maps_cases import (
    CPUS,
    TYPES,
    Held,
    addresses,
    as_table,
    entries_for,
    four_parts,
    names,
    raw_of,
)
from integration.maps_kernel import PINS, Kernel, measure_large
from integration.steps import SOAK

from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._maps.codec import Codec, encode_entries

pytest_plugins = ["integration.maps_fixtures"]


@pytest.mark.parametrize("type_", TYPES)
def test_each_type_of_map(kernel: Kernel, type_: str) -> None:
    held = Held(kernel, **TYPES[type_])
    first = entries_for(type_, range(5))
    predicted = held.sync(first, check=True)
    assert (predicted.changes, predicted.counts) == (0, (5, 0, 0, 5))
    assert held.holds() == {}
    done = held.sync(first)
    assert done.result == predicted.result
    assert held.holds() == as_table(first)
    again = held.sync(first)
    assert (again.changes, again.result["changed"], again.counts) == (0, False, (0, 0, 0, 5))

    second = entries_for(type_, range(3, 7), n=2)
    changed = 0 if type_.startswith("devmap") else 2
    assert held.sync(second).counts == (2, changed, 0, 7)
    assert held.holds() == {**as_table(first), **as_table(second)}
    assert held.sync(second, purge=True).counts == (0, 0, 3, 4)
    assert held.holds() == as_table(second)
    assert held.sync(second[:2] + entries_for(type_, [50]), state="absent").counts == (0, 0, 2, 2)
    assert held.holds() == as_table(second[2:])
    assert held.sync([], purge=True).counts == (0, 0, 2, 0)
    assert held.holds() == {}
    assert held.sync([], purge=True).changes == 0


@pytest.mark.parametrize("type_", ["percpu_array", "percpu_hash"])
def test_a_per_cpu_value_is_the_sum_over_all_cpus(kernel: Kernel, type_: str) -> None:
    held = Held(kernel, **{**TYPES[type_], "value": "u64"})
    key = next(iter(encode_entries([[{"key": entries_for(type_, [3])[0]["key"]}]], Codec(held.key, "key"), None)))
    kernel.update(held.name, key, struct.pack(f"={CPUS}Q", *range(10, 10 + CPUS)))
    total = sum(range(10, 10 + CPUS))
    assert list(held.holds().values()) == [total]
    entry = {"key": entries_for(type_, [3])[0]["key"], "value": total}
    assert held.sync([entry]).changes == 0
    assert held.sync([{**entry, "value": 5}]).counts == (0, 1, 0, 1)
    assert kernel.raw(held.name)[key] == struct.pack(f"={CPUS}Q", 5, *[0] * (CPUS - 1))


def test_an_array_of_65536_slots(kernel: Kernel) -> None:
    held = Held(kernel, bpf.MAP_TYPE_ARRAY, None, 4, "u32", 4, 65536)
    entries = [{"key": port, "value": 1} for port in (80, 8080, 65535)]
    assert held.sync(entries, purge=True).counts == (3, 0, 0, 3)
    assert held.holds() == {80: 1, 8080: 1, 65535: 1}
    assert held.sync([{"key": 80, "value": 0}, {"key": 81, "value": 0}]).counts == (0, 0, 1, 2)
    assert held.sync([{"key": 8080, "value": "1"}], purge=True).counts == (0, 0, 1, 1)


def test_10_000_entries_and_a_second_run_without_a_changing_call(kernel: Kernel) -> None:
    held = Held(kernel, room=16384)
    entries = addresses(range(10000))
    first = held.sync(entries, large=1000)
    assert first.counts == (10000, 0, 0, 10000)
    assert first.changes == 1, "one batch"
    assert len(first.result["diff"]["after"].splitlines()) == 102
    for large in (1000, 1 << 30):
        again = held.sync(entries, large=large)
        assert (again.changes, again.result["changed"]) == (0, False)
    assert kernel.raw(held.name) == raw_of(entries)
    half = held.sync(entries[:5000], purge=True)
    assert half.counts == (0, 0, 5000, 5000)


def test_100_000_entries_in_less_than_80_mb(tmp_path: Any) -> None:
    fill, again = measure_large(tmp_path, 100_000)
    assert fill["result"] == {"changed": True, "added": 100_000, "changed_entries": 0, "size": 100_000}
    assert again["result"] == {"changed": False, "added": 0, "changed_entries": 0, "size": 100_000}
    assert again["peak"] < 80


def test_the_second_run_by_strace(tmp_path: Any) -> None:
    log = tmp_path / "log"
    kernel = Kernel("strace", "-f", "-qq", "-e", "trace=bpf", "-o", str(log))
    held = Held(kernel, room=16384)
    held.sync(addresses(range(10_000)))
    before = log.read_text().count("\n")
    assert held.sync(addresses(range(10_000))).result["changed"] is False
    calls = [line.split("bpf(")[1].split(",")[0] for line in log.read_text().splitlines()[before:] if "bpf(" in line]
    kernel.close()
    assert calls
    assert set(calls) <= {"BPF_OBJ_GET", "BPF_OBJ_GET_INFO_BY_FD", "BPF_MAP_LOOKUP_BATCH"}


@pytest.mark.parametrize("type_", ["hash", "lpm_trie", "devmap_hash"])
def test_reading_while_others_write(kernel: Kernel, type_: str) -> None:
    held = Held(kernel, **{**TYPES[type_], "room": 1024})
    steady, others = entries_for(type_, range(100)), entries_for(type_, range(100, 250))
    held.sync(steady)
    before = set(kernel.raw(held.name))
    held.sync(others)
    raw = kernel.raw(held.name)
    kernel.churn(held.name, sorted(set(raw) - before), next(iter(raw.values())), 1.5)
    for __ in range(40):
        found = held.holds()
        assert found.keys() >= as_table(steady).keys()
        outcome = held.sync(steady)
        assert (outcome.changes, outcome.result["changed"]) == (0, False)


@pytest.mark.parametrize("seed", range(500 if SOAK else 100))
def test_check_tells_what_the_run_does(kernel: Kernel, seed: int) -> None:
    """From nothing, from entries of ours and of others, from a killed run, from maps that are full or frozen."""
    chance = random.Random(seed)
    type_ = chance.choice(["hash", "lru_hash", "lpm_trie", "array", "percpu_array", "devmap", "percpu_hash"])
    room = chance.choice([30, 64, 64]) if type_ != "lru_hash" else 4096
    held = Held(kernel, **{**TYPES[type_], "room": room})

    def some() -> list[Any]:
        count = chance.randrange(min(room, 60))
        return entries_for(type_, chance.sample(range(min(room, 60)), count), n=chance.randrange(1, 3))

    for __ in range(chance.randrange(3)):
        killed = {"kill_at": chance.randrange(2, 6)} if chance.random() < 0.3 else {}
        held.sync(some(), purge=chance.random() < 0.3, batch=chance.choice([4, 16384]), fault=killed)
    held.sync([], state="absent")  # changes nothing, but takes the lock and removes the file that a killed run left
    if not type_.startswith("devmap"):  # bytes that no schema would write, such as padding that is not zero
        for key in chance.sample(sorted(kernel.raw(held.name)), min(3, len(kernel.raw(held.name)))):
            kernel.update(held.name, key, chance.randbytes(8 * (CPUS if type_.startswith("percpu") else 1)))
    if chance.random() < 0.1:
        kernel.freeze(held.name)
    wanted = some() + (entries_for(type_, [60, 61]) if chance.random() < 0.2 else [])
    options: dict[str, Any] = {"purge": chance.random() < 0.5, "state": chance.choice(["present", "present", "absent"])}
    before, files = kernel.raw(held.name), kernel.files()
    predicted = held.sync(wanted, check=True, **options)
    assert predicted.changes == 0
    assert (kernel.raw(held.name), kernel.files()) == (before, files)
    done = held.sync(wanted, **options)
    assert done.result == predicted.result
    if done.result.get("failed"):
        assert (done.changes, kernel.raw(held.name)) == (0, before)
        return
    assert done.result["changed"] == (kernel.raw(held.name) != before)
    again = held.sync(wanted, **options)
    assert (again.changes, again.result["changed"]) == (0, False)


def test_our_own_maps_are_known_by_their_pins(kernel: Kernel) -> None:
    pin = f"{PINS}/ebpf-overlay/services"
    outcome = kernel.run("bpf_map_sync", True, map=pin, entries=[{"key": 8080, "value": 1}])
    assert "8080 -> 1" in outcome.result["diff"]["after"]
    outcome = kernel.run("bpf_map_sync", True, map=pin, entries=[{"key": "http", "value": 1}])
    four_parts(outcome, "'http' is not a number")


def test_schemas_come_from_the_map_s_btf(kernel: Kernel) -> None:
    blob = Blob()
    u32, u16 = blob.integer("__u32", 4), blob.integer("__u16", 2)
    port = blob.refer(TYPEDEF, "__be16", u16)
    value = blob.record(STRUCT, "target", 8, ("n", u32, 0), ("port", port, 4))
    name = next(names)
    pin = kernel.create(name, bpf.MAP_TYPE_HASH, 4, 8, 8, 0, btf=blob.data().hex(), btf_key_type_id=u32,
                        btf_value_type_id=value)  # fmt: skip
    outcome = kernel.run("bpf_map_sync", map=pin, entries=[{"key": 5, "value": {"n": 1, "port": 8080}}])
    assert outcome.counts == (1, 0, 0, 1)
    assert kernel.raw(name) == {struct.pack("=I", 5): struct.pack("=I", 1) + b"\x1f\x90\0\0"}
    assert kernel.run("bpf_map_info", map=pin).result["entries"] == [{"key": 5, "value": {"n": 1, "port": 8080}}]


def test_info_without_a_schema_and_with_a_limit(kernel: Kernel) -> None:
    held = Held(kernel)
    held.sync(addresses(range(5)))
    found = kernel.run("bpf_map_info", map=held.pin, limit=2)
    assert found.changes == 0
    assert found.result["truncated"]
    assert found.result["count"] == 5
    assert found.result["entries"][1] == {"key": "00000000000000000000ffff0a000001", "value": "020000001f900000"}
    assert {name: found.result[name] for name in ("type", "key_size", "value_size", "max_entries", "frozen")} == {
        "type": "hash", "key_size": 16, "value_size": 8, "max_entries": 64, "frozen": False,
    }  # fmt: skip
