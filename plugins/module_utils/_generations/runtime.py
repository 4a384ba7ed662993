# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the code that makes a node one of its generations, before it is kept on the node."""

from __future__ import annotations

import base64
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError

from . import way_back
from .model import History
from .store import Store
from .stored_runtime import StoredRuntime, run_program
from .watchdog import python


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
        """In memory, since the way back must be open where disks are full. A child opens it by this path, too."""
        with open(os.memfd_create("ebpf-overlay.zip"), "wb") as stream:
            stream.write(self.content)
            stream.flush()
            yield f"/proc/{os.getpid()}/fd/{stream.fileno()}"

    def call(self, command: str, given: Any) -> dict[str, Any]:
        """Raises :class:`OverlayError`, that of the program where it told one."""
        with self._file() as path:
            return run_program([python(), path, command], command, given)

    def rehearse(self, calls: Any) -> tuple[dict[str, Any], ...]:
        """In this process where its interpreter is the one that the modules need: a second one takes longer to start
        than all the calls together."""
        if not _same_interpreter():
            given: dict[str, Any] = {"calls": list(calls), "interfaces": {}, "mode": None}
            return tuple(self.call("rehearse", given)["differences"])
        with self._file() as path:
            return _rehearse_here(path, calls)


def _same_interpreter() -> bool:
    """That of a virtual environment is the same file and lacks the distribution's libraries."""
    return os.path.realpath(sys.executable) == os.path.realpath(python()) and sys.prefix == sys.base_prefix


def _rehearse_here(path: str, calls: Any) -> tuple[dict[str, Any], ...]:
    """``path``: where the modules are that this one did not bring along; of the same code as this one."""
    for name, package in list(sys.modules.items()):
        if name.partition(".")[0] in ("ansible", "ansible_collections") and hasattr(package, "__path__"):
            package.__path__.append(f"{path}/{name.replace('.', '/')}")
    return tuple(way_back.rehearse(calls))


def is_as_confirmed(store: Store, history: History, code: str) -> bool:
    """Whether the node is what its confirmed generation says, made by ``code`` (a SHA-256), and no attempt waits.

    Reads only. What cannot be told is False: whoever begins a generation looks again, and tells why.
    """
    record = history.generations.get(history.confirmed)
    if record is None or history.attempt or history.damaged:
        return False
    stored = StoredRuntime(store.runtime(record.number), record)
    mode = way_back.mode_off() if history.switched_off else way_back.mode_on(record.number)
    try:
        if stored.digest() != code:
            return False
        if not _same_interpreter():
            return not stored.rehearse("off" if history.switched_off else "on")
        return not _rehearse_here(stored.path, [*record.calls, mode])
    except OverlayError:
        return False
