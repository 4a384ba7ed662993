# SPDX-License-Identifier: GPL-3.0-or-later
"""From the datapath's control entry to the wanted mode. Pure: the clock is an argument."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Callable

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.plan import Change, Plan

NANOSECONDS = 1_000_000_000


@dataclass(frozen=True)
class Control:
    """The control entry (``struct control`` in types.h). ``deadline``: ns of CLOCK_MONOTONIC, 0 for none.

    ``epoch``: grows when the overlay is switched on, so that known flows are proven anew. ``second``: in jiffies.
    """

    mode: str = "off"
    deadline: int = 0
    epoch: int = 0
    generation: int = 0
    second: int = 0

    def effective(self, now: int) -> str:
        """The mode as the datapath acts on it: past its deadline, any mode is off."""
        return "off" if self.deadline and now >= self.deadline else self.mode


@dataclass(frozen=True)
class Observed:
    """``control``: None while no datapath is loaded. ``now``: ns of CLOCK_MONOTONIC. ``second``: jiffies in a second.

    ``unpinned``: the entries, by map id, of a datapath that still runs although its pins are gone.
    ``refusal``: why it must not be switched on, a full sentence; empty where it may.
    ``other_layout``: whether a datapath whose entry this release cannot decode may be on; None where it can.
    """

    control: Control | None
    now: int
    second: int = 0
    unpinned: Mapping[int, Control] = field(default_factory=dict)
    refusal: str = ""
    other_layout: bool | None = None


@dataclass(frozen=True)
class Wanted:
    """``mode``: on, confirm, drain or off. ``lease``: seconds, 0 for none. ``generation``: None leaves it."""

    mode: str
    lease: float = 0
    generation: int | None = None


@dataclass(frozen=True)
class SetControl:
    """Write the entry. ``lease``: seconds from the moment of writing, in place of the deadline; 0: none."""

    control: Control
    lease: float = 0


@dataclass(frozen=True)
class SetZeros:
    """Fill the entry with zeros, which is off in every layout."""


@dataclass(frozen=True)
class SetUnpinned:
    """Write the entry of the map with this id."""

    map_id: int
    control: Control


def plan_mode(wanted: Wanted, observed: Observed, pin: str) -> Plan:
    """Raises :class:`OverlayError` for a confirmation that comes too late."""
    if observed.other_layout is not None:
        return _plan_other_layout(wanted, observed, pin)
    if observed.control is None:
        return _plan_unloaded(wanted, observed, pin)
    control = observed.control
    if wanted.generation is not None:
        control = replace(control, generation=wanted.generation)
    return _PLANS[wanted.mode](wanted, observed, control, pin)


def _plan_confirm(wanted: Wanted, observed: Observed, control: Control, pin: str) -> Plan:
    mode = control.effective(observed.now)
    if mode == "off" and control.deadline:
        raise OverlayError(
            "confirm the overlay",
            pin,
            f"its lease ended {(observed.now - control.deadline) / NANOSECONDS:.1f} s ago, and the node went back",
            "Switch it on again with a longer lease.",
        )
    unmet: tuple[str, ...] = ()
    if mode != "on":
        unmet = (f"There is nothing to confirm: the mode in {pin} is {mode}.",)
    elif control != observed.control:
        unmet = (f"There is nothing to confirm: the mode in {pin} is not on for generation {wanted.generation}.",)
    return _plan(observed, _entry(observed, replace(control, mode="on", deadline=0)), unmet=unmet)


def _plan_on(wanted: Wanted, observed: Observed, control: Control, _pin: str) -> Plan:
    mode = control.effective(observed.now)
    epoch = control.epoch + 1 if mode == "off" else control.epoch
    after = replace(control, mode="on", deadline=0, epoch=epoch, second=observed.second)
    unmet = (observed.refusal,) if observed.refusal else ()
    if not wanted.lease:
        return _plan(observed, _entry(observed, after), unmet)
    left = (control.deadline - observed.now) / NANOSECONDS if control.deadline else 0
    kept = replace(after, deadline=control.deadline) == observed.control
    if mode == "on" and kept and left >= wanted.lease - min(1.0, wanted.lease / 2):
        return _plan(observed, (), unmet)
    return _plan(observed, (SetControl(after, wanted.lease),), unmet)


def _plan_drain(_wanted: Wanted, observed: Observed, control: Control, _pin: str) -> Plan:
    # What is off already stays off.
    mode = "off" if control.effective(observed.now) == "off" else "drain"
    return _plan(observed, _entry(observed, replace(control, mode=mode, deadline=0)))


def _plan_off(_wanted: Wanted, observed: Observed, control: Control, _pin: str) -> Plan:
    return _plan(observed, _entry(observed, replace(control, mode="off", deadline=0)))


_PLANS: dict[str, Callable[[Wanted, Observed, Control, str], Plan]] = {
    "confirm": _plan_confirm,
    "on": _plan_on,
    "drain": _plan_drain,
    "off": _plan_off,
}


def _entry(observed: Observed, after: Control) -> tuple[SetControl, ...]:
    """The write that makes the entry ``after``, if it is not that already."""
    return () if after == observed.control else (SetControl(after),)


def _plan_other_layout(wanted: Wanted, observed: Observed, pin: str) -> Plan:
    """Its flows are known to its own release alone; a generation's own code switches it off without cutting them."""
    before = _text("of another release" if observed.other_layout else "off")
    if wanted.mode in ("off", "drain"):
        operations = (SetZeros(),) if observed.other_layout else ()
        return Plan(operations, _changes(before, _text("off")), result=_result(Control()))
    after = Control("on", 0, 1, wanted.generation or 0, observed.second)
    return Plan(
        operations=(SetControl(after, wanted.lease),),
        changes=_changes(before, _text("on", wanted.lease if wanted.mode == "on" else 0)),
        unmet=(f"The datapath in {pin} is of another release: load this one's first (ebpf.overlay.bpf_object).",),
        result=_result(after),
    )


def _plan_unloaded(wanted: Wanted, observed: Observed, pin: str) -> Plan:
    if wanted.mode in ("off", "drain"):
        off = {number: replace(control, mode="off", deadline=0) for number, control in observed.unpinned.items()}
        running = [control for control in observed.unpinned.values() if control.effective(observed.now) != "off"]
        return Plan(
            operations=tuple(SetUnpinned(*item) for item in off.items() if observed.unpinned[item[0]] != item[1]),
            changes=_changes(_text(running[0].effective(observed.now) if running else "off"), _text("off")),
            warnings=(
                (f"The pins in {pin} are gone, but filters of the overlay still run; it was found through them. "
                 "Run site.yml or rollback.yml to put the node in order.",)
                if observed.unpinned else ()
            ),
            result=_result(Control()),
        )  # fmt: skip
    after = Control("on", 0, 1, wanted.generation or 0, observed.second)
    return Plan(
        operations=(SetControl(after, wanted.lease),),
        changes=_changes(_text("off"), _text("on", wanted.lease if wanted.mode == "on" else 0)),
        unmet=(
            f"No datapath is loaded: {pin} is not there. Load it with ebpf.overlay.bpf_object first.",
            *([observed.refusal] if observed.refusal and wanted.mode == "on" else []),
        ),
        result=_result(after),
    )


def _plan(observed: Observed, operations: tuple[object, ...], unmet: tuple[str, ...] = ()) -> Plan:
    before = observed.control or Control()
    left = max((before.deadline - observed.now) / NANOSECONDS, 0) if before.deadline else 0
    writes = [operation for operation in operations if isinstance(operation, SetControl)]
    after, lease = (writes[-1].control, writes[-1].lease) if writes else (before, left)
    return Plan(
        operations=operations,
        changes=_changes(_text(before.effective(observed.now), left), _text(after.effective(observed.now), lease)),
        unmet=unmet,
        result=_result(after),
    )


def _result(control: Control) -> dict[str, object]:
    return {"mode": control.mode, "epoch": control.epoch, "generation": control.generation}


def _changes(before: str, after: str) -> tuple[Change, ...]:
    return (Change("mode", "mode", before, after),)


def _text(mode: str, lease: float = 0) -> str:
    return f"mode {mode}{f', unless confirmed within {lease:.0f} s' if lease else ''}"
