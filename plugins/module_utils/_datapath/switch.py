# SPDX-License-Identifier: GPL-3.0-or-later
"""The datapath's mode, as a resource: one entry of one map."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.lock import one_run
from ansible_collections.ebpf.overlay.plugins.module_utils._core.plan import Plan
from ansible_collections.ebpf.overlay.plugins.module_utils._core.resource import Params, Warn, converge, told

from .conntrack import refusal
from .control import jiffies_per_second, other_layout, read_control, write_control, write_zeros
from .layout import PIN_DIR
from .mode import Observed, SetControl, SetUnpinned, SetZeros, Wanted, plan_mode
from .sysctls import read_values

# Also what calls on disk are checked by, of earlier releases too: nothing is taken away or made stricter.
SPEC: dict[str, Any] = {
    "mode": {"type": "str", "choices": ["on", "confirm", "drain", "off"], "required": True},
    "lease": {"type": "float", "default": 0},
    "force": {"type": "bool", "default": False},
    "generation": {"type": "int"},
    "pin_dir": {"type": "path", "default": PIN_DIR},
    "lock_timeout": {"type": "int", "default": 30},
}


def _unpinned() -> Any:
    # Late, because the one node in a thousand that needs it should not cost the others.
    from . import unpinned

    return unpinned


class Switch:
    def __init__(self, params: Params) -> None:
        self._pin_dir = params["pin_dir"]
        self._wanted = Wanted(*(params[name] for name in ("mode", "lease", "generation")))
        if self._wanted.lease < 0:
            raise OverlayError(
                "set the mode",
                self._pin_dir,
                f"a lease of {self._wanted.lease} s is none",
                "Give seconds, 0 or more.",
            )

    def observe(self) -> Observed:
        now, second = time.monotonic_ns(), jiffies_per_second()
        other = other_layout(self._pin_dir)
        if other is not None:
            return Observed(None, now, second, other_layout=other)
        control = read_control(self._pin_dir)
        unpinned = _unpinned().controls() if control is None and self._pin_dir == PIN_DIR else {}
        return Observed(control, now, second, unpinned, refusal(read_values()))

    def plan(self, seen: Observed) -> Plan:
        return plan_mode(self._wanted, seen, self._pin_dir)

    def apply(self, operations: tuple[Any, ...]) -> None:
        for operation in operations:
            if isinstance(operation, SetControl):
                write_control(self._pin_dir, operation)
            elif isinstance(operation, SetZeros):
                write_zeros(self._pin_dir)
            elif isinstance(operation, SetUnpinned):
                _unpinned().write(operation)


def ensure(params: Params, check: bool, warn: Warn) -> dict[str, Any]:
    # Whoever forces it off does not wait for a run that hangs: it is one write, which nothing can tear.
    forced = params["mode"] == "off" and params["force"]
    wanted = Switch(params)
    with contextlib.nullcontext() if forced else one_run(params["lock_timeout"]):
        return told(converge(wanted, check, warn))
