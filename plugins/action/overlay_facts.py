# SPDX-License-Identifier: GPL-3.0-or-later
"""Gather over a new connection, the first of a play that goes on to change the node.

One that an earlier command left open may be dead without anybody knowing, and was made with that command's options.
The facts get what the controller knows better than the node: when and from where they were gathered, and how long that
took, from which follows how long a batch takes. The module is told which code the controller would make a generation
with: a node that was made with the same can tell at once whether it is still what it was told to be.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.ebpf.overlay.plugins.plugin_utils._patience import patiently
from ansible_collections.ebpf.overlay.plugins.plugin_utils._runtime import packed_once


class ActionModule(ActionBase):
    """``ebpf.overlay.overlay_facts``"""

    _supports_check_mode = True
    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        if hasattr(self._connection, "reset"):
            self._connection.reset()
        arguments = {**self._task.args, "code": hashlib.sha256(packed_once()).hexdigest()}
        began = time.time()
        result.update(
            patiently(
                lambda: self._execute_module(
                    module_name="ebpf.overlay.overlay_facts", module_args=arguments, task_vars=task_vars
                )
            )
        )
        facts = result.get("ansible_facts", {}).get("overlay")
        if isinstance(facts, dict):
            host = self._task.delegate_to or (task_vars or {}).get("inventory_hostname", "")
            facts["gathered_at"] = int(began)
            facts["dialled"] = str((task_vars or {}).get("ansible_host", host))
            facts["gathering"] = [began, time.time()]
        return result
