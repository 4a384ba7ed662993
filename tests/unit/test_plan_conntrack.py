# SPDX-License-Identifier: GPL-3.0-or-later
"""From any state of conntrack's sysctls to the overlay's and back."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.plan import Plan
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import conntrack, sysctls
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.conntrack import (
    DEFAULTS,
    ESTABLISHED,
    IGNORE_INVALID_RST,
    LIBERAL,
    NAMES,
    FlagEntries,
    ForgetFormer,
    Observed,
    RecordFormer,
    RemoveFile,
    SetSysctl,
    WriteFile,
)

STRICT = dict(DEFAULTS)
UNACKNOWLEDGED = NAMES[2]

switches = st.integers(0, 1)
seconds = st.integers(1, 1_000_000)
values: st.SearchStrategy[dict[str, int]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {LIBERAL: switches, ESTABLISHED: seconds, NAMES[2]: seconds, NAMES[3]: seconds},
        optional={IGNORE_INVALID_RST: switches},
    ),
)
kernels = st.sampled_from([(5, 10, 200), (5, 14, 0), (6, 12, 43)])


def made(seen: Observed, plan: Plan) -> Observed:
    """The operations of a plan, applied to the state that it was made for."""
    for operation in plan.operations:
        if isinstance(operation, RecordFormer):
            seen = replace(seen, record=operation.former)
        elif isinstance(operation, WriteFile):
            seen = replace(seen, file=operation.text)
        elif isinstance(operation, SetSysctl):
            assert operation.name in seen.values
            seen = replace(seen, values={**seen.values, operation.name: operation.value})
        elif isinstance(operation, RemoveFile):
            seen = replace(seen, file=None)
        elif isinstance(operation, ForgetFormer):
            seen = replace(seen, record=None)
    return seen


@given(values, kernels)
def test_there_and_back_leaves_what_was_there(before: dict[str, int], kernel: tuple[int, ...]) -> None:
    pristine = Observed(before, kernel)
    on = made(pristine, conntrack.plan_present(pristine, manage=True))
    assert conntrack.plan_present(on, manage=True).operations == ()
    assert conntrack.refusal(on.values) == ""
    if before:
        assert (on.values[LIBERAL], on.values.get(IGNORE_INVALID_RST, 1)) == (1, 1)
        assert on.values[NAMES[2]] == on.values[NAMES[3]] == before[ESTABLISHED]
    assert made(on, conntrack.plan_absent(on)) == pristine
    assert conntrack.plan_absent(pristine).operations == ()


@given(values.filter(bool), values.filter(bool))
def test_values_that_others_set_meanwhile_are_no_former_ones(before: dict[str, int], reset: dict[str, int]) -> None:
    pristine = Observed(before)
    on = made(pristine, conntrack.plan_present(pristine, manage=True))
    changed = replace(on, values={name: reset.get(name, value) for name, value in on.values.items()})
    again = made(changed, conntrack.plan_present(changed, manage=True))
    assert again.record == on.record
    back = made(again, conntrack.plan_absent(again))
    assert {name: back.values[name] for name in NAMES if name in before} == {
        name: before[name] for name in NAMES if name in before
    }


@given(values.filter(bool), kernels)
def test_a_run_that_breaks_off_anywhere_is_made_good_by_the_next(before: dict[str, int], kernel: Any) -> None:
    pristine = Observed(before, kernel)
    there = conntrack.plan_present(pristine, manage=True)
    for count in range(len(there.operations) + 1):
        half = made(pristine, replace(there, operations=there.operations[:count]))
        on = made(half, conntrack.plan_present(half, manage=True))
        assert conntrack.plan_present(on, manage=True).operations == ()
        back = conntrack.plan_absent(on)
        for further in range(len(back.operations) + 1):
            less = made(on, replace(back, operations=back.operations[:further]))
            assert made(less, conntrack.plan_absent(less)) == pristine


def test_connections_are_flagged_before_anything_becomes_strict() -> None:
    on = made(Observed(STRICT), conntrack.plan_present(Observed(STRICT), manage=True))
    assert conntrack.plan_absent(on).operations[0] == FlagEntries()
    # What was liberal before stays so, and nobody has to be spared.
    was = {**STRICT, LIBERAL: 1}
    on = made(Observed(was), conntrack.plan_present(Observed(was), manage=True))
    assert FlagEntries() not in conntrack.plan_absent(on).operations


def test_a_datapath_that_is_not_off_keeps_conntrack_liberal() -> None:
    on = made(Observed(STRICT), conntrack.plan_present(Observed(STRICT), manage=True))
    for mode in ("on", "drain"):
        (told,) = conntrack.plan_absent(replace(on, mode=mode)).unmet
        assert f"mode is {mode}" in told
        assert "overlay_mode" in told
    assert conntrack.plan_absent(on).unmet == ()


def test_connections_that_cannot_be_flagged_keep_the_sysctls_and_the_former_values() -> None:
    on = made(Observed(STRICT), conntrack.plan_present(Observed(STRICT), manage=True))
    held = conntrack.plan_absent(on, "no ctnetlink")
    assert held.operations == (RemoveFile(),)
    left = made(on, held)
    assert conntrack.plan_absent(left, "no ctnetlink").operations == ()
    assert (left.values, left.record) == (on.values, on.record)
    told = conntrack.held_warning(left, "It is so.")
    assert f"{LIBERAL} is 1" in told
    assert f"sysctl -w {LIBERAL}=0" in told
    # The next run tries again.
    assert made(left, conntrack.plan_absent(left)) == Observed(STRICT)


def test_conntrack_that_is_loaded_later_had_the_kernels_own_values() -> None:
    before = Observed({}, (6, 12))
    on = made(before, conntrack.plan_present(before, manage=True))
    assert conntrack.plan_present(before, manage=True).result["message"]
    assert f"{LIBERAL} = 1" in str(on.file)
    assert f"{UNACKNOWLEDGED} = 432000" in str(on.file)
    # The file has made it liberal when it was loaded.
    loaded = replace(on, values={**STRICT, LIBERAL: 1})
    on = made(loaded, conntrack.plan_present(loaded, manage=True))
    assert made(on, conntrack.plan_absent(on)) == Observed(STRICT, (6, 12))


def test_lost_record_counts_as_the_kernels_own_values() -> None:
    on = made(Observed(STRICT), conntrack.plan_present(Observed(STRICT), manage=True))
    lost = replace(on, record=None)
    assert made(lost, conntrack.plan_absent(lost)) == Observed(STRICT)
    again = made(lost, conntrack.plan_present(lost, manage=True))
    assert made(again, conntrack.plan_absent(again)) == Observed(STRICT)


def test_old_kernels_are_not_asked_for_what_they_lack() -> None:
    assert IGNORE_INVALID_RST not in conntrack.wanted(Observed({}, (5, 10)))
    assert IGNORE_INVALID_RST in conntrack.wanted(Observed({}, (5, 14)))
    there = {name: value for name, value in STRICT.items() if name != IGNORE_INVALID_RST}
    assert IGNORE_INVALID_RST not in conntrack.wanted(Observed(there, (5, 14)))


def test_whoever_forbids_it_is_told_which_sysctl_is_missing() -> None:
    with pytest.raises(OverlayError, match=f"{LIBERAL} is 0"):
        conntrack.plan_present(Observed(STRICT), manage=False)
    for allowed in ({}, {**STRICT, LIBERAL: 1}):
        plan = conntrack.plan_present(Observed(allowed), manage=False)
        assert (plan.operations, plan.unmet) == ((), ())


@pytest.mark.parametrize(
    "content",
    [None, [], {}, {"former": []}, {"format": 2, "former": {}}, {"format": True, "former": {}}, {"format": 1},
     {"format": 1, "former": {"kernel.x": 1}}, {"format": 1, "former": {LIBERAL: "0"}},
     {"format": 1, "former": {LIBERAL: True}}],
)  # fmt: skip
def test_record_that_holds_something_else_is_an_error_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object
) -> None:
    path = tmp_path / "conntrack.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setattr(sysctls, "RECORD", str(path))
    with pytest.raises(OverlayError, match=f"Cannot read a record of the node: {path}. Reason: ") as told:
        sysctls._read_record()
    assert told.value.advice


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), st.one_of(st.none(), seconds)))
def test_record_that_was_written_is_read(former: dict[str, int | None]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr(sysctls, "RECORD", f"{folder}/conntrack.json")
        assert sysctls._read_record() is None
        for content in (sysctls.RECORDS.encode(sysctls.Record(former)), json.dumps({"former": former}).encode()):
            Path(sysctls.RECORD).write_bytes(content)
            assert sysctls._read_record() == former
