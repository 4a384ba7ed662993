# SPDX-License-Identifier: GPL-3.0-or-later
"""Map plans, applied to a model of the kernel's maps."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.plan import Plan
from ansible_collections.ebpf.overlay.plugins.module_utils._maps.pinned import Entries
from ansible_collections.ebpf.overlay.plugins.module_utils._maps.plan import (
    DIFF_LINES,
    UNKNOWN,
    DeleteEntries,
    Traits,
    WriteEntries,
    plan_map,
)

tables = st.dictionaries(st.integers(0, 15).map(lambda n: struct.pack("=I", n)), st.binary(min_size=2, max_size=2))


def show(key: bytes, value: bytes) -> tuple[str, str]:
    return key.hex(), value.hex()


class KernelMap:
    """What the kernel does with a map of a fixed capacity; ``low``: the fewest entries it ever had while applying."""

    def __init__(self, entries: dict[bytes, bytes], traits: Traits) -> None:
        self.entries = dict(entries)
        self.traits = traits
        self.low = len(entries)

    def apply(self, plan: Plan) -> None:
        for operation in plan.operations:
            if isinstance(operation, WriteEntries):
                assert operation.keys
                for key, value in zip(operation.keys, operation.values):
                    self.entries[key] = value
                    assert self.traits.indexed or len(self.entries) <= self.traits.max_entries, "E2BIG"
            else:
                assert isinstance(operation, DeleteEntries)
                assert operation.keys
                for key in operation.keys:
                    del self.entries[key]
            self.low = min(self.low, len(self.entries))


def plan_for(observed: Any, desired: dict[bytes, bytes], traits: Traits, **options: Any) -> Plan:
    return plan_map("m", observed, desired, traits, show, **options)


@given(tables, tables, st.booleans(), st.integers(0, 8))
def test_applying_the_plan_gives_the_desired_state_and_planning_again_gives_nothing(
    observed: dict[bytes, bytes], desired: dict[bytes, bytes], purge: bool, spare: int
) -> None:
    wanted = dict(desired) if purge else {**observed, **desired}
    traits = Traits(max(len(observed), len(wanted), 1) + spare)
    plan = plan_for(observed, desired, traits, purge=purge)
    kernel = KernelMap(observed, traits)
    kernel.apply(plan)
    assert kernel.entries == wanted
    assert plan.result["added"] == len(desired.keys() - observed.keys())
    assert plan.result["removed"] == len(observed.keys() - wanted.keys())
    assert plan.result["changed_entries"] == sum(desired.get(k, v) != v for k, v in observed.items())
    assert plan.result["size"] == len(wanted)
    again = plan_for(kernel.entries, desired, traits, purge=purge)
    assert (again.operations, again.diff) == ((), {"before": "", "after": ""})
    if observed and wanted:
        assert kernel.low > 0 or traits.max_entries == 1, "the map was empty for a moment"


@given(tables, tables)
def test_nothing_that_is_not_listed_is_touched_without_purge(
    observed: dict[bytes, bytes], desired: dict[bytes, bytes]
) -> None:
    for operation in plan_for(observed, desired, UNKNOWN).operations:
        assert isinstance(operation, WriteEntries)
        assert set(operation.keys) <= set(desired)
        assert all(observed.get(key) != value for key, value in zip(operation.keys, operation.values))


@given(tables, st.sets(st.integers(0, 20).map(lambda n: struct.pack("=I", n))))
def test_absent_removes_what_is_listed_and_there(observed: dict[bytes, bytes], unwanted: set[bytes]) -> None:
    plan = plan_for(observed, {}, UNKNOWN, unwanted=unwanted)
    kernel = KernelMap(observed, UNKNOWN)
    kernel.apply(plan)
    assert kernel.entries == {key: value for key, value in observed.items() if key not in unwanted}


@given(tables, tables, st.booleans())
def test_slots_of_zeros_are_absent_in_an_array(
    observed: dict[bytes, bytes], desired: dict[bytes, bytes], purge: bool
) -> None:
    def filled(table: dict[bytes, bytes]) -> dict[bytes, bytes]:
        return {key: value for key, value in table.items() if any(value)}

    observed, traits = filled(observed), Traits(16, indexed=True)
    plan = plan_for(observed, desired, traits, purge=purge)
    kernel = KernelMap(observed, traits)
    kernel.apply(plan)
    assert kernel.entries == filled(desired if purge else {**observed, **desired})
    assert plan_for(kernel.entries, desired, traits, purge=purge).operations == ()


@given(tables, tables, st.booleans(), st.booleans())
def test_what_the_kernel_packed_plans_like_a_table(
    observed: dict[bytes, bytes], desired: dict[bytes, bytes], purge: bool, distinct: bool
) -> None:
    pairs = list(observed.items())
    parts = [part for part in (pairs[:3], pairs[3:]) if part]
    blocks = [(b"".join(k for k, __ in part), b"".join(v for __, v in part)) for part in parts]
    packed = Entries(4, 2, blocks, distinct)
    plan = plan_for(packed, desired, UNKNOWN, purge=purge)
    assert plan == plan_for(observed, desired, UNKNOWN, purge=purge)
    assert (Entries(4, 2, blocks, distinct) == desired) is (observed == desired)


def test_a_key_that_was_read_twice_hides_no_missing_one() -> None:
    a, b = struct.pack("=I", 1), struct.pack("=I", 2)
    assert Entries(4, 2, [(a + a, b"xyxy")]) != {a: b"xy", b: b"xy"}


def entries(count: int) -> dict[bytes, bytes]:
    return {struct.pack(">I", n): b"\0\1" for n in range(count)}


def test_a_full_map_takes_turns_instead_of_being_emptied() -> None:
    observed = {struct.pack(">I", n + 1000): b"\0\1" for n in range(80)}
    traits = Traits(80)
    plan = plan_for(observed, entries(80), traits, purge=True)
    kernel = KernelMap(observed, traits)
    kernel.apply(plan)
    assert kernel.entries == entries(80)
    assert kernel.low == 70


@pytest.mark.parametrize(("count", "purge"), [(5, False), (9, True), (9, False)])
def test_too_many_entries_for_the_map(count: int, purge: bool) -> None:
    observed = {struct.pack(">I", n + 1000): b"\0\1" for n in range(4)}
    with pytest.raises(OverlayError) as caught:
        plan_for(observed, entries(count), Traits(8), purge=purge)
    assert caught.value.target == "m"
    assert "has room for 8" in caught.value.reason


def test_a_map_that_evicts_warns_and_refuses_only_what_it_can_never_hold() -> None:
    observed = {struct.pack(">I", n + 1000): b"\0\1" for n in range(4)}
    plan = plan_for(observed, entries(6), Traits(8, evicts=True))
    assert "evicts" in plan.warnings[0]
    with pytest.raises(OverlayError, match="room for 8"):
        plan_for({}, entries(9), Traits(8, evicts=True))


def test_an_index_beyond_the_array() -> None:
    with pytest.raises(OverlayError) as caught:
        plan_for({}, {struct.pack("=I", 8): b"\0\1"}, Traits(8, indexed=True))
    assert "index 8 is beyond the 8 slots" in caught.value.reason


def test_a_frozen_map_is_refused_only_when_it_would_be_written_to() -> None:
    frozen = Traits(8, frozen=True)
    assert plan_for(entries(2), entries(2), frozen).operations == ()
    with pytest.raises(OverlayError) as caught:
        plan_for(entries(2), entries(3), frozen)
    assert caught.value.parts()["errno"] == "EPERM"


def test_the_diff_is_bounded_and_its_counts_are_exact() -> None:
    observed = {**{struct.pack(">I", n): b"\0\2" for n in range(50)},
                **{struct.pack(">I", n + 10**6): b"\0\1" for n in range(30)}}  # fmt: skip
    plan = plan_for(observed, entries(1000), UNKNOWN, purge=True)
    assert plan.result == {"added": 950, "changed_entries": 50, "removed": 30, "size": 1000}
    assert len(plan.before.splitlines()) <= DIFF_LINES + 1
    assert len(plan.after.splitlines()) == DIFF_LINES + 2
    assert plan.before.splitlines()[:2] == ["m: 80 entries", "00000000 -> 0002"]
    assert plan.after.splitlines()[-1] == "… and 930 more; in all 950 added, 50 changed, 30 removed"


def test_unmet_preconditions_are_passed_on() -> None:
    assert plan_for({}, entries(1), UNKNOWN, unmet=("No map.",)).unmet == ("No map.",)
