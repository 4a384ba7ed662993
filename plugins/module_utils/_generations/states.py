# SPDX-License-Identifier: GPL-3.0-or-later
"""The states of ``overlay_generation``: what each observes, plans and applies."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.lock import one_run
from ansible_collections.ebpf.overlay.plugins.module_utils._core.plan import Item, Plan, compare
from ansible_collections.ebpf.overlay.plugins.module_utils._core.resource import Params
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.control import read_control, write_control
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.layout import PIN_DIR
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.mode import Observed as ObservedMode
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.mode import SetControl, Wanted, plan_mode
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.machine import (
    boot_id,
    interface_table,
    run_of_this_machine,
    why_another,
)

from . import model, watchdog
from .model import (
    RESTORED,
    Attempt,
    Generation,
    History,
)
from .runtime import Runtime
from .store import Store
from .stored_runtime import StoredRuntime
from .way_back import (
    Destination,
    go_back,
    known_history,
    mode_off,
    mode_on,
    present_of,
    was_on,
)

NANOSECONDS = 1_000_000_000


@dataclass(frozen=True)
class Observed:
    """``differences``: what the calls of the generation in question would change. ``replaced``: maps that start empty,
    since their layout differs. ``lease``: the deadline in the control entry, of whatever attempt. ``first_release``:
    whether release 1.0.0 made what is there; only its own code keeps its connections alive when it is switched off."""

    history: History
    was_on: bool = False
    differences: tuple[dict[str, Any], ...] = ()
    leftovers: bool = False
    replaced: tuple[str, ...] = ()
    lease: int = 0
    first_release: bool = False


@dataclass(frozen=True)
class BeginAttempt:
    attempt: Attempt


@dataclass(frozen=True)
class ConfirmAttempt:
    number: int


@dataclass(frozen=True)
class RestoreGeneration:
    destination: Destination


@dataclass(frozen=True)
class RecordSwitchedOff:
    pass


def _told(history: History, number: int, seen: Observed, **more: Any) -> dict[str, Any]:
    """The return values that all states have."""
    generation = history.generations.get(number)
    return {
        "number": number,
        "former": history.confirmed,
        "digest": generation.digest if generation else "",
        "attempt": "",
        "was_on": seen.was_on,
        "differences": list(seen.differences),
        "switched_off": history.switched_off,
        "foreign": "",
        "replaced": list(seen.replaced),
        **more,
    }


_OFF = Item("generation", "switched off", "switched off")


def _call(difference: Mapping[str, Any]) -> Item:
    name = f"{difference['module']} {difference['target']}"
    return Item("call", name, f"{name}: {difference['reason']}")


class Begun:
    """``state: begun``."""

    def __init__(self, params: Params, runtime: Runtime, store: Store) -> None:
        self.calls = [{"module": call["module"], "arguments": call["arguments"]} for call in params["calls"]]
        self.digest = model.digest_of(self.calls)
        self.identity = f"{os.getpid():x}-{time.time_ns():x}"
        self.timeout, self.drain_timeout, self.enable = params["timeout"], params["drain_timeout"], params["enable"]
        self.runtime, self.store = runtime, store
        another = why_another(params["gathered_from"] or {}, run_of_this_machine())
        if another:
            raise OverlayError(
                "begin a generation",
                socket.gethostname(),
                another,
                "Nothing was changed on it. Run the play again: it gathers the facts anew.",
            )

    def observe(self) -> Observed:
        history = self.store.read(mending=True)
        seen = Observed(history, was_on(self.store, history), lease=_lease())
        if history.attempt and history.attempt.identity == self.identity:
            return seen
        if history.attempt or history.digest != self.digest:
            return replace(
                seen, replaced=self._replaced(history), first_release=_of_first_release(present_of(self.store, history))
            )
        stays_off = history.switched_off and not self.enable
        mode = mode_off() if stays_off else mode_on(history.confirmed)
        return replace(seen, differences=self.runtime.rehearse([*self.calls, mode]))

    def _replaced(self, history: History) -> tuple[str, ...]:
        """Asked only where the datapath is built from something else than before, since the answer takes a compiler."""
        present = history.generations.get(history.attempt.number if history.attempt else history.confirmed)
        wanted, there = _objects(self.calls), _objects(present.calls if present else ())
        if not there or wanted == there:
            return ()
        differences = self.runtime.rehearse(model.replacing_maps(wanted))
        return tuple(name for item in differences for name in item.get("replaced", ()))

    def plan(self, seen: Observed) -> Plan:
        history = seen.history
        same = history.digest == self.digest
        begun = bool(history.attempt and history.attempt.identity == self.identity)
        number = history.confirmed if same else model.next_number(history)
        if begun and history.attempt:
            number = history.attempt.number
        enabled = self.enable and history.switched_off
        wanted = not begun and (not same or enabled or bool(seen.differences) or history.attempt is not None)
        deadline = time.monotonic_ns() + int(self.timeout * NANOSECONDS)
        boot = boot_id()
        leave = bool(seen.replaced) or seen.first_release
        attempt = Attempt(
            self.identity, number, history.confirmed, deadline, boot, seen.was_on, seen.lease, self.enable, leave
        )
        present = model.describe(history, history.confirmed)
        emptied = [Item("map", name, f"map {name}: its layout differs, it starts empty") for name in seen.replaced]
        begun_as = [model.told(f"generation {number} ({self.digest[:12]})"), *emptied]
        return Plan(
            operations=(BeginAttempt(attempt),) if wanted else (),
            changes=compare([present], begun_as if wanted else [present]),
            warnings=tuple(
                f"The record of generation {damaged} cannot be read: {reason}."
                for damaged, reason in history.damaged.items()
            ),
            result=_told(
                history,
                number,
                seen,
                digest=self.digest,
                attempt=self.identity if wanted or begun else "",
                switched_off=history.switched_off and not self.enable,
            ),
        )

    def apply(self, operations: tuple[Any, ...]) -> None:
        for operation in operations:
            present = present_of(self.store, self.store.read(mending=True))
            self._begin(operation.attempt)
            if operation.attempt.left and present.exists():
                self._leave(present, operation.attempt)

    def _begin(self, attempt: Attempt) -> None:
        when = datetime.now(timezone.utc).isoformat(timespec="seconds")
        generation = Generation(attempt.number, attempt.former, self.digest, when, tuple(self.calls), interface_table())
        known = attempt.number == attempt.former
        self.store.begin(
            attempt,
            None if known else generation,
            self.runtime.content,
            lambda: watchdog.arm(self.store.runtime_of(attempt), attempt.identity),
        )

    def _leave(self, present: StoredRuntime, attempt: Attempt) -> None:
        try:
            present.leave(self.drain_timeout, remove=False, kept=[call["module"] for call in self.calls])
        except OverlayError:
            go_back(self.store, self.store.read(), attempt.was_on)
            raise


def _objects(calls: Any) -> list[Mapping[str, Any]]:
    return [call for call in calls if call["module"] == "bpf_object"]


def _of_first_release(runtime: StoredRuntime) -> bool:
    return runtime.exists() and runtime.format == 1


def _lease() -> int:
    try:
        control = read_control(PIN_DIR)
    except OverlayError:  # of another layout
        return 0
    return control.deadline if control else 0


class Confirmed:
    """``state: confirmed``."""

    def __init__(self, params: Params, store: Store) -> None:
        self.identity, self.number, self.store = params["attempt"], params["number"], store

    def observe(self) -> Observed:
        history = self.store.read(mending=True)
        return Observed(history, was_on(self.store, history))

    def plan(self, seen: Observed) -> Plan:
        history = seen.history
        done = history.attempt is None and history.by == self.identity
        awaited = bool(history.attempt and history.attempt.identity == self.identity)
        # The same words for all nodes, so that a dry run of a fleet warns once.
        unmet = (
            "The attempt to confirm has not begun or is over: the node went back when its time was up (overlay_lease, "
            "overlay_apply_timeout), or another run began a new one."
        )
        enabled = bool(history.attempt and history.attempt.enable)
        confirmed = f"generation {self.number}, confirmed"
        return Plan(
            operations=() if done else (ConfirmAttempt(self.number),),
            changes=compare([model.describe(history, history.confirmed)], [model.told(confirmed)]),
            unmet=() if done or awaited else (unmet,),
            result=_told(
                history,
                self.number,
                seen,
                attempt=self.identity,
                differences=[],
                switched_off=history.switched_off and not enabled,
            ),
        )

    def apply(self, operations: tuple[Any, ...]) -> None:
        for operation in operations:
            attempt = self.store.attempt()
            enabled = bool(attempt and attempt.enable)
            if self.store.switched_off() and not enabled:
                stay_off()
            else:
                # The lease first: when it is over, the datapath is off, and nothing may be confirmed.
                confirm_mode(operation.number)
            self.store.confirm(operation.number, self.identity)
            if enabled:
                self.store.switch_on()
            watchdog.disarm()


def confirm_mode(number: int) -> None:
    """Take the lease off the mode. Raises :class:`OverlayError` when it is over, or the mode is not on for this one."""
    with one_run():
        seen = ObservedMode(read_control(PIN_DIR), 0, time.monotonic_ns())
        planned = plan_mode(Wanted("confirm", generation=number), seen, PIN_DIR)
        if planned.unmet:
            raise OverlayError("confirm the overlay", PIN_DIR, " ".join(planned.unmet), "Run site.yml again.")
        for operation in planned.operations:
            write_control(PIN_DIR, operation)


def stay_off() -> None:
    """Nothing switches a node on that somebody has switched off, not even while this attempt was under way."""
    with one_run():
        control = read_control(PIN_DIR)
        if control and control.mode != "off":
            write_control(PIN_DIR, SetControl(replace(control, mode="off", deadline=0)))


class SwitchedOff:
    """``state: switched_off``. One file, made at once: it waits for no other run."""

    def __init__(self, _params: Params, store: Store) -> None:
        self.store = store

    def observe(self) -> Observed:
        history = known_history(self.store, tolerant=True)
        return Observed(replace(history, switched_off=self.store.switched_off()), leftovers=self.store.exists())

    def plan(self, seen: Observed) -> Plan:
        history = seen.history
        wanted = seen.leftovers and not history.switched_off
        off = seen.leftovers or history.switched_off
        return Plan(
            operations=(RecordSwitchedOff(),) if wanted else (),
            changes=compare([_OFF] if history.switched_off else [], [_OFF] if off else []),
            result=_told(history, history.confirmed, seen, switched_off=off),
        )

    def apply(self, operations: tuple[Any, ...]) -> None:
        for _operation in operations:
            self.store.switch_off(datetime.now(timezone.utc).isoformat(timespec="seconds"))


class Restored:
    """``state: restored``."""

    def __init__(self, params: Params, runtime: Runtime, store: Store) -> None:
        self.runtime, self.store, self.enable = runtime, store, params["enable"]
        to = params["to"]
        self.removing = to == "0"
        history = self._history()
        undoing = to == "former" and params["attempt"] is not None
        self.foreign = model.holder_of(history, params["attempt"], params["number"] or 0) if undoing else ""
        number = history.confirmed if self.foreign else model.target_of(history, to, params["number"])
        left = history.confirmed if to == "previous" else 0
        on = was_on(store, history) if to == "former" and history.attempt else params["switched_on"]
        self.destination = Destination(
            number,
            f"{RESTORED}{time.time_ns():x}",
            self.enable or (on and not history.switched_off),
            history.left if number == history.confirmed else left,
            params["drain_timeout"],
            history.confirmed if to == "former" and number != history.confirmed else 0,
            self.enable,
        )
        self.warnings: list[str] = []
        self.unknown = to == "previous" and not history.confirmed and history.attempt is None

    def _history(self) -> History:
        return known_history(self.store, tolerant=self.removing)

    @property
    def number(self) -> int:
        return self.destination.number

    def observe(self) -> Observed:
        history = self._history()
        differences = () if self.foreign else self._rehearse(history)
        if self.unknown and differences:
            raise OverlayError(
                "go back",
                "the previous generation",
                "this node has no history of it, although the overlay is on the node",
                "Its record was lost. Set overlay_rollback_to to 0 to take the overlay off.",
            )
        return Observed(history, was_on(self.store, history), differences, self.store.exists())

    def _rehearse(self, history: History) -> tuple[dict[str, Any], ...]:
        """By the code of that generation. Where this module brought the same, no further process is needed."""
        if self.number == 0:
            return self.runtime.rehearse(model.GENERATION_0)
        record = model.record_of(history, self.number)
        stored = StoredRuntime(self.store.runtime(self.number), record)
        if not stored.holds(self.runtime.content):
            return stored.rehearse("on" if self.destination.on else "off")
        calls = model.adapt(record.calls, record.interfaces, interface_table())
        return self.runtime.rehearse([*calls, mode_on(self.number) if self.destination.on else mode_off()])

    def plan(self, seen: Observed) -> Plan:
        history = seen.history
        there = history.confirmed == self.number and history.attempt is None and (self.number or not seen.leftovers)
        enabled = self.enable and history.switched_off
        wanted = not self.foreign and (not there or enabled or bool(seen.differences))
        return Plan(
            operations=(RestoreGeneration(self.destination),) if wanted else (),
            changes=compare(
                [model.describe(history, history.confirmed), *map(_call, seen.differences)],
                [model.describe(history, self.number)],
            ),
            result=_told(
                history,
                self.number,
                seen,
                foreign=self.foreign,
                switched_off=bool(self.number) and history.switched_off and not self.enable,
            ),
        )

    def apply(self, operations: tuple[Any, ...]) -> None:
        for operation in operations:
            self.warnings += self.runtime.call("restore", asdict(operation.destination)).get("warnings", [])
