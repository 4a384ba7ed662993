# SPDX-License-Identifier: GPL-3.0-or-later
"""The states of ``overlay_generation``: what each observes, plans and applies."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils import _generations, _watchdog
from ansible_collections.ebpf.overlay.plugins.module_utils._control import read_control, write_control
from ansible_collections.ebpf.overlay.plugins.module_utils._errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._generation_runtime import Runtime
from ansible_collections.ebpf.overlay.plugins.module_utils._generation_store import Store
from ansible_collections.ebpf.overlay.plugins.module_utils._generations import Attempt, Generation, History
from ansible_collections.ebpf.overlay.plugins.module_utils._layout import PIN_DIR
from ansible_collections.ebpf.overlay.plugins.module_utils._lock import one_run
from ansible_collections.ebpf.overlay.plugins.module_utils._plan import Plan
from ansible_collections.ebpf.overlay.plugins.module_utils._plan_mode import Observed as ObservedMode
from ansible_collections.ebpf.overlay.plugins.module_utils._plan_mode import Wanted, plan_mode
from ansible_collections.ebpf.overlay.plugins.module_utils._way_back import (
    Destination,
    interfaces,
    mode_off,
    mode_on,
    was_on,
)

NANOSECONDS = 1_000_000_000


@dataclass(frozen=True)
class Observed:
    """``differences``: what the calls of the generation in question would change."""

    history: History
    was_on: bool = False
    differences: tuple[dict[str, Any], ...] = ()
    leftovers: bool = False


@dataclass(frozen=True)
class BeginAttempt:
    attempt: Attempt


@dataclass(frozen=True)
class ConfirmAttempt:
    number: int


@dataclass(frozen=True)
class RestoreGeneration:
    destination: Destination


class Begun:
    """``state: begun``."""

    def __init__(self, params: dict[str, Any], runtime: Runtime, store: Store) -> None:
        self.calls = [{"module": call["module"], "arguments": call["arguments"]} for call in params["calls"]]
        self.digest = _generations.digest_of(self.calls)
        self.identity = f"{os.getpid():x}-{time.time_ns():x}"
        self.timeout = params["timeout"]
        self.runtime, self.store = runtime, store

    def observe(self) -> Observed:
        history = self.store.read()
        if history.attempt or history.digest != self.digest:
            return Observed(history, was_on(history))
        differences = self.runtime.rehearse([*self.calls, mode_on(history.confirmed)])
        return Observed(history, was_on(history), differences)

    def plan(self, seen: Observed) -> Plan:
        history = seen.history
        same = history.digest == self.digest
        begun = bool(history.attempt and history.attempt.identity == self.identity)
        number = history.confirmed if same else _generations.next_number(history)
        if begun and history.attempt:
            number = history.attempt.number
        wanted = not begun and (not same or bool(seen.differences) or history.attempt is not None)
        deadline = time.monotonic_ns() + int(self.timeout * NANOSECONDS)
        attempt = Attempt(self.identity, number, history.confirmed, deadline, _watchdog.boot_id(), seen.was_on)
        before = _generations.describe(history, history.confirmed)
        return Plan(
            operations=(BeginAttempt(attempt),) if wanted else (),
            before=before,
            after=f"generation {number} ({self.digest[:12]})\n" if wanted else before,
            result={
                "number": number,
                "former": history.confirmed,
                "digest": self.digest,
                "attempt": self.identity if wanted or begun else "",
                "was_on": seen.was_on,
                "differences": list(seen.differences),
            },
        )

    def apply(self, operations: tuple[Any, ...]) -> None:
        for operation in operations:
            attempt = operation.attempt
            generation = Generation(
                attempt.number,
                attempt.former,
                self.digest,
                datetime.now(timezone.utc).isoformat(timespec="seconds"),
                tuple(self.calls),
                interfaces(),
            )
            known = attempt.number == attempt.former
            self.store.begin(attempt, None if known else generation, self.runtime.content)
            _watchdog.arm(self.store.runtime(attempt.number), attempt.identity)


class Confirmed:
    """``state: confirmed``."""

    def __init__(self, params: dict[str, Any], store: Store) -> None:
        self.identity, self.number, self.store = params["attempt"], params["number"], store

    def observe(self) -> Observed:
        history = self.store.read()
        return Observed(history, was_on(history))

    def plan(self, seen: Observed) -> Plan:
        history = seen.history
        done = history.attempt is None and history.by == self.identity
        awaited = bool(history.attempt and history.attempt.identity == self.identity)
        # The same words for all nodes, so that a dry run of a fleet warns once.
        unmet = (
            "The attempt to confirm has not begun or is over: the node went back when its time was up (overlay_lease, "
            "overlay_apply_timeout), or another run began a new one."
        )
        return Plan(
            operations=() if done else (ConfirmAttempt(self.number),),
            before=_generations.describe(history, history.confirmed),
            after=f"generation {self.number}, confirmed\n",
            unmet=() if done or awaited else (unmet,),
            result={
                "number": self.number,
                "former": history.confirmed,
                "digest": history.generations[self.number].digest if self.number in history.generations else "",
                "attempt": self.identity,
                "was_on": seen.was_on,
                "differences": [],
            },
        )

    def apply(self, operations: tuple[Any, ...]) -> None:
        for operation in operations:
            # The lease first: when it is over, the datapath is off, and nothing may be confirmed.
            confirm_mode(operation.number)
            self.store.confirm(operation.number, self.identity)
            _watchdog.disarm()


def confirm_mode(number: int) -> None:
    """Take the lease off the mode. Raises :class:`OverlayError` when it is over, or the mode is not on for this one."""
    with one_run():
        seen = ObservedMode(read_control(PIN_DIR), 0, time.monotonic_ns())
        planned = plan_mode(Wanted("confirm", generation=number), seen, PIN_DIR)
        if planned.unmet:
            raise OverlayError("confirm the overlay", PIN_DIR, " ".join(planned.unmet), "Run site.yml again.")
        for operation in planned.operations:
            write_control(PIN_DIR, operation)


class Restored:
    """``state: restored``."""

    def __init__(self, params: dict[str, Any], runtime: Runtime, store: Store) -> None:
        self.runtime, self.store = runtime, store
        history, to = store.read(), params["to"]
        number = _generations.target_of(history, to, params["number"])
        left = history.confirmed if to == "previous" else 0
        self.destination = Destination(
            number,
            f"restored-{time.time_ns():x}",
            was_on(history) if to == "former" and history.attempt else params["switched_on"],
            history.left if number == history.confirmed else left,
            params["drain_timeout"],
            history.confirmed if to == "former" and number != history.confirmed else 0,
        )
        self.warnings: list[str] = []
        self.unknown = to == "previous" and not history.confirmed and history.attempt is None

    @property
    def number(self) -> int:
        return self.destination.number

    def observe(self) -> Observed:
        history = self.store.read()
        calls = list(_generations.undone_first(history, self.number))
        calls += _generations.calls_to(history, self.number, interfaces())
        if self.number:
            calls.append(mode_on(self.number) if self.destination.on else mode_off())
        differences = self.runtime.rehearse(calls)
        if self.unknown and differences:
            raise OverlayError(
                "go back",
                "the previous generation",
                "this node has no history of it, although the overlay is on the node",
                "Its record was lost. Set overlay_rollback_to to 0 to take the overlay off.",
            )
        return Observed(history, was_on(history), differences, self.store.exists())

    def plan(self, seen: Observed) -> Plan:
        history = seen.history
        there = history.confirmed == self.number and history.attempt is None and (self.number or not seen.leftovers)
        wanted = not there or bool(seen.differences)
        generation = history.generations.get(self.number)
        return Plan(
            operations=(RestoreGeneration(self.destination),) if wanted else (),
            before=_generations.describe(history, history.confirmed)
            + "".join(f"{d['module']} {d['target']}: {d['reason']}\n" for d in seen.differences),
            after=_generations.describe(history, self.number),
            result={
                "number": self.number,
                "former": history.confirmed,
                "digest": generation.digest if generation else "",
                "attempt": "",
                "was_on": seen.was_on,
                "differences": list(seen.differences),
            },
        )

    def apply(self, operations: tuple[Any, ...]) -> None:
        for operation in operations:
            self.warnings += self.runtime.call("restore", given=asdict(operation.destination)).get("warnings", [])
