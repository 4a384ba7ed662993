# SPDX-License-Identifier: GPL-3.0-or-later
"""What the node says of its generations, and what differs from the confirmed one."""

from __future__ import annotations

import time
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.control import read_control
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.drift import find_drift
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.layout import BPFFS, PIN_DIR
from ansible_collections.ebpf.overlay.plugins.module_utils._hooks.inspect import read_interfaces
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.machine import interface_table

from .model import History, calls_to
from .store import Store
from .stored_runtime import StoredRuntime


def hooks() -> list[dict[str, Any]]:
    """What is on the interfaces, whoever owns it. Raises :class:`OverlayError`."""
    try:
        return read_interfaces(interface_table(), BPFFS)
    except OSError as error:
        raise OverlayError(
            "read the traffic-control hooks", "all interfaces", error, "Run as root (become: true)."
        ) from error


def read(compare: bool) -> dict[str, Any]:
    """The return values of the module."""
    store = Store()
    history = store.read()
    differences: list[dict[str, Any]] = []
    drift: list[dict[str, Any]] = []
    if compare and history.confirmed in history.generations:
        generation = history.generations[history.confirmed]
        stored = StoredRuntime(store.runtime(history.confirmed), generation)
        differences = list(stored.rehearse("off" if history.switched_off else "on", detailed=True))
        calls = calls_to(history, history.confirmed, interface_table())
        wanted = [
            {**{key: arguments[key] for key in ("priority",) if key in arguments}, **item}
            for arguments in (call["arguments"] for call in calls)
            for item in arguments.get("attachments", ())
        ]
        drift = find_drift(differences, wanted, hooks())
        differences = [
            {name: difference[name] for name in difference if name != "changes"} for difference in differences
        ]
    elif compare and history.confirmed:
        lost = history.damaged.get(history.confirmed, "")
        differences = [
            {
                "module": "overlay_generation",
                "target": f"record of generation {history.confirmed}",
                "reason": "it is lost or damaged, so the node cannot be compared with it; site.yml makes a new one"
                + (f" ({lost})" if lost else ""),
                "diff": None,
            }
        ]
        drift = find_drift(differences, (), ())
    return {"changed": False, **summary(history), **told(store, history), "differences": differences, "drift": drift}


def told(store: Store, history: History) -> dict[str, Any]:
    """What a report must know to be true: read from the node, whatever a run believes."""
    trouble = store.trouble()
    return {
        "mode": mode(),
        "switched_off": history.switched_off,
        "attempt": history.attempt.identity if history.attempt else "",
        "by": history.by,
        "trouble": trouble.reasons if trouble else [],
    }


def mode() -> str:
    """As the datapath acts on it."""
    try:
        control = read_control(PIN_DIR)
    except OverlayError:
        return "unknown"
    return control.effective(time.monotonic_ns()) if control else "absent"


def summary(history: History) -> dict[str, Any]:
    return {
        "number": history.confirmed,
        "digest": history.digest,
        "pending": history.attempt.number if history.attempt else 0,
        "generations": [
            {name: getattr(generation, name) for name in ("number", "former", "digest", "when")}
            for _number, generation in sorted(history.generations.items())
        ],
    }
