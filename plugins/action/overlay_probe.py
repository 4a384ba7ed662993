# SPDX-License-Identifier: GPL-3.0-or-later
"""Probe over connections that a busy bastion may refuse: all nodes of a batch open a new one at once."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.ebpf.overlay.plugins.plugin_utils._patience import patiently


class ActionModule(ActionBase):
    """``ebpf.overlay.overlay_probe``"""

    _supports_check_mode = True
    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        result.update(
            patiently(lambda: self._execute_module(module_name="ebpf.overlay.overlay_probe", task_vars=task_vars))
        )
        return result
