# SPDX-License-Identifier: GPL-3.0-or-later
"""The mode: what is written, in which order, and when nothing is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.mode import (
    NANOSECONDS,
    Control,
    Observed,
    SetControl,
    SetUnpinned,
    Wanted,
    plan_mode,
)

NOW = 1_000 * NANOSECONDS
PIN = "/sys/fs/bpf/ebpf-overlay"
HZ = 250

controls = st.builds(
    Control,
    mode=st.sampled_from(["off", "drain", "on"]),
    deadline=st.sampled_from([0, NOW - NANOSECONDS, NOW, NOW + NANOSECONDS, NOW + 60 * NANOSECONDS]),
    epoch=st.integers(0, 5),
    generation=st.integers(0, 5),
)
wishes = st.builds(
    Wanted,
    mode=st.sampled_from(["on", "confirm", "drain", "off"]),
    lease=st.sampled_from([0, 0.5, 2, 60]),
    generation=st.sampled_from([None, 0, 3]),
)


def applied(control: Control, operations: tuple[object, ...]) -> Control:
    for operation in operations:
        if isinstance(operation, SetControl):
            control = operation.control
            if operation.lease:
                control = replace(control, deadline=NOW + int(operation.lease * NANOSECONDS))
    return control


@given(controls, wishes)
def test_strict_conntrack_keeps_it_from_being_switched_on_and_nothing_else(control: Control, wanted: Wanted) -> None:
    for loaded in (control, None):
        try:
            free = plan_mode(wanted, Observed(loaded, 0, NOW), PIN)
        except OverlayError:
            continue
        held = plan_mode(wanted, Observed(loaded, 0, NOW, refusal="It is strict."), PIN)
        assert held.operations == free.operations
        assert held.unmet == (*free.unmet, *(["It is strict."] if wanted.mode == "on" else []))


@given(controls, wishes)
def test_planning_again_gives_nothing(control: Control, wanted: Wanted) -> None:
    try:
        plan = plan_mode(wanted, Observed(control, NOW, HZ), PIN)
    except OverlayError:
        return
    if not plan.unmet:
        assert not plan_mode(wanted, Observed(applied(control, plan.operations), NOW, HZ), PIN).operations


@given(controls, wishes)
def test_switching_on_begins_an_epoch(control: Control, wanted: Wanted) -> None:
    try:
        plan = plan_mode(wanted, Observed(control, NOW, HZ), PIN)
    except OverlayError:
        return
    after = applied(control, plan.operations)
    if not plan.unmet and control.effective(NOW) == "off" and after.effective(NOW) != "off":
        assert after.epoch > control.epoch
    elif not plan.unmet:
        assert after.epoch == control.epoch


@given(controls, st.sampled_from(["off", "drain", "on"]))
def test_each_mode_is_one_write(control: Control, mode: str) -> None:
    operations = plan_mode(Wanted(mode), Observed(control, NOW, HZ), PIN).operations
    assert len(operations) <= 1
    expected = "off" if mode == "drain" and control.effective(NOW) == "off" else mode
    assert applied(control, operations).effective(NOW) == expected
    if mode == "on":
        assert applied(control, operations).second == HZ


@given(controls)
def test_what_is_off_stays_as_it_is(control: Control) -> None:
    off = replace(control, mode="off", deadline=0)
    assert not plan_mode(Wanted("off"), Observed(off, NOW, HZ), PIN).operations


def test_a_confirmation_in_time_removes_the_deadline_and_nothing_else() -> None:
    control = Control("on", NOW + 1, 4, 2)
    (operation,) = plan_mode(Wanted("confirm"), Observed(control, NOW, HZ), PIN).operations
    assert operation == SetControl(Control("on", 0, 4, 2))


def test_a_confirmation_that_comes_too_late_is_an_error_that_says_so() -> None:
    with pytest.raises(OverlayError, match=r"its lease ended 1\.5 s ago"):
        plan_mode(Wanted("confirm"), Observed(Control("on", NOW - 3 * NANOSECONDS // 2, 1, 0), NOW, HZ), PIN)


@pytest.mark.parametrize("mode", ["off", "drain"])
def test_there_is_nothing_to_confirm_unless_on(mode: str) -> None:
    assert plan_mode(Wanted("confirm"), Observed(Control(mode), NOW, HZ), PIN).unmet


@pytest.mark.parametrize("generation", [1, 3])
def test_the_mode_of_another_generation_is_not_confirmed(generation: int) -> None:
    seen = Observed(Control("on", NOW + 1, 4, 2), NOW, HZ)
    assert plan_mode(Wanted("confirm", generation=generation), seen, PIN).unmet
    assert not plan_mode(Wanted("confirm", generation=2), seen, PIN).unmet


def test_draining_does_not_bring_back_what_is_off() -> None:
    expired = Control("on", NOW - 1, 1, 0)
    assert applied(expired, plan_mode(Wanted("drain"), Observed(expired, NOW, HZ), PIN).operations).mode == "off"


@pytest.mark.parametrize("mode", ["on", "confirm"])
def test_without_a_datapath_on_is_predicted_and_refused(mode: str) -> None:
    plan = plan_mode(Wanted(mode), Observed(None, NOW, HZ), PIN)
    assert plan.operations
    assert "bpf_object" in plan.unmet[0]


@pytest.mark.parametrize("mode", ["off", "drain"])
def test_without_a_datapath_it_is_off_already(mode: str) -> None:
    plan = plan_mode(Wanted(mode), Observed(None, NOW, HZ), PIN)
    assert not plan.operations
    assert not plan.unmet
    assert plan.result["mode"] == "off"


def test_a_datapath_that_lost_its_pins_is_switched_off_through_its_filters() -> None:
    running = {7: Control("on", 0, 4, 2), 9: Control("off", 0, 1, 1)}
    plan = plan_mode(Wanted("off"), Observed(None, NOW, HZ, running), PIN)
    assert plan.operations == (SetUnpinned(7, Control("off", 0, 4, 2)),)
    assert (plan.before, plan.after) == ("mode on\n", "mode off\n")
    assert "pins" in plan.warnings[0]
