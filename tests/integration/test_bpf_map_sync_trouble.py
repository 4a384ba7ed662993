# SPDX-License-Identifier: GPL-3.0-or-later
"""bpf_map_sync with bad input, with writes that fail half way, and killed at any step."""

from __future__ import annotations

import errno
import struct
from typing import Any

import pytest
from integration.maps_cases import (
    CPUS,
    TYPES,
    VALUE,
    Held,
    addresses,
    as_table,
    entries_for,
    four_parts,
    names,
    raw_of,
)
from integration.maps_kernel import PINS, Kernel

from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf

pytest_plugins = ["integration.maps_fixtures"]


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


@pytest.mark.parametrize("told", [{}, {"type": "hash"}, {"type": "no such", "max_entries": 1}, {"max_entries": 1}])
def test_a_map_still_to_be_made_of_which_little_is_told(kernel: Kernel, told: dict[str, Any]) -> None:
    held = Held(kernel)
    outcome = held.sync(addresses(range(2)), check=True, maps=[{"pin": held.pin, **told}])
    assert outcome.counts == (2, 0, 0, 2)
    four_parts(held.sync(addresses(range(2)), maps=[{"pin": held.pin, **told}]), "still to be made")


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
