# SPDX-License-Identifier: GPL-3.0-or-later
"""Generations on disk, below /var/lib/ebpf-overlay.

``generations/N/``   ``manifest.json`` (the calls) and ``runtime.zip`` (the code that makes them)
``confirmed.json``   which generation the node is at
``attempt.json``     the roll-out that nobody has confirmed yet

Every file and folder comes into being by a rename, so a crash at any byte leaves what was readable before.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from ansible_collections.ebpf.overlay.plugins.module_utils._errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._generations import (
    Attempt,
    Generation,
    History,
    digest_of,
    kept,
)
from ansible_collections.ebpf.overlay.plugins.module_utils._layout import STATE_DIR

_Record = TypeVar("_Record")


@dataclass(frozen=True)
class _Confirmed:
    """``confirmed.json``, as in :class:`History`."""

    number: int = 0
    by: str = ""
    left: int = 0


class Store:
    """What is kept in ``root``. Every method that writes raises :class:`OverlayError`."""

    def __init__(self, root: str = STATE_DIR) -> None:
        self.root = root
        self._generations = os.path.join(root, "generations")
        self._gone = f"{root}.gone"

    def read(self) -> History:
        """What a crash left half way, and a generation that its digest does not fit, are as if they were not there."""
        generations = {}
        for name in _list(self._generations):
            manifest = _read_json(os.path.join(self._generations, name, "manifest.json"))
            generation = _made(Generation, {**manifest, "calls": tuple(manifest.get("calls") or ())})
            if name.isdigit() and generation and generation.digest == digest_of(generation.calls):
                generations[int(name)] = generation
        confirmed = _made(_Confirmed, _read_json(os.path.join(self.root, "confirmed.json"))) or _Confirmed()
        attempt = _made(Attempt, _read_json(os.path.join(self.root, "attempt.json")))
        return History(generations, confirmed.number, confirmed.by, attempt, confirmed.left)

    def runtime(self, number: int) -> str:
        return os.path.join(self._generations, str(number), "runtime.zip")

    def begin(self, attempt: Attempt, generation: Generation | None, runtime: bytes) -> None:
        """Record the attempt. ``generation``: None for one that is on the node already."""
        with _told("record the attempt", self.root):
            shutil.rmtree(self._gone, ignore_errors=True)
            os.makedirs(self._generations, mode=0o700, exist_ok=True)
            self._discard_attempt(self.read(), attempt.number)
            if generation is None:
                _write(self.runtime(attempt.number), runtime)
            else:
                self._add(generation, runtime)
            _write_json(os.path.join(self.root, "attempt.json"), asdict(attempt))

    def confirm(self, number: int, by: str, left: int = 0, taken_back: int = 0) -> None:
        """The node is at ``number`` now; what need not be kept goes. ``left``: as in :class:`History`, ``taken_back``
        as in :func:`_generations.kept`."""
        with _told("confirm the generation", self.root):
            _write_json(os.path.join(self.root, "confirmed.json"), asdict(_Confirmed(number, by, left)))
            _remove(os.path.join(self.root, "attempt.json"))
            self._prune(taken_back)

    def give_up(self) -> None:
        """Forget the attempt."""
        with _told("forget the attempt", self.root):
            self._discard_attempt(self.read(), None)
            _remove(os.path.join(self.root, "attempt.json"))

    def clear(self) -> None:
        """Generation 0: nothing is kept. At once by a rename: half of a history would tell something else."""
        with _told("remove the history", self.root), contextlib.suppress(FileNotFoundError):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self._gone)
            os.rename(self.root, self._gone)
            shutil.rmtree(self._gone)

    def exists(self) -> bool:
        """Whether anything is there, or was left by a crash."""
        return os.path.isdir(self.root) or os.path.isdir(self._gone)

    def _add(self, generation: Generation, runtime: bytes) -> None:
        folder = os.path.join(self._generations, str(generation.number))
        new = f"{folder}.new"
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        os.mkdir(new, 0o700)
        _write(os.path.join(new, "runtime.zip"), runtime)
        _write_json(os.path.join(new, "manifest.json"), asdict(generation))
        os.rename(new, folder)
        _sync_folder(self._generations)

    def _discard_attempt(self, history: History, number: int | None) -> None:
        """Remove the data of an attempt that was given up, unless it is that of the generation ``number``."""
        attempt = history.attempt
        if attempt and attempt.number not in (history.confirmed, attempt.former, number):
            shutil.rmtree(os.path.join(self._generations, str(attempt.number)), ignore_errors=True)

    def _prune(self, taken_back: int) -> None:
        wanted = {str(number) for number in kept(self.read(), taken_back)}
        for name in _list(self._generations):
            if name not in wanted:
                shutil.rmtree(os.path.join(self._generations, name), ignore_errors=True)


@contextlib.contextmanager
def _told(doing: str, target: str) -> Any:
    try:
        yield
    except OSError as error:
        raise OverlayError(doing, error.filename or target, error, "Look at the disk's space and rights.") from error


def _list(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _read_json(path: str) -> dict[str, Any]:
    """Empty for a file that is not there or holds something else."""
    try:
        with open(path, encoding="utf-8") as stream:
            found = json.load(stream)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _made(kind: type[_Record], members: dict[str, Any]) -> _Record | None:
    """None unless the members are those of the kind."""
    try:
        return kind(**members)
    except TypeError:
        return None


def _write_json(path: str, value: Any) -> None:
    _write(path, json.dumps(value, sort_keys=True).encode("utf-8"))


def _write(path: str, content: bytes) -> None:
    temporary = f"{path}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(temporary, path)
    _sync_folder(os.path.dirname(path))


def _sync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    _sync_folder(os.path.dirname(path))
