# SPDX-License-Identifier: GPL-3.0-or-later
"""bpf_map_sync and bpf_map_info on the kernel's own maps."""

from __future__ import annotations

import errno
import random
import struct
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from btf_blob import STRUCT, TYPEDEF, Blob
from integration.maps_kernel import PINS, Kernel, Outcome, measure_large
from integration.steps import SOAK

from ansible_collections.ebpf.overlay.plugins.module_utils import _bpf_syscall as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._codec import Codec, encode_entries, in_blocks

names = (f"m{number}" for number in count())
CPUS = bpf.possible_cpus()
VALUE = [{"name": "n", "type": "u32"}, {"name": "port", "type": "be16"}, {"type": "pad:2"}]
NO_PREALLOC = bpf.F_NO_PREALLOC


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    found = Kernel()
    yield found
    found.close()


def addresses(numbers: Any, n: int = 1) -> list[dict[str, Any]]:
    return [{"key": f"10.0.{i >> 8}.{i & 255}", "value": {"n": n + i, "port": 8080}} for i in numbers]


class Held:
    """A map in the kernel, and the arguments that fit it."""

    def __init__(self, kernel: Kernel, type_: int = bpf.MAP_TYPE_HASH, key: Any = "ip", key_size: int = 16,
                 value: Any = VALUE, value_size: int = 8, room: int = 64, flags: int = 0) -> None:  # fmt: skip
        self.kernel, self.name, self.key, self.value = kernel, next(names), key, value
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
    (key,) = encode_entries([[{"key": entries_for(type_, [3])[0]["key"]}]], Codec(held.key, "key"), None)
    kernel.update(held.name, key, struct.pack(f"={CPUS}Q", *range(10, 10 + CPUS)))
    total = sum(range(10, 10 + CPUS))
    assert list(held.holds().values()) == [total]
    entry = {"key": entries_for(type_, [3])[0]["key"], "value": total}
    assert held.sync([entry]).changes == 0
    assert held.sync([{**entry, "value": 5}]).counts == (0, 1, 0, 1)
    assert kernel.raw(held.name)[key] == struct.pack(f"={CPUS}Q", 5, *[0] * (CPUS - 1))


def test_the_epoch_of_an_entry_begins_before_it_is_written(kernel: Kernel) -> None:
    """Also of one that the kernel removed, as it does with a devmap's when an interface goes; and of no other."""
    held = Held(kernel, bpf.MAP_TYPE_DEVMAP, None, 4, None, 4)
    epochs = Held(kernel, bpf.MAP_TYPE_ARRAY, None, 4, "u32", 4)
    wanted = entries_for("devmap", (3, 5))
    assert held.sync(wanted, check=True, epochs=epochs.pin).changes == 0
    assert epochs.holds() == {}
    held.sync(wanted, epochs=epochs.pin)
    assert epochs.holds() == {3: 1, 5: 1}
    assert held.sync(wanted, epochs=epochs.pin).changes == 0
    assert epochs.holds() == {3: 1, 5: 1}
    held.sync(wanted[:1], state="absent", epochs=epochs.pin)
    assert epochs.holds() == {3: 1, 5: 1}
    again = held.sync(wanted, epochs=epochs.pin)
    assert again.counts == (1, 0, 0, 2)
    assert epochs.holds() == {3: 2, 5: 1}
    # The last number is followed by 0, which is another one too.
    epochs.sync([{"key": 3, "value": 2**32 - 1}])
    held.sync(wanted[:1], state="absent")
    held.sync(wanted, epochs=epochs.pin)
    assert epochs.holds() == {5: 1}


def test_epochs_that_do_not_fit_are_refused(kernel: Kernel) -> None:
    held = Held(kernel, bpf.MAP_TYPE_DEVMAP, None, 4, None, 4)
    wanted = entries_for("devmap", (3,))
    for pin, reason in (
        (Held(kernel, bpf.MAP_TYPE_ARRAY, None, 4, "u32", 4, room=8).pin, "it has 8 entries"),
        (Held(kernel).pin, "it is no array of u32"),
        (f"{PINS}/nothing", "No map is pinned at"),
    ):
        refused = held.sync(wanted, epochs=pin)
        assert refused.result["failed"]
        assert reason in refused.result["msg"]
        assert held.holds() == {}


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
    for _ in range(40):
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

    for _ in range(chance.randrange(3)):
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


# -- what goes wrong ----------------------------------------------------------------------------------------------


def four_parts(outcome: Outcome, reason: str) -> dict[str, Any]:
    error = outcome.error
    assert all(error[part] for part in ("doing", "target", "reason", "advice"))
    assert reason in error["reason"]
    assert all(str(error[part]) in outcome.result["msg"] for part in ("doing", "target", "reason", "advice"))
    return error


@pytest.mark.parametrize("type_", ["hash", "lpm_trie", "array", "percpu_hash", "devmap"])
@pytest.mark.parametrize("nth", [1, 2, 3, 4, 5])
def test_a_write_that_fails_half_way_is_undone(kernel: Kernel, type_: str, nth: int) -> None:
    """Half-applied syncs: cilium #21725, #44520."""
    held = Held(kernel, **TYPES[type_])
    held.sync(entries_for(type_, range(12)))
    if type_ == "percpu_hash":  # the copies of all CPUs come back, not only their sum
        kernel.update(held.name, next(iter(kernel.raw(held.name))), struct.pack("=IHH", 7, 7, 0) * CPUS)
    before = kernel.raw(held.name)
    outcome = held.sync(entries_for(type_, range(6, 18), n=2), purge=True, batch=4,
                        fault={"at": nth, "errno": errno.ENOMEM})  # fmt: skip
    error = four_parts(outcome, "ENOMEM")
    assert error["doing"] == "write to a map"
    assert held.pin in error["target"]
    assert "The former content was restored." in error["advice"]
    assert kernel.raw(held.name) == before


@pytest.mark.parametrize("type_", ["hash", "lpm_trie", "array", "percpu_hash", "devmap"])
def test_killed_at_any_step_one_more_run_ends_where_it_should(kernel: Kernel, type_: str) -> None:
    wanted = entries_for(type_, range(6, 18), n=2)
    held = Held(kernel, **TYPES[type_])
    clean = kernel.files()

    def start() -> None:
        held.sync(entries_for(type_, range(12)), purge=True)

    start()
    total = held.sync(wanted, purge=True, batch=4, fault={"kill_at": 0}).result["steps"]
    assert total > 5
    for number in range(1, total + 1):
        start()
        assert held.sync(wanted, purge=True, batch=4, fault={"kill_at": number}).result["killed"]
        assert held.holds() != as_table(wanted) or number == total, "the last step is to let the lock go"
        assert kernel.files() != clean or number == 1, "the lock's file"
        held.sync(wanted, purge=True)
        assert held.holds() == as_table(wanted)
        assert kernel.files() == clean
        assert held.sync(wanted, purge=True).changes == 0


def test_a_map_that_others_fill_meanwhile(kernel: Kernel) -> None:
    held = Held(kernel, room=8)
    held.sync(addresses(range(2)))
    strangers = raw_of(addresses(range(100, 104)))
    meanwhile = [["fill", held.name, [[key.hex(), value.hex()] for key, value in strangers.items()]]]
    outcome = held.sync(addresses(range(6), n=5), fault={"at": 1, "meanwhile": meanwhile})
    error = four_parts(outcome, "E2BIG")
    assert error["target"].endswith("entry 10.0.0.4")
    assert kernel.raw(held.name) == {**raw_of(addresses(range(2))), **strangers}


def test_a_frozen_map(kernel: Kernel) -> None:
    held = Held(kernel)
    held.sync(addresses(range(2)))
    kernel.freeze(held.name)
    assert held.info()["frozen"]
    assert held.sync(addresses(range(2))).result["changed"] is False
    for check in (True, False):
        outcome = held.sync(addresses(range(3)), check=check)
        assert four_parts(outcome, "EPERM")["errno"] == "EPERM"
        assert outcome.changes == 0


def test_missing_rights(kernel: Kernel) -> None:
    """Once a map is open, current kernels ask for no capability: the rights on files decide."""
    held = Held(kernel)
    outcome = kernel.run_as(65534, "bpf_map_sync", map=held.pin, key="ip", value=VALUE, entries=addresses([1]))
    assert four_parts(outcome, "EACCES")["errno"] == "EACCES"
    assert "become" in outcome.error["advice"]
    assert kernel.raw(held.name) == {}


def test_a_map_that_is_frozen_meanwhile(kernel: Kernel) -> None:
    held = Held(kernel)
    outcome = held.sync(addresses(range(2)), fault={"at": 1, "meanwhile": [["freeze", held.name]]})
    four_parts(outcome, "EPERM")


@pytest.mark.parametrize(
    ("options", "entries", "reason"),
    [
        ({"key": "ipv4"}, addresses([1]), "the schema has 4 bytes, the map 16"),
        ({"value": VALUE[:2]}, addresses([1]), "the schema has 6 bytes, the map 8"),
        ({"value": "u24"}, addresses([1]), "unknown type 'u24'"),
        ({"value": None}, addresses([1]), "the kernel has no BTF of it"),
        ({}, [{"key": "10.0.0.1", "value": {"n": 1, "port": 65536}}], "65536 does not fit be16 (0..65535)"),
        ({}, [{"key": "10.0.0.1"}], "is not a mapping with key and value"),
        ({}, addresses(range(65)), "it would hold 65 entries and has room for 64"),
        ({}, addresses([1, 1]), "10.0.0.1 is there twice"),
    ],
)
def test_bad_input_changes_nothing(kernel: Kernel, options: Any, entries: Any, reason: str) -> None:
    held = Held(kernel)
    for check in (True, False):
        outcome = held.sync(entries, check=check, **options)
        four_parts(outcome, reason)
        assert outcome.changes == 0
    assert kernel.raw(held.name) == {}


def test_an_index_beyond_the_array(kernel: Kernel) -> None:
    held = Held(kernel, **TYPES["array"])
    outcome = held.sync(entries_for("array", [1, 64]))
    four_parts(outcome, "index 64 is beyond the 64 slots")
    assert outcome.changes == 0


def test_types_that_hold_no_entries_of_this_kind(kernel: Kernel) -> None:
    held = Held(kernel, bpf.MAP_TYPE_PROG_ARRAY, "u32", 4, "u32", 4)
    four_parts(held.sync([{"key": 0, "value": 1}]), "maps of type prog_array")


def test_an_interface_that_the_kernel_does_not_have(kernel: Kernel) -> None:
    held = Held(kernel, **TYPES["devmap"])
    four_parts(held.sync([{"key": 1, "value": "lo"}, {"key": 2, "value": 999999}]), "EINVAL")
    assert held.holds() == {}


@pytest.mark.parametrize("schemas", [{"key": "ip", "value": VALUE}, {}])
def test_a_map_that_is_still_to_be_made(kernel: Kernel, schemas: dict[str, Any]) -> None:
    pin = f"{PINS}/{next(names)}"
    predicted = kernel.run("bpf_map_sync", True, map=pin, entries=addresses(range(3)), **schemas)
    assert predicted.counts == (3, 0, 0, 3)
    assert predicted.result["changed"]
    assert "No map is pinned at" in str(predicted.result["warnings"])
    four_parts(kernel.run("bpf_map_sync", map=pin, entries=addresses(range(3)), **schemas), "No map is pinned")
    gone = kernel.run("bpf_map_sync", map=pin, entries=addresses(range(3)), state="absent", **schemas)
    assert gone.result["changed"] is False
    assert kernel.run("bpf_map_info", map=pin).result["exists"] is False


def test_where_no_bpffs_is(kernel: Kernel) -> None:
    outcome = kernel.run("bpf_map_sync", map="/var/mine/map", key="ip", value=VALUE, entries=addresses([1]))
    four_parts(outcome, "is not below a bpffs")


def test_pins_out_of_sight_are_an_error_cilium_47847(kernel: Kernel) -> None:
    held = Held(kernel)
    held.sync(addresses(range(2)))
    kernel.shell("mount -t bpf bpf /sys/fs/bpf")
    try:
        for state in ("present", "absent"):
            for check in (True, False):
                four_parts(held.sync(addresses([1]), check=check, state=state), "more than once")
        four_parts(kernel.run("bpf_map_info", map=held.pin), "more than once")
    finally:
        kernel.shell("umount /sys/fs/bpf")
    assert held.holds() == as_table(addresses(range(2)))


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
