# SPDX-License-Identifier: GPL-3.0-or-later
"""From the datapath's control entry to the wanted mode. Pure: the clock is an argument."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Optional

from ansible_collections.ebpf.overlay.plugins.module_utils._errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._plan import Plan

NANOSECONDS = 1_000_000_000


@dataclass(frozen=True)
class Control:
    """The control entry (``struct control`` in types.h). ``deadline``: ns of CLOCK_MONOTONIC, 0 for none."""

    mode: str = "off"
    deadline: int = 0
    session: int = 0
    generation: int = 0

    def effective(self, now: int) -> str:
        """The mode as the datapath acts on it: past its deadline, any mode is off."""
        return "off" if self.deadline and now >= self.deadline else self.mode


@dataclass(frozen=True)
class Observed:
    """``control``: None while no datapath is loaded. ``flows``: known ones. ``now``: ns of CLOCK_MONOTONIC."""

    control: Optional[Control]
    flows: int
    now: int


@dataclass(frozen=True)
class Wanted:
    """``mode``: on, confirm, drain or off. ``lease``: seconds, 0 for none. ``generation``: None leaves it."""

    mode: str
    lease: float = 0
    generation: Optional[int] = None
    force: bool = False


@dataclass(frozen=True)
class SetControl:
    """Write the entry. ``lease``: seconds from the moment of writing, which replaces the deadline; 0 leaves it as it is."""

    control: Control
    lease: float = 0


@dataclass(frozen=True)
class AwaitFlows:
    """Wait until no known flow is left, up to the timeout of the run."""


@dataclass(frozen=True)
class HandOver:
    """Make conntrack entries of the flows that are left."""


def plan_mode(wanted: Wanted, observed: Observed, pin: str) -> Plan:
    """Raises :class:`OverlayError` for a confirmation that comes too late."""
    if observed.control is None:
        return _plan_unloaded(wanted, pin)
    control, now = observed.control, observed.now
    mode = control.effective(now)
    session = control.session + 1 if mode == "off" else control.session
    generation = control.generation if wanted.generation is None else wanted.generation

    if wanted.mode == "confirm":
        if mode == "off" and control.deadline:
            raise OverlayError(
                "confirm the overlay",
                pin,
                f"its lease ended {(now - control.deadline) / NANOSECONDS:.1f} s ago, the node is back on the kernel's path",
                "Switch it on again with a longer lease.",
            )
        unmet = () if mode == "on" else (f"There is nothing to confirm: the mode in {pin} is {mode}.",)
        after = replace(control, mode="on", deadline=0, generation=generation)
        return _plan(observed, after, () if after == control else (SetControl(after),), unmet)

    if wanted.mode == "on":
        after = Control("on", 0, session, generation)
        if not wanted.lease:
            return _plan(observed, after, () if after == control else (SetControl(after),))
        left = (control.deadline - now) / NANOSECONDS if control.deadline else 0
        if mode == "on" and control.generation == generation and left >= wanted.lease - min(1.0, wanted.lease / 2):
            return _plan(observed, control, ())
        return _plan(observed, after, (SetControl(after, wanted.lease),), lease=wanted.lease)

    if wanted.mode == "drain":
        # What is off already stays off: draining would bring flows back that the kernel has taken over.
        target = "off" if mode == "off" else "drain"
        after = replace(control, mode=target, deadline=0, generation=generation)
        operations = () if after == control else (SetControl(after),)
        return _plan(observed, after, (*operations, AwaitFlows()) if operations and target == "drain" else operations)

    after = replace(control, mode="off", deadline=0, generation=generation)
    if after == control:
        return _plan(observed, after, ())
    if mode == "off" or wanted.force:
        return _plan(observed, after, (SetControl(after),))
    draining = replace(control, mode="drain", deadline=0)
    steps = () if draining == control else (SetControl(draining),)
    return _plan(observed, after, (*steps, AwaitFlows(), HandOver(), SetControl(after)))


def _plan_unloaded(wanted: Wanted, pin: str) -> Plan:
    if wanted.mode in ("off", "drain"):
        return Plan(result={"mode": "off", "session": 0, "generation": 0, "flows": 0})
    mode = "on"
    return Plan(
        operations=(SetControl(Control("on")),),
        after=_text("on", wanted.lease if wanted.mode == "on" else 0),
        unmet=(f"No datapath is loaded: {pin} is not there. Load it with ebpf.overlay.bpf_object first.",),
        result={"mode": mode, "session": 1, "generation": wanted.generation or 0, "flows": 0},
    )


def _plan(
    observed: Observed, after: Control, operations: tuple[object, ...], unmet: tuple[str, ...] = (), lease: float = 0
) -> Plan:
    before = observed.control or Control()
    left = (before.deadline - observed.now) / NANOSECONDS if before.deadline else 0
    return Plan(
        operations=operations,
        before=_text(before.effective(observed.now), max(left, 0)),
        after=_text(after.mode, lease or (max(left, 0) if after.deadline else 0)),
        unmet=unmet,
        result={
            "mode": after.mode,
            "session": after.session,
            "generation": after.generation,
            "flows": observed.flows,
        },
    )


def _text(mode: str, lease: float) -> str:
    return f"mode {mode}{f', unless confirmed within {lease:.0f} s' if lease else ''}\n"
