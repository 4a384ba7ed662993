# SPDX-License-Identifier: GPL-3.0-or-later
"""The code that is kept with a generation. It leaves that generation and makes it, since no other knows its maps."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import zipfile
from collections.abc import Sequence
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError

from .model import FORMAT, Generation
from .watchdog import python

FORMAT_FILE = "format"  # in the archive: what the program can be asked

# The program of release 1.0.0 can neither leave nor make a generation alone, but has the functions for it.
_FIRST_RELEASE = """\
import json, sys
sys.path.insert(0, sys.argv[1])
from ansible_collections.ebpf.overlay.plugins.module_utils import _generations, _way_back
from ansible_collections.ebpf.overlay.plugins.module_utils._errors import OverlayError
command, given, answer = sys.argv[2], json.load(sys.stdin), {}
modes = {"on": [_way_back.mode_on(given.get("number"))], "off": [_way_back.mode_off()]}
try:
    calls = _generations.adapt(given["calls"], given["interfaces"], _way_back.interfaces())
    calls = list(_way_back._replacing_maps(calls))
    if command == "rehearse":
        answer["differences"] = list(_way_back.rehearse([*calls, *modes.get(given["mode"], [])]))
    elif command == "make":
        _way_back._make([*calls, *modes.get(given["mode"], [])])
    elif command == "leave":
        _way_back._make([_way_back.mode_off(given["drain_timeout"])])
        _way_back._make(_generations.REMOVAL if given["remove"] else [])
except OverlayError as error:
    answer = {"failed": True, "msg": str(error), "error": error.parts()}
print(json.dumps(answer))
"""


def run_program(command: Sequence[str], doing: str, given: Any) -> dict[str, Any]:
    """What a runtime answers. Raises :class:`OverlayError`, that of the program where it told one."""
    # pylint: disable-next=ansible-bad-function
    done = subprocess.run(command, input=json.dumps(given), text=True, capture_output=True, check=False, cwd="/")
    try:
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        answer = {"failed": True}
    if answer.get("failed"):
        parts = answer.get("error") or {
            "doing": doing,
            "target": "a generation",
            "reason": (done.stderr or done.stdout).strip()[-500:] or f"it ended with {done.returncode}",
            "advice": "Look at the node.",
        }
        raise OverlayError(*(parts[name] for name in ("doing", "target", "reason", "advice")))
    return answer


class StoredRuntime:
    """The ``runtime.zip`` at ``path``. Its calls are those of ``generation``, None for a node without a record."""

    def __init__(self, path: str, generation: Generation | None) -> None:
        self.path, self.generation = path, generation

    def exists(self) -> bool:
        return os.path.exists(self.path)

    def holds(self, content: bytes) -> bool:
        """Whether it is the very same code."""
        try:
            with open(self.path, "rb") as stream:
                return stream.read() == content
        except OSError:
            return False

    def digest(self) -> str:
        """SHA-256 of the code; empty where it is not there."""
        try:
            with open(self.path, "rb") as stream:
                return hashlib.sha256(stream.read()).hexdigest()
        except OSError:
            return ""

    def check(self) -> None:
        """Raises :class:`OverlayError` where it is not there or damaged."""
        __ = self.format

    @property
    def format(self) -> int:
        """What the program can be asked; 1 for release 1.0.0. Raises :class:`OverlayError`, also for one that this
        code cannot ask."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                found = int(archive.read(FORMAT_FILE)) if FORMAT_FILE in archive.namelist() else 1
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise OverlayError(
                "read the code that is kept with a generation", self.path, error,
                "Set overlay_rollback_to to 0 to take the overlay off, then run site.yml.",
            ) from error  # fmt: skip
        if found > FORMAT:
            raise OverlayError(
                "read the code that is kept with a generation", self.path,
                f"its format is {found}, and this release knows those up to {FORMAT}",
                "Use the release of the collection that wrote it.",
            )  # fmt: skip
        return found

    def leave(self, drain_timeout: float, remove: bool, kept: Sequence[str] = ()) -> list[str]:
        """Switch off, and undo what calls leave. ``remove``: everything. ``kept``: see :func:`.model.undo`.

        ``drain_timeout``: seconds for connections of release 1.0.0 to end. Returns what the modules warned of.
        """
        return list(self._ask("leave", drain_timeout=drain_timeout, remove=remove, kept=list(kept)).get("warnings", ()))

    def make(self, mode: str | None) -> list[str]:
        """Make the calls, on the interfaces that the node has now. ``mode``: which to set after that, if any.

        Returns what the modules warned of.
        """
        return list(self._ask("make", mode=mode).get("warnings", ()))

    def rehearse(self, mode: str | None, detailed: bool = False) -> tuple[dict[str, Any], ...]:
        """What :meth:`make` would change. ``detailed``: object by object, where that code can tell."""
        return tuple(self._ask("rehearse", mode=mode, detailed=detailed)["differences"])

    def _ask(self, command: str, **given: Any) -> dict[str, Any]:
        program = [python(), self.path] if self.format > 1 else [python(), "-c", _FIRST_RELEASE, self.path]
        record = self.generation
        known = {
            "calls": list(record.calls) if record else [],
            "interfaces": dict(record.interfaces) if record else {},
            "number": record.number if record else 0,
        }
        return run_program([*program, command], f"{command} a generation with its own code", {**known, **given})
