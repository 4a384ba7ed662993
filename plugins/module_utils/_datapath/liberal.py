# SPDX-License-Identifier: GPL-3.0-or-later
"""conntrack accepts connections whose packets it did not see, or is as it was before, as a resource."""

from __future__ import annotations

from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.lock import one_run
from ansible_collections.ebpf.overlay.plugins.module_utils._core.plan import Plan
from ansible_collections.ebpf.overlay.plugins.module_utils._core.resource import STATE, Params, Warn, converge, told

from . import sysctls
from .conntrack import FlagEntries, Observed, RemoveFile, held_warning, plan_absent, plan_present

# Also what calls on disk are checked by, of earlier releases too: nothing is taken away or made stricter.
SPEC: dict[str, Any] = {
    "state": STATE,
    "manage": {"type": "bool", "default": True},
}


class Liberal:
    """``held``: why the sysctls stay although their removal was wanted. ``flagged``: live entries made liberal."""

    def __init__(self, params: Params) -> None:
        self._params = params
        self.held = ""
        self.flagged = 0

    def observe(self) -> Observed:
        return sysctls.observe()

    def plan(self, seen: Observed) -> Plan:
        if self._params["state"] == "absent":
            return plan_absent(seen, self.held)
        return plan_present(seen, self._params["manage"])

    def apply(self, operations: tuple[Any, ...]) -> None:
        for operation in operations:
            if self.held and not isinstance(operation, RemoveFile):
                continue
            try:
                self.flagged += sysctls.apply(operation)
            except OverlayError as error:
                if not isinstance(operation, FlagEntries):
                    raise
                self.held = str(error)


def ensure(params: Params, check: bool, warn: Warn) -> dict[str, Any]:
    wanted = Liberal(params)
    with one_run():
        planned = converge(wanted, check, warn)
        result = told(planned)
        if wanted.held:
            seen = wanted.observe()
            left = wanted.plan(seen)
            warn(held_warning(seen, wanted.held))
            changed = any(isinstance(operation, RemoveFile) for operation in planned.operations)
            diff = {"before": planned.before, "after": left.before}
            result = {**left.result, "changed": changed, "diff": diff}
    return {**result, "flagged": wanted.flagged, "held": wanted.held}
