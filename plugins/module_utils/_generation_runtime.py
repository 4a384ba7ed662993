# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the code that makes a node one of its generations, before it is kept on the node."""

from __future__ import annotations

import base64
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils import _way_back
from ansible_collections.ebpf.overlay.plugins.module_utils._errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._stored_runtime import run_program
from ansible_collections.ebpf.overlay.plugins.module_utils._watchdog import python


class Runtime:
    """The code that makes calls, as a file for as long as the module runs."""

    def __init__(self, packed: str | None) -> None:
        if not packed:
            raise OverlayError(
                "start", "runtime", "it is not given", "Call this module from a playbook: its action plugin packs it."
            )
        self.content = base64.b64decode(packed)

    @contextlib.contextmanager
    def _file(self) -> Iterator[str]:
        with tempfile.NamedTemporaryFile(prefix="ebpf-overlay-", suffix=".zip") as stream:
            stream.write(self.content)
            stream.flush()
            yield stream.name

    def call(self, command: str, given: Any) -> dict[str, Any]:
        """Raises :class:`OverlayError`, that of the program where it told one."""
        with self._file() as path:
            return run_program([python(), path, command], command, given)

    def rehearse(self, calls: Any) -> tuple[dict[str, Any], ...]:
        """In this process where its interpreter is the one that the modules need: a second one takes longer to start
        than all the calls together."""
        if os.path.realpath(sys.executable) != os.path.realpath(python()):
            given: dict[str, Any] = {"calls": list(calls), "interfaces": {}, "mode": None}
            return tuple(self.call("rehearse", given)["differences"])
        with self._file() as path:
            for name, package in list(sys.modules.items()):
                if name.partition(".")[0] in ("ansible", "ansible_collections") and hasattr(package, "__path__"):
                    package.__path__.append(f"{path}/{name.replace('.', '/')}")
            return tuple(_way_back.rehearse(calls))
