# SPDX-License-Identifier: GPL-3.0-or-later
"""The shell that all modules share: how they end, and under which interpreter they run."""

from __future__ import annotations

import os
from typing import Any, Callable

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common import respawn

from .errors import OverlayError
from .libraries import complete_path, importable

# bcc and pyroute2 come from the distribution and are bound to its own interpreter.
INTERPRETERS = ["/usr/bin/python3", "/usr/libexec/platform-python"]


def run(module: AnsibleModule, main: Callable[[], dict[str, Any]]) -> None:
    """Run ``main`` and end the module with its return values, or with the four parts of the error."""
    os.environ["PATH"] = complete_path(os.environ.get("PATH", ""))
    try:
        result = main()
    except OverlayError as error:
        module.fail_json(msg=str(error), error=error.parts())
    result.pop("changes", None)  # people read the diff
    module.exit_json(**result)


def available(library: str) -> bool:
    """Whether this interpreter or one of the distribution's could import ``library``."""
    return importable(library) or bool(respawn.probe_interpreters_for_module(INTERPRETERS, _probe(library)))


def _probe(library: str) -> str:
    return "bcc.libbcc" if library == "bcc" else library


def respawn_where_importable(library: str) -> bool:
    """Respawn the module under the distribution's interpreter when only that one has ``library``.

    Returns whether ``library`` can be imported here; does not return at all when it respawns.
    """
    if importable(library):
        return True
    if not respawn.has_respawned():
        interpreter = respawn.probe_interpreters_for_module(INTERPRETERS, _probe(library))
        if interpreter:
            vars(respawn)["os"] = _RoomyPipe()
            respawn.respawn_module(interpreter)
    return False


class _RoomyPipe:
    """``os`` for ``respawn_module``, which fills a pipe with the module's arguments before it starts who reads them.

    A pipe holds 64 KiB, those of some 600 attachments are more: the module would wait for ever. A file in memory takes
    them all.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def pipe(self) -> tuple[int, int]:
        writer = os.memfd_create("arguments")
        return os.open(f"/proc/self/fd/{writer}", os.O_RDONLY), writer
