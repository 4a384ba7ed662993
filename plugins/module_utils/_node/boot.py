# SPDX-License-Identifier: GPL-3.0-or-later
"""After a reboot: the confirmed generation is made again, in one try, or the node keeps the kernel's path."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any, Callable

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import last_resort
from ansible_collections.ebpf.overlay.plugins.module_utils._generations import log, watchdog, way_back
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.model import Generation
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.store import Store, Trouble
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.machine import boot_id

PATIENCE = 30.0  # seconds in which interfaces may come


Rehearse = Callable[[str], dict[str, Any]]
"""The number of a generation -> what ``overlayctl rollback --check`` says of it."""


def boot(rehearse: Rehearse, patience: float = PATIENCE) -> dict[str, Any]:
    """Make the node what it was before the reboot; nothing is done where it is that already.

    Raises :class:`OverlayError` where the node stays on the kernel's path; it says why to ``status`` and the log, too.
    """
    store = Store()
    try:
        return _boot(store, rehearse, patience)
    except Exception as error:  # whatever it is: nobody looks at the console
        reason = str(error) if isinstance(error, OverlayError) else f"{type(error).__name__}: {error}"
        log.note(f"could not make its generation again after a reboot, and keeps the kernel's path: {reason}")
        told = datetime.now(timezone.utc).isoformat(timespec="seconds")
        with contextlib.suppress(OverlayError):
            store.tell(Trouble("boot", 1, [reason], told))
        last_resort.kernels_path()
        advice = "Traffic takes the kernel's path. Repair that, then call overlayctl reconcile, or run site.yml."
        raise OverlayError("make the generation again", "this node, after a reboot", reason, advice) from error


def _boot(store: Store, rehearse: Rehearse, patience: float) -> dict[str, Any]:
    history = store.read()
    if history.attempt and (history.attempt.boot == boot_id() or os.path.exists(watchdog.UNIT_FILE)):
        return {"changed": False, "number": history.attempt.former, "left_to": watchdog.UNIT}
    number = history.attempt.former if history.attempt else history.confirmed
    if not number and not history.attempt:
        return {"changed": False, "number": 0, "missing": []}
    generation = history.generations.get(number)
    missing = _wait_for(_interfaces(generation), patience) if generation else []
    if not history.attempt and not rehearse(str(number))["changed"]:
        return {"changed": False, "number": number, "missing": missing}
    way_back.boot(store)
    left = rehearse(str(number))["differences"] if number else []
    if left:
        raise OverlayError(
            "make the generation again", f"{left[0]['module']} {left[0]['target']}".strip(), left[0]["reason"], ""
        )
    left_out = f", without {', '.join(missing)}" if missing else ""
    log.note(f"made its generation again after a reboot{left_out}", generation=number)
    return {"changed": True, "number": number, "missing": missing}


def _interfaces(generation: Generation) -> set[str]:
    """Those that it attaches programs to."""
    listed: Iterable[Any] = (one for call in generation.calls for one in call["arguments"].get("attachments", ()))
    return {attachment["interface"] for attachment in listed}


def _wait_for(names: set[str], patience: float) -> list[str]:
    """Those that are not there when time is up: workloads that are gone, or come later."""
    until = time.monotonic() + patience
    while True:
        missing = sorted(names - {name for _number, name in socket.if_nameindex()})
        if not missing or time.monotonic() >= until:
            return missing
        time.sleep(0.5)
