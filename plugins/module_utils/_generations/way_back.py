# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a node one of its generations again, without the controller: the main program of ``runtime.zip``.

``leave``, ``make`` and ``rehearse`` (what ``make`` would change) work on the calls that they are given, those of the
generation that this code is kept with. ``restore`` leaves the present generation and makes another, each by its own
code. ``watch ATTEMPT`` does so when nobody confirmed, ``boot`` after a reboot. Each prints one line of JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.libraries import complete_path
from ansible_collections.ebpf.overlay.plugins.module_utils._core.lock import one_run
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import last_resort
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.control import read_control
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.layout import PIN_DIR
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.mode import Control
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.machine import boot_id, interface_table

from . import log, model
from .model import RETURNED, Attempt, Call, History
from .store import Store
from .stored_runtime import StoredRuntime
from .watchdog import disarm

LOCK = "/run/ebpf-overlay-generation.lock"
CALLS = f"{__name__.rpartition('.')[0]}.calls"  # Python 3.9 does not tell __package__ within a zip file


def run_call(call: Call, check: bool) -> dict[str, Any]:
    """Do what a module would do, in a child: the compiler's memory goes with it. Returns the module's result."""
    with contextlib.suppress(Exception):  # the child tells
        importlib.import_module(CALLS)  # here, so that further calls need not do it again
    return _result(call, _in_child(lambda: json.dumps(_perform(call, check))))


def _in_child(work: Callable[[], str]) -> str:
    """What ``work`` returns in a process of its own, the traceback if it raises; the empty text where it dies."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            with open(writer, "w", encoding="utf-8") as stream:
                try:
                    stream.write(work())
                except Exception:
                    stream.write(traceback.format_exc())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as stream:
        text = stream.read()
    os.waitpid(child, 0)
    return text


def _result(call: Call, text: str) -> dict[str, Any]:
    """What a child told; one that told nothing has failed."""
    try:
        result: dict[str, Any] = json.loads(text)
    except ValueError:
        return {"failed": True, "msg": f"{call['module']} ended without a result: {text[-300:]}"}
    return result


def _perform(call: Call, check: bool, detailed: bool = False) -> dict[str, Any]:
    # By name, since the modules that look at a generation need not bring along what makes one.
    result: dict[str, Any] = importlib.import_module(CALLS).perform(call, check, detailed)
    return result


def rehearse(calls: Iterable[Call], detailed: bool = False) -> list[dict[str, Any]]:
    """What these calls would change: ``module``, ``target`` and ``reason`` of each that would, or cannot tell.

    ``detailed``: and ``changes``, every object that differs. One child for all of them, since nothing is written: a
    child for each takes longer than its work. Raises :class:`OverlayError`.
    """
    text = _in_child(lambda: json.dumps([found for call in calls for found in _difference(call, detailed)]))
    try:
        found: list[dict[str, Any]] = json.loads(text)
    except ValueError as error:
        raise OverlayError(
            "compare the node with a generation",
            "its calls",
            f"the process that makes them in check mode ended with: {text[-300:].strip() or 'nothing, it was killed'}",
            "Look at the node's log for what killed it, or report the error.",
        ) from error
    return found


def _difference(call: Call, detailed: bool) -> Iterator[dict[str, Any]]:
    result = _perform(call, True, detailed)
    if result.get("failed") or result.get("changed"):
        arguments = call["arguments"]
        # Maps that are pinned and would start with no entries, since their layout differs.
        maps = [told for told in result.get("maps") or () if told["fresh"] and os.path.lexists(told["pin"])]
        yield {
            "module": call["module"],
            "target": arguments.get("map") or arguments.get("pin_dir") or arguments.get("path") or "",
            "reason": result.get("msg") if result.get("failed") else "differs",
            "diff": result.get("diff"),
            **({"replaced": [told["name"] for told in maps]} if maps else {}),
            **({"changes": result.get("changes", [])} if detailed else {}),
        }


def mode_on(number: int) -> Call:
    return {"module": "overlay_mode", "arguments": {"mode": "on", "generation": number}}


def mode_off() -> Call:
    return {"module": "overlay_mode", "arguments": {"mode": "off"}}


def _make(calls: Iterable[Call]) -> list[str]:
    """Returns what the modules warned of."""
    warnings = []
    for call in calls:
        result = run_call(call, check=False)
        if result.get("failed"):
            raise OverlayError(
                "restore a generation", call["module"], result.get("msg", "it failed"), "Repair that, then run again."
            )
        warnings += result["warnings"]
    return warnings


# --- what a generation's own code is asked ----------------------------------------------------------------------------


def leave(given: Mapping[str, Any]) -> list[str]:
    """See :meth:`StoredRuntime.leave`. The mode is off first, however that can be reached. Raises OverlayError."""
    try:
        _make([mode_off()])
    except OverlayError:
        last_resort.kernels_path()
    warnings = _make(model.undo(given["calls"], () if given["remove"] else given["kept"]))
    return warnings + _make(model.REMOVAL if given["remove"] else ())


def calls_of(given: Mapping[str, Any]) -> tuple[Call, ...]:
    """On the interfaces that the node has now. A map whose layout differs starts empty: the mode is off, nothing looks
    into it."""
    calls = model.adapt(given["calls"], given["interfaces"], interface_table())
    mode: tuple[Call, ...] = ()
    if given["mode"] == "on":
        mode = (mode_on(given["number"]),)
    elif given["mode"] == "off":
        mode = (mode_off(),)
    return (*model.replacing_maps(calls), *mode)


# --- from one generation to another -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Destination:
    """Where a node goes back to. ``by`` and ``left``: as in the history. ``on``: whether the overlay is on then.

    ``taken_back``: the generation that it leaves because its roll-out failed elsewhere, 0 for none.
    ``enable``: whether the node is not switched off any more.
    """

    number: int
    by: str
    on: bool = True
    left: int = 0
    drain_timeout: float = 0
    taken_back: int = 0
    enable: bool = False


def restore(store: Store, destination: Destination) -> list[str]:
    """Make the node that generation and confirm it; harmless when run again. Raises :class:`OverlayError`.

    Returns what the modules warned of.
    """
    number = destination.number
    # A record whose content is lost is made anew at the end.
    history = store.read(mending=True) if number else known_history(store, tolerant=True)
    record = model.record_of(history, number) if number else None
    entered = StoredRuntime(store.runtime(number), record)
    if number:
        entered.check()
    warnings = _leave_present(store, history, destination, entered)
    if number == 0:
        warnings += _make([model.COMMAND_GONE])
        store.clear()
        log.note("took the overlay off", store.root)
        return warnings
    if destination.enable:
        store.switch_on()
    warnings += entered.make("on" if destination.on else None)
    if destination.on and store.switched_off():  # by somebody, while this was under way
        warnings += _leave_present(store, history, destination, entered)
    store.give_up()
    store.confirm(number, destination.by, destination.left, destination.taken_back)
    return warnings


def known_history(store: Store, tolerant: bool) -> History:
    """``tolerant``: records that cannot be read do not matter to whoever takes everything off."""
    try:
        return store.read(mending=tolerant)
    except OverlayError:
        if not tolerant:
            raise
        return History()


def _leave_present(store: Store, history: History, destination: Destination, entered: StoredRuntime) -> list[str]:
    """By the present generation's own code, else by this one.

    Another release's generation is removed wholly: what it attached or pinned is unknown to the one that comes.
    """
    present = present_of(store, history)
    calls = list(present.generation.calls) if present.generation else []
    kept = [call["module"] for call in entered.generation.calls] if entered.generation else []
    remove = destination.number == 0
    try:
        remove = remove or (present.exists() and present.format != entered.format)
        if present.exists():
            return present.leave(destination.drain_timeout, remove, kept)
    except OverlayError:
        last_resort.kernels_path()
    return leave({"remove": remove, "kept": kept, "calls": calls})


def present_of(store: Store, history: History) -> StoredRuntime:
    """What made what is on the node now."""
    number = history.attempt.number if history.attempt else history.confirmed
    return StoredRuntime(store.present_runtime(history), history.generations.get(number))


def _control() -> Control | None:
    """None also for an entry that cannot be read: a node that is broken must find its way back all the more."""
    try:
        return read_control(PIN_DIR)
    except OverlayError:
        return None


def was_on(store: Store, history: History) -> bool:
    """Whether the overlay was on before the attempt that waits, or is on now if none waits.

    Once somebody has switched it off meanwhile, it is not for an attempt that is over to switch it on again.
    """
    if history.switched_off:
        return False
    try:
        control = read_control(PIN_DIR)
    except OverlayError:  # of another layout, perhaps
        return history.attempt.was_on if history.attempt else _says_on(present_of(store, history))
    if history.attempt:
        still = history.attempt.left or control is None or control.mode != "off"
        return history.attempt.was_on and still
    return bool(control and control.effective(time.monotonic_ns()) == "on")


def _says_on(runtime: StoredRuntime) -> bool:
    """Whether the generation's own code finds it on."""
    try:
        return not any(item["module"] == "overlay_mode" for item in runtime.rehearse("on"))
    except OverlayError:
        return False


def overdue(attempt: Attempt) -> bool:
    """Whether nobody can confirm the attempt any more: its time or the lease of its mode is over.

    A lease that was there before the attempt began is none of its own.
    """
    now = time.monotonic_ns()
    if attempt.boot != boot_id() or now >= attempt.deadline:
        return True
    control = _control()
    return bool(
        control
        and control.generation == attempt.number
        and control.deadline != attempt.lease
        and 0 < control.deadline <= now
    )


def boot(store: Store) -> None:
    """After a reboot: an attempt that was not confirmed is over, and the confirmed generation is made again."""
    with one_run(path=LOCK):
        history = store.read()
        go_back(store, history, history.attempt is None or history.attempt.was_on)


def go_back(store: Store, history: History, on: bool) -> None:
    """To where the node was before the attempt. Raises :class:`OverlayError`."""
    number = history.attempt.former if history.attempt else history.confirmed
    on = on and not history.switched_off
    restore(store, Destination(number, f"{RETURNED}{time.time_ns():x}", on, history.left))
    attempt = history.attempt.identity if history.attempt else ""
    log.note("went back by itself", store.root, generation=number, attempt=attempt)
    disarm()


def main(arguments: list[str]) -> int:
    """Run the command that the first argument names; what it works on comes on standard input."""
    os.environ["PATH"] = complete_path(os.environ.get("PATH", ""))
    store = Store()
    command, rest = arguments[0], arguments[1:]
    answer: dict[str, Any] = {}
    try:
        if command == "rehearse":
            given = json.load(sys.stdin)
            answer["differences"] = rehearse(calls_of(given), given.get("detailed", False))
        elif command == "make":
            answer["warnings"] = _make(calls_of(json.load(sys.stdin)))
        elif command == "leave":
            answer["warnings"] = leave(json.load(sys.stdin))
        elif command == "restore":
            with one_run(path=LOCK):
                answer["warnings"] = restore(store, Destination(**json.load(sys.stdin)))
                disarm()
        elif command == "watch":
            from .watch import watch

            watch(store, rest[0])
        elif command == "boot":
            boot(store)
    except OverlayError as error:
        answer = {"failed": True, "msg": str(error), "error": error.parts()}
    sys.stdout.write(f"{json.dumps(answer)}\n")
    return 1 if answer.get("failed") else 0
