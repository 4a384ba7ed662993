# SPDX-License-Identifier: GPL-3.0-or-later
"""Hand the module the code that makes a node one of its generations again."""

from __future__ import annotations

import base64
import fcntl
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.plugins.action import ActionBase

from ansible_collections.ebpf.overlay.plugins.plugin_utils import _runtime


def packed_once() -> bytes:
    """A quarter of a second of work for the first task of a run; all others, each in a process of its own, read it."""
    path = Path(constants.DEFAULT_LOCAL_TMP, "ebpf-overlay-runtime.zip")
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            new = path.with_suffix(".new")
            new.write_bytes(_runtime.pack())
            new.rename(path)  # whole or not at all, on a full disk too
        return path.read_bytes()


class ActionModule(ActionBase):
    """``ebpf.overlay.overlay_generation``"""

    _supports_check_mode = True
    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        if arguments.get("state") in ("begun", "restored"):
            arguments["runtime"] = base64.b64encode(packed_once()).decode("ascii")
        result.update(
            self._execute_module(
                module_name="ebpf.overlay.overlay_generation", module_args=arguments, task_vars=task_vars
            )
        )
        # The whole source would otherwise be printed at -vvv.
        for name in ("runtime", "calls"):
            result.get("invocation", {}).get("module_args", {}).pop(name, None)
        return result
