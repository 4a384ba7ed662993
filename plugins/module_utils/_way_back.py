# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a node one of its generations again, without the controller: the main program of ``runtime.zip``.

``rehearse`` says what calls would change. ``restore`` makes the calls of a generation, ``watch ATTEMPT`` does so when
nobody confirmed, ``boot`` does so after a reboot. Each prints one line of JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ansible.module_utils import basic

from ansible_collections.ebpf.overlay.plugins.module_utils._control import read_control
from ansible_collections.ebpf.overlay.plugins.module_utils._errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._generation_store import Store
from ansible_collections.ebpf.overlay.plugins.module_utils._generations import Attempt, Call, History, calls_to
from ansible_collections.ebpf.overlay.plugins.module_utils._layout import PIN_DIR
from ansible_collections.ebpf.overlay.plugins.module_utils._lock import one_run
from ansible_collections.ebpf.overlay.plugins.module_utils._plan_mode import Control
from ansible_collections.ebpf.overlay.plugins.module_utils._watchdog import boot_id, disarm, ready

LOCK = "/run/ebpf-overlay-generation.lock"
MODULES = "ansible_collections.ebpf.overlay.plugins.modules"
POLL = 0.5  # seconds
PAUSE = 5.0  # seconds until the second try to go back; each further one waits longer
LONGEST_PAUSE = 60.0


def run_call(call: Call, check: bool) -> dict[str, Any]:
    """Run a module with its arguments in a child, since a module ends its process. Returns the module's result."""
    with contextlib.suppress(Exception):  # the child tells
        importlib.import_module(f"{MODULES}.{call['module']}")  # here, so that further calls need not do it again
    return _result(call, _in_child(lambda: _run_module(call, check)))


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
    """What a module printed last; one that printed nothing has failed."""
    try:
        result: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return {"failed": True, "msg": f"{call['module']} ended without a result: {text[-300:]}"}
    return result


def _run_module(call: Call, check: bool) -> str:
    arguments = {**call["arguments"], "_ansible_check_mode": check, "_ansible_diff": True}
    basic._ANSIBLE_ARGS = json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode("utf-8")
    basic._ANSIBLE_PROFILE = "legacy"
    # A module that respawns starts the process's own module again, and that is none of these.
    vars(sys.modules["__main__"])["_respawned"] = True
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        try:
            importlib.import_module(f"{MODULES}.{call['module']}").main()
        except Exception as error:
            print(json.dumps({"failed": True, "msg": f"{call['module']}: {error!r}"}))
    return printed.getvalue()


def interfaces() -> dict[str, int]:
    """Name -> ifindex of all interfaces here."""
    return {name: ifindex for ifindex, name in socket.if_nameindex()}


def rehearse(calls: Iterable[Call]) -> list[dict[str, Any]]:
    """What these calls would change: ``module``, ``target`` and ``reason`` of each that would, or cannot tell.

    One child for all of them, since nothing is written: a child for each takes longer than its work. Raises
    :class:`OverlayError`.
    """
    text = _in_child(lambda: json.dumps([found for call in calls for found in _difference(call)]))
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


def _difference(call: Call) -> Iterator[dict[str, Any]]:
    result = _result(call, _run_module(call, check=True))
    if result.get("failed") or result.get("changed"):
        arguments = call["arguments"]
        yield {
            "module": call["module"],
            "target": arguments.get("map") or arguments.get("pin_dir") or arguments.get("path") or "",
            "reason": result.get("msg") if result.get("failed") else "differs",
            "diff": result.get("diff"),
        }


def mode_on(number: int) -> Call:
    return {"module": "overlay_mode", "arguments": {"mode": "on", "generation": number}}


def mode_off(drain_timeout: float = 0) -> Call:
    return {"module": "overlay_mode", "arguments": {"mode": "off", "drain_timeout": drain_timeout}}


@dataclass(frozen=True)
class Destination:
    """Where a node goes back to. ``by`` and ``left``: as in the history. ``on``: whether the overlay is on then.

    ``taken_back``: the generation that it leaves because its roll-out failed elsewhere, 0 for none.
    """

    number: int
    by: str
    on: bool = True
    left: int = 0
    drain_timeout: float = 0
    taken_back: int = 0


def restore(store: Store, destination: Destination) -> None:
    """Make the node that generation and confirm it; harmless when run again. Raises :class:`OverlayError`."""
    history, number = store.read(), destination.number
    _make([mode_off(destination.drain_timeout)])
    # A map whose layout differs between two generations starts empty: the mode is off, nothing looks into it.
    _make(_replacing_maps(calls_to(history, number, interfaces())))
    if number == 0:
        store.clear()
        return
    if destination.on:
        _make([mode_on(number)])
    store.give_up()
    store.confirm(number, destination.by, destination.left, destination.taken_back)


def _control() -> Control | None:
    """None also for an entry that cannot be read: a node that is broken must find its way back all the more."""
    try:
        return read_control(PIN_DIR)
    except OverlayError:
        return None


def was_on(history: History) -> bool:
    """Whether the overlay was on before the attempt that waits, or is on now if none waits.

    Once somebody has switched it off meanwhile, it is not for an attempt that is over to switch it on again.
    """
    control = _control()
    if history.attempt:
        return history.attempt.was_on and (control is None or control.mode != "off")
    return bool(control and control.effective(time.monotonic_ns()) == "on")


def _replacing_maps(calls: Iterable[Call]) -> list[Call]:
    return [
        {**call, "arguments": {**call["arguments"], "on_map_change": "replace"}}
        if call["module"] == "bpf_object" and call["arguments"].get("state") != "absent"
        else call
        for call in calls
    ]


def _make(calls: Iterable[Call]) -> None:
    for call in calls:
        result = run_call(call, check=False)
        if result.get("failed"):
            raise OverlayError(
                "restore a generation", call["module"], result.get("msg", "it failed"), "Repair that, then run again."
            )


def overdue(attempt: Attempt) -> bool:
    """Whether nobody can confirm the attempt any more: its time or the lease of its mode is over."""
    now = time.monotonic_ns()
    if attempt.boot != boot_id() or now >= attempt.deadline:
        return True
    control = _control()
    return bool(control and control.generation == attempt.number and 0 < control.deadline <= now)


def watch(store: Store, identity: str) -> None:
    """Wait until the attempt is confirmed or given up, and go back when it is overdue, however long that takes."""
    tries, on = 0, None
    ready()
    while True:
        with contextlib.suppress(OverlayError):
            attempt = store.read().attempt
            if attempt is None or attempt.identity != identity:
                return
            if overdue(attempt):
                tries += 1
                with one_run(path=LOCK):
                    history = store.read()
                    if history.attempt and history.attempt.identity == identity:
                        # Asked before the first try, which switches off.
                        on = was_on(history) if on is None else on
                        go_back(store, history, on)
                        return
        time.sleep(min(PAUSE * tries, LONGEST_PAUSE) or POLL)


def boot(store: Store) -> None:
    """After a reboot: an attempt that was not confirmed is over, and the confirmed generation is made again."""
    with one_run(path=LOCK):
        history = store.read()
        go_back(store, history, history.attempt is None or history.attempt.was_on)


def go_back(store: Store, history: History, on: bool) -> None:
    """To where the node was before the attempt. Raises :class:`OverlayError`."""
    number = history.attempt.former if history.attempt else history.confirmed
    restore(store, Destination(number, f"returned-{time.time_ns():x}", on, history.left))
    disarm()


def main(arguments: list[str]) -> int:
    """Run the command that the first argument names; what it works on comes on standard input."""
    store = Store()
    command, rest = arguments[0], arguments[1:]
    answer: dict[str, Any] = {}
    try:
        if command == "rehearse":
            answer["differences"] = rehearse(json.load(sys.stdin))
        elif command == "restore":
            with one_run(path=LOCK):
                restore(store, Destination(**json.load(sys.stdin)))
                disarm()
        elif command == "watch":
            watch(store, rest[0])
        elif command == "boot":
            boot(store)
    except OverlayError as error:
        answer = {"failed": True, "msg": str(error), "error": error.parts()}
    print(json.dumps(answer))
    return 1 if answer.get("failed") else 0
