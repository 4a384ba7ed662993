# SPDX-License-Identifier: GPL-3.0-or-later
"""Gather over a new connection, the first of a play that goes on to change the node.

One that an earlier command left open may be dead without anybody knowing, and was made with that command's options.
"""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """``ebpf.overlay.overlay_facts``"""

    _supports_check_mode = True
    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        if hasattr(self._connection, "reset"):
            self._connection.reset()
        result.update(self._execute_module(module_name="ebpf.overlay.overlay_facts", task_vars=task_vars))
        return result
