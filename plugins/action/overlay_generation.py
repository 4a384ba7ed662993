# SPDX-License-Identifier: GPL-3.0-or-later
"""Hand the module the code that makes a node one of its generations again."""

from __future__ import annotations

import base64
from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.ebpf.overlay.plugins.plugin_utils._patience import patiently
from ansible_collections.ebpf.overlay.plugins.plugin_utils._runtime import packed_once


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
            patiently(
                lambda: self._execute_module(
                    module_name="ebpf.overlay.overlay_generation", module_args=arguments, task_vars=task_vars
                )
            )
        )
        # The whole source would otherwise be printed at -vvv.
        for name in ("runtime", "calls"):
            result.get("invocation", {}).get("module_args", {}).pop(name, None)
        return result
