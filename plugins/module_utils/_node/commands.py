# SPDX-License-Identifier: GPL-3.0-or-later
"""What each command of overlayctl does: a dictionary of what it found or did, and the exit status."""

from __future__ import annotations

import base64
import contextlib
import time
from argparse import Namespace
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any, Callable

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.lock import one_run
from ansible_collections.ebpf.overlay.plugins.module_utils._core.resource import Warn, with_defaults
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import last_resort, switch
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.control import jiffies_per_second, known_control
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.drift import AHEAD
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.layout import PIN_DIR
from ansible_collections.ebpf.overlay.plugins.module_utils._generations import command as installed
from ansible_collections.ebpf.overlay.plugins.module_utils._generations import log, report
from ansible_collections.ebpf.overlay.plugins.module_utils._generations import resource as generations
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.model import History
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.store import Store
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.way_back import LOCK

from . import boot, live
from . import explain as _explain
from .flow_states import select, told

DONE, FAILED, NO = 0, 1, 3
NANOSECONDS = 1_000_000_000
Answer = tuple[dict[str, Any], int]


# --- look -------------------------------------------------------------------------------------------------------------


def status(given: Namespace, _warn: Warn) -> Answer:
    """NO where the node is not what its confirmed generation says, or that cannot be told."""
    found: dict[str, Any] = {"mode": report.mode(), "lease": _lease(), "trouble": []}
    store = Store()
    try:
        history = store.read()
        compare = given.compare and history.attempt is None
        found.update(report.read(compare), compared=compare and bool(history.confirmed))
        found.pop("changed")
    except OverlayError as error:
        found.update(trouble=[str(error)], switched_off=store.switched_off(), compared=False)
    try:
        found["counters"] = {label: value["packets"] for label, value in live.counters().items()}
    except OverlayError as error:
        found["counters"] = {}
        found["trouble"].append(str(error))
    differs = any(item["kind"] != AHEAD for item in found.get("drift", ()))
    return found, NO if found["trouble"] or differs else DONE


def _lease() -> float | None:
    """Seconds until the mode ends by itself; None where it does not."""
    with contextlib.suppress(OverlayError):
        control = known_control(PIN_DIR)
        if control and control.deadline:
            return round(max(control.deadline - time.monotonic_ns(), 0) / NANOSECONDS, 1)
    return None


def explain(given: Namespace, _warn: Warn) -> Answer:
    """NO where a new connection would take the kernel's path."""
    client, client_port = _explain.parse_end(given.client)
    server, port = _explain.parse_end(given.address)
    if port is None and given.port is None:
        raise OverlayError("explain a connection", given.address, "its port is missing", "Give it as third argument.")
    found = _explain.explain(client, server, int(given.port or port or 0), client_port)
    return found, DONE if found["eligible"] else NO


def follow(given: Namespace, warn: Warn) -> Iterator[Answer]:
    """:func:`explain` once a second."""
    for number in range(max(given.follow, 1)):
        time.sleep(1 if number else 0)
        yield explain(given, warn)


def flows(given: Namespace, _warn: Warn) -> Answer:
    now, second = live.jiffies(), jiffies_per_second()
    found = live.flows(select(given.address, given.port, given.state))
    shown = found[: given.limit or None]
    return {"flows": [told(flow, now, second) for _raw, flow in shown], "matching": len(found)}, DONE


def show_log(given: Namespace, _warn: Warn) -> Answer:
    return {"entries": log.read(given.lines)}, DONE


def top(given: Namespace, _warn: Warn) -> Iterator[Answer]:
    """Packets and bytes a second by direction and reason, again and again."""
    before, since, number = live.counters(), time.monotonic(), 0
    while not given.count or number < given.count:
        time.sleep(given.interval)
        number += 1
        after, now = live.counters(), time.monotonic()
        rates = {
            label: {unit: round((value[unit] - before.get(label, {}).get(unit, 0)) / (now - since)) for unit in value}
            for label, value in after.items()
        }
        yield (
            {"mode": report.mode(), "rates": {label: rate for label, rate in rates.items() if any(rate.values())}},
            DONE,
        )
        before, since = after, now


# --- single flows -----------------------------------------------------------------------------------------------------


def suspend(given: Namespace, warn: Warn) -> Answer:
    selection = select(given.address, given.port)
    done = live.suspend(selection, given.seconds, warn)
    if done["flows"]:
        log.note(f"suspended {len(done['flows'])} flows for {given.seconds:g} s: {selection}")
    return done, DONE


def cut(given: Namespace, warn: Warn) -> Answer:
    selection = select(given.address, given.port)
    done = live.cut(selection, not given.yes, warn)
    if done["flows"] and given.yes:
        log.note(f"cut {len(done['flows'])} flows: {selection}")
    return {**done, "done": given.yes}, DONE if given.yes else NO


# --- the mode ---------------------------------------------------------------------------------------------------------


def switch_off(_given: Namespace, warn: Warn) -> Answer:
    """Whatever is broken: what cannot be done the usual way is done by the last resort."""
    found: dict[str, Any] = {"before": "unknown", "by": "its control entry", "trouble": []}
    try:
        found["before"] = report.mode()
        switch.ensure(with_defaults(switch.SPEC, {"mode": "off", "force": True}), False, warn)
    except Exception as error:
        found["trouble"].append(_sentence(error))
        found["by"] = "the last resort"
        last_resort.kernels_path()
    store = Store()
    try:
        if store.exists() and not store.switched_off():
            store.switch_off(datetime.now(timezone.utc).isoformat(timespec="seconds"))
    except Exception as error:
        found["trouble"].append(f"{_sentence(error)} The next run of site.yml will switch the node on.")
    log.note("switched the overlay off")
    recorded = store.switched_off()
    return {**found, "mode": "off", "switched_off": recorded}, DONE if recorded or not store.exists() else FAILED


def drain(_given: Namespace, warn: Warn) -> Answer:
    with one_run(path=LOCK):
        _history("drain the overlay")
        done = switch.ensure(with_defaults(switch.SPEC, {"mode": "drain"}), False, warn)
    if done["changed"]:
        log.note("set the mode drain")
    return _told_mode(done), DONE


def switch_on(_given: Namespace, warn: Warn) -> Answer:
    """As ``enable.yml``, without its probe: the mode first, then the mark."""
    with one_run(path=LOCK):
        store, history = _history("switch the overlay on")
        if not history.confirmed:
            raise OverlayError(
                "switch the overlay on", "this node", "it has no confirmed generation", "Run site.yml first."
            )
        wanted = {"mode": "on", "generation": history.confirmed}
        done = switch.ensure(with_defaults(switch.SPEC, wanted), False, warn)
        if store.switched_off():
            store.switch_on()
            done["changed"] = True
    if done["changed"]:
        log.note("switched the overlay on", generation=history.confirmed)
    return {**_told_mode(done), "switched_off": False}, DONE


def _told_mode(done: dict[str, Any]) -> dict[str, Any]:
    return {"changed": done["changed"], "mode": done["mode"], "diff": done["diff"]}


def _history(doing: str) -> tuple[Store, History]:
    """Raises :class:`OverlayError` where an attempt waits: whoever began it confirms it, or the node goes back."""
    store = Store()
    history = store.read()
    if history.attempt:
        raise OverlayError(
            doing, "this node", f"the roll-out of generation {history.attempt.number} waits for its confirmation",
            "Wait until it is confirmed or the node has gone back; overlayctl off works at any time.",
        )  # fmt: skip
    return store, history


# --- generations ------------------------------------------------------------------------------------------------------


def rollback(code: Callable[[], str], given: Namespace, warn: Warn) -> Answer:
    """NO where a dry run finds something to do."""
    _history("go back")
    return _restore(code, given.generation, given.check, warn)


def reconcile(code: Callable[[], str], given: Namespace, warn: Warn) -> Answer:
    """NO where a dry run finds something to do."""
    _store, history = _history("make the node what its generation says")
    if not history.confirmed:
        return {"changed": False, "number": 0, "differences": [], "check": given.check}, DONE
    return _restore(code, str(history.confirmed), given.check, warn)


def restart(code: Callable[[], str], _given: Namespace, warn: Warn) -> Answer:
    return boot.boot(lambda number: _restore(code, number, True, warn)[0]), DONE


def _restore(code: Callable[[], str], to: str, check: bool, warn: Warn) -> Answer:
    """``code``: where the program lies that this one is."""
    runtime = base64.b64encode(installed.content(code())).decode("ascii")
    params = with_defaults(generations.SPEC, {"state": "restored", "to": to, "runtime": runtime})
    done = generations.ensure(params, check, warn)
    names = ("changed", "number", "former", "differences", "switched_off", "diff")
    return {**{name: done[name] for name in names}, "check": check}, NO if check and done["changed"] else DONE


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, OverlayError) else f"{type(error).__name__}: {error}"
