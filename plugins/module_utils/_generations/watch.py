# SPDX-License-Identifier: GPL-3.0-or-later
"""The process on the node that watches an attempt, and takes the node back when nobody can confirm it any more.

Nothing ends it but the end of its attempt: a record that cannot be read, a step that fails and an error that nobody
thought of are told (``trouble.json``, the system's log), and it goes on.
"""

from __future__ import annotations

import contextlib
import syslog
import time
from dataclasses import replace
from datetime import datetime, timezone

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.lock import one_run
from ansible_collections.ebpf.overlay.plugins.module_utils._core.records import DamagedRecordError
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import last_resort

from .model import Attempt, History
from .store import Store, Trouble
from .watchdog import START_TIMEOUT, ready
from .way_back import LOCK, go_back, overdue, was_on

POLL = 0.5  # seconds
PAUSE = 5.0  # seconds until the second try to go back; each further one waits longer
LONGEST_PAUSE = 60.0
PATIENCE = 3  # tries after which the filters are taken off as well


def watch(store: Store, identity: str) -> None:
    """Wait until the attempt is confirmed or given up, and go back when it is overdue, however long that takes."""
    ready()
    watcher = _Watcher(store, identity)
    while not watcher.look():
        time.sleep(min(PAUSE * watcher.tries, LONGEST_PAUSE) or POLL)


class _Watcher:
    def __init__(self, store: Store, identity: str) -> None:
        self.store, self.identity = store, identity
        self.began = time.monotonic()
        self.known: Attempt | None = None  # what its record said when it was last read
        self.on: bool | None = None
        self.tries = 0

    def look(self) -> bool:
        """Whether there is nothing left to watch."""
        try:
            attempt = self.store.attempt()
        except DamagedRecordError:
            # What it said before holds; where nobody has read that, nobody can confirm it either.
            over = _over(self.known) if self.known else time.monotonic() - self.began > START_TIMEOUT
            return over and self._go_back()
        except Exception as error:  # a disk that fails for a moment, a record of a later release
            if self.known and _over(self.known):
                self.tries += 1
                self._failed(error)
            return False
        if attempt and attempt.identity == self.identity:
            self.known = attempt
            return _over(attempt) and self._go_back()
        # Whoever armed this process records the attempt after that.
        return self.known is not None or time.monotonic() - self.began > START_TIMEOUT

    def _go_back(self) -> bool:
        self.tries += 1
        try:
            with one_run(path=LOCK):
                history = self._history()
                if history is None:
                    return True
                # Asked before the first try, which switches off.
                self.on = was_on(self.store, history) if self.on is None else self.on
                go_back(self.store, history, self.on)
        except Exception as error:  # whatever it is: the node has no other way back
            self._failed(error)
            return False
        return True

    def _history(self) -> History | None:
        """None where the attempt is over. A record of it whose content is lost says what it said before."""
        try:
            attempt = self.store.attempt()
            if not attempt or attempt.identity != self.identity:
                return None
        except DamagedRecordError:
            attempt = self.known
        return replace(self.store.read(mending=True), attempt=attempt)

    def _failed(self, error: Exception) -> None:
        """The kernel's path is left to the node in any case, and the node is told why."""
        reasons = [_sentence(error)]
        try:
            last_resort.kernels_path()
            if self.tries >= PATIENCE:
                last_resort.detach()
                reasons.append("The overlay's filters were taken off meanwhile.")
        except Exception as worse:
            reasons.append(_sentence(worse))
        told = datetime.now(timezone.utc).isoformat(timespec="seconds")
        with contextlib.suppress(Exception):
            self.store.tell(Trouble(self.identity, self.tries, reasons, told))
        with contextlib.suppress(Exception):
            syslog.syslog(syslog.LOG_ERR, f"ebpf-overlay: the way back fails (try {self.tries}): {' '.join(reasons)}")


def _over(attempt: Attempt) -> bool:
    """What cannot be judged cannot be confirmed either."""
    try:
        return overdue(attempt)
    except Exception:
        return True


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, OverlayError) else f"{type(error).__name__}: {error}"
