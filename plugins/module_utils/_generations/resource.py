# SPDX-License-Identifier: GPL-3.0-or-later
"""An attempt at a generation, its confirmation, and the way back, as resources."""

from __future__ import annotations

import contextlib
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.lock import one_run
from ansible_collections.ebpf.overlay.plugins.module_utils._core.resource import Params, Warn, converge, told

from . import log
from .runtime import Runtime
from .states import Begun, Confirmed, Restored, SwitchedOff
from .store import Store
from .way_back import LOCK

SPEC: dict[str, Any] = {
    "state": {"type": "str", "choices": ["begun", "confirmed", "restored", "switched_off"], "required": True},
    "calls": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "module": {"type": "str", "required": True},
            "arguments": {"type": "dict", "required": True},
        },
    },
    "timeout": {"type": "float", "default": 300},
    "gathered_from": {"type": "dict"},
    "attempt": {"type": "str"},
    "number": {"type": "int"},
    "to": {"type": "str", "default": "previous"},
    "drain_timeout": {"type": "float", "default": 10},
    "switched_on": {"type": "bool", "default": True},
    "enable": {"type": "bool", "default": False},
    # Kept out of the node's log, where it would be a hundred kilobytes of noise.
    "runtime": {"type": "str", "no_log": True},
}
_DONE = {
    "begun": "began a generation",
    "confirmed": "confirmed a generation",
    "restored": "restored a generation",
    "switched_off": "switched the overlay off",
}
REQUIRED_IF = [("state", "begun", ("calls",)), ("state", "confirmed", ("attempt", "number"))]


def ensure(params: Params, check: bool, warn: Warn) -> dict[str, Any]:
    store = Store()
    wanted: Any
    if params["state"] in ("confirmed", "switched_off"):
        wanted = (Confirmed if params["state"] == "confirmed" else SwitchedOff)(params, store)
    else:
        kind = Begun if params["state"] == "begun" else Restored
        wanted = kind(params, Runtime(params["runtime"]), store)
    # Held from the first look on, since the node may be about to go back. Whoever restores takes it in a child.
    locked = params["state"] in ("begun", "confirmed")
    lock = one_run(path=LOCK) if locked else contextlib.nullcontext()
    with lock:
        planned = converge(wanted, check, warn)
    for warning in getattr(wanted, "warnings", ()):
        warn(warning)
    result = told(planned)
    if result["changed"] and not check:
        log.note(_DONE[params["state"]], store.root, generation=result["number"], attempt=result["attempt"])
    return result
