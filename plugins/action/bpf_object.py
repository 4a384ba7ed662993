# SPDX-License-Identifier: GPL-3.0-or-later
"""Find the C file on the controller and take it, with every file that it includes by quotes, to the target."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._objects import source as _source


class ActionModule(ActionBase):
    """``ebpf.overlay.bpf_object``"""

    _supports_check_mode = True
    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        source = arguments.get("src")
        present = arguments.get("state", "present") == "present"
        if source and present and not boolean(arguments.get("remote_src", False), strict=False):
            bundle = self._bundle(str(source))
            if bundle is not None:
                arguments["bundle"] = bundle
        result.update(
            self._execute_module(module_name="ebpf.overlay.bpf_object", module_args=arguments, task_vars=task_vars)
        )
        # The whole source would otherwise be printed at -vvv.
        result.get("invocation", {}).get("module_args", {}).pop("bundle", None)
        return result

    def _bundle(self, source: str) -> str | None:
        """The packed source; None where the controller has no such file (it may be one of the target)."""
        path = self._find(source)
        if path is None:
            return None
        try:
            return _source.pack(_source.read_bundle(path))
        except OverlayError as error:
            raise AnsibleActionFail(str(error), result={"error": error.parts()}) from error

    def _find(self, source: str) -> str | None:
        for name in (source, f"bpf/{source}"):
            try:
                return str(self._find_needle("files", name))
            except AnsibleError:
                continue
        return None
