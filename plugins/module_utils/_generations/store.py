# SPDX-License-Identifier: GPL-3.0-or-later
"""Generations on disk, below /var/lib/ebpf-overlay.

``generations/N/``       ``manifest.json`` (the calls) and ``runtime.zip`` (the code that makes them)
``attempts/IDENTITY/``   the same for a roll-out that nobody has confirmed yet, without a manifest for a generation that
                         the node has already
``attempt.json``         which roll-out that is
``confirmed.json``       which generation the node is at
``switched-off.json``    there while the node stays off whatever is rolled out
``trouble.json``         there while the node's own way back fails
``spare``                space that is given up for the records of the way back when the disk is full

Every file and folder comes into being by a rename, so a crash at any byte leaves what was readable before.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.records import (
    DamagedRecordError,
    Format,
    is_full,
    is_there,
    remove,
    sync_folder,
    told,
    unreadable,
    write,
)
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.layout import STATE_DIR

from .model import FORMAT, Attempt, Generation, History, digest_of, kept

MANIFEST, RUNTIME = "manifest.json", "runtime.zip"
RECORDS = Format(FORMAT, "site.yml makes a new one, and rollback.yml with overlay_rollback_to=0 takes the overlay off.")
SPARE = 16384  # bytes: two blocks and more for each of the small records


@dataclass(frozen=True)
class _Confirmed:
    """``confirmed.json``, as in :class:`History`."""

    number: int = 0
    by: str = ""
    left: int = 0


@dataclass(frozen=True)
class SwitchedOff:
    """``switched-off.json``. ``when``: in ISO 8601."""

    when: str


@dataclass(frozen=True)
class Trouble:
    """``trouble.json``: what the way back from ``attempt`` could not do in its last try."""

    attempt: str
    tries: int
    reasons: list[str]
    when: str


class Store:
    """What is kept in ``root``. Every method raises :class:`OverlayError`, those that read for a record that is there
    and cannot be read."""

    def __init__(self, root: str = STATE_DIR) -> None:
        self.root = root
        self._generations = os.path.join(root, "generations")
        self._attempts = os.path.join(root, "attempts")
        self._attempt = os.path.join(root, "attempt.json")
        self._confirmed = os.path.join(root, "confirmed.json")
        self._switched_off = os.path.join(root, "switched-off.json")
        self._trouble = os.path.join(root, "trouble.json")
        self._spare = os.path.join(root, "spare")
        self._gone = f"{root}.gone"

    # --- read ---------------------------------------------------------------------------------------------------------

    def read(self, mending: bool = False) -> History:
        """``mending``: a record whose content is lost counts as not there, for whoever makes all of it anew."""
        confirmed, attempt = _Confirmed(), None
        with _ignored(mending):
            confirmed = RECORDS.read(_Confirmed, self._confirmed) or confirmed
        with _ignored(mending):
            attempt = self.attempt()
        folders = {
            int(name): os.path.join(self._generations, name) for name in _list(self._generations) if name.isdigit()
        }
        if attempt and is_there(self._of(attempt, MANIFEST)):
            folders[attempt.number] = os.path.dirname(self._of(attempt, MANIFEST))
        generations, damaged = {}, {}
        for number, folder in sorted(folders.items()):
            try:
                if generation := _manifest(os.path.join(folder, MANIFEST)):
                    generations[number] = generation
            except OverlayError as error:
                damaged[number] = f"{error.target}: {error.reason}"
        return History(
            generations, confirmed.number, confirmed.by, attempt, confirmed.left, self.switched_off(), damaged
        )

    def attempt(self) -> Attempt | None:
        """The roll-out that nobody has confirmed yet. This reads one small file."""
        return RECORDS.read(Attempt, self._attempt)

    def switched_off(self) -> bool:
        """Whether the node stays off whatever is rolled out. That the file is there is enough."""
        return is_there(self._switched_off)

    def trouble(self) -> Trouble | None:
        return RECORDS.read(Trouble, self._trouble)

    def runtime(self, number: int) -> str:
        """Where the code lies that made the confirmed generation ``number``."""
        return os.path.join(self._generations, str(number), RUNTIME)

    def runtime_of(self, attempt: Attempt) -> str:
        """Where the code of an attempt lies; release 1.0.0 kept it where that of a confirmed generation is."""
        path = self._of(attempt, RUNTIME)
        return path if is_there(path) else self.runtime(attempt.number)

    def present_runtime(self, history: History) -> str:
        """Where the code lies that made what is on the node now."""
        return self.runtime_of(history.attempt) if history.attempt else self.runtime(history.confirmed)

    def exists(self) -> bool:
        """Whether anything is there, or was left by a crash. What cannot be told counts as there, since it is taken
        off by whoever asks."""
        try:
            return is_there(self.root) or is_there(self._gone)
        except OverlayError:
            return True

    # --- write --------------------------------------------------------------------------------------------------------

    def begin(
        self, attempt: Attempt, generation: Generation | None, runtime: bytes, arm: Callable[[], None] = lambda: None
    ) -> None:
        """Record the attempt. ``generation``: None for one that is on the node already.

        ``arm`` starts the new way back. The former attempt, with its own, is there until that has been done, and its
        code until this one is over too, since it made what is on the node.
        """
        with told("record the attempt", self.root):
            shutil.rmtree(self._gone, ignore_errors=True)
            for folder in (self._generations, self._attempts):
                os.makedirs(folder, mode=0o700, exist_ok=True)
            if not is_there(self._spare):
                write(self._spare, os.urandom(SPARE))
            former = self._readable_attempt()
            self._add(attempt, generation, runtime)
            arm()
            write(self._attempt, RECORDS.encode(attempt))
            self._discard_folders(attempt, former)
            if former and former.number != attempt.number:
                self._discard_number(former)

    def confirm(self, number: int, by: str, left: int = 0, taken_back: int = 0) -> None:
        """The node is at ``number`` now; what need not be kept goes. ``left``: as in :class:`History`, ``taken_back``
        as in :func:`.model.kept`."""
        with told("confirm the generation", self.root):
            attempt = self._readable_attempt()
            if attempt and attempt.number == number:
                self._adopt(attempt)
            # A generation of release 1.0.0 can be gone on with by that release.
            first = RECORDS.of(os.path.join(self._generations, str(number), MANIFEST)) == 1
            self._write(self._confirmed, RECORDS.encode(_Confirmed(number, by, left), first))
            remove(self._attempt)
            remove(self._trouble)
            self._discard_folders()
            wanted = {str(number) for number in kept(self.read(), taken_back)}
            for name in _list(self._generations):
                if name not in wanted:
                    shutil.rmtree(os.path.join(self._generations, name), ignore_errors=True)

    def give_up(self) -> None:
        """Forget the attempt, one that cannot be read too."""
        with told("forget the attempt", self.root):
            former = self._readable_attempt()
            remove(self._attempt)
            self._discard_folders()
            if former:
                self._discard_number(former)

    def clear(self) -> None:
        """Generation 0: nothing is kept. At once by a rename: half of a history would tell something else."""
        with told("remove the history", self.root), contextlib.suppress(FileNotFoundError):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self._gone)
            os.rename(self.root, self._gone)
            shutil.rmtree(self._gone)

    def switch_off(self, when: str) -> None:
        """From now on the node stays off whatever is rolled out."""
        with told("record that the node is switched off", self._switched_off):
            try:
                self._write(self._switched_off, RECORDS.encode(SwitchedOff(when)))
            except OSError as error:
                if not is_full(error):
                    raise
                os.close(os.open(self._switched_off, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600))

    def switch_on(self) -> None:
        with told("forget that the node is switched off", self._switched_off):
            remove(self._switched_off)

    def tell(self, trouble: Trouble) -> None:
        with told("record what the way back could not do", self._trouble):
            self._write(self._trouble, RECORDS.encode(trouble))

    # --- inside -------------------------------------------------------------------------------------------------------

    def _of(self, attempt: Attempt, name: str) -> str:
        return os.path.join(self._attempts, attempt.identity, name)

    def _write(self, path: str, content: bytes) -> None:
        try:
            write(path, content)
        except OSError as error:
            if not is_full(error) or not is_there(self._spare):
                raise
            remove(self._spare)
            write(path, content)

    def _readable_attempt(self) -> Attempt | None:
        with contextlib.suppress(OverlayError):
            return self.attempt()
        return None

    def _add(self, attempt: Attempt, generation: Generation | None, runtime: bytes) -> None:
        """A folder of its own, so that no process loses the code that it runs."""
        folder = os.path.dirname(self._of(attempt, RUNTIME))
        new = f"{folder}.new"
        for path in (new, folder):
            shutil.rmtree(path, ignore_errors=True)
        try:
            os.mkdir(new, 0o700)
            write(os.path.join(new, RUNTIME), runtime)
            if generation:
                write(os.path.join(new, MANIFEST), RECORDS.encode(generation))
        except OSError:
            shutil.rmtree(new, ignore_errors=True)
            raise
        os.rename(new, folder)
        sync_folder(self._attempts)

    def _adopt(self, attempt: Attempt) -> None:
        """What the attempt brought becomes that of its generation. The attempt keeps it too, until it is discarded."""
        folder, new = (os.path.join(self._generations, f"{attempt.number}{end}") for end in ("", ".new"))
        shutil.rmtree(new, ignore_errors=True)
        if is_there(self._of(attempt, MANIFEST)):
            os.mkdir(new, 0o700)
            for name in (RUNTIME, MANIFEST):
                os.link(self._of(attempt, name), os.path.join(new, name))
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(new, folder)
            sync_folder(self._generations)
        elif is_there(self._of(attempt, RUNTIME)):
            os.link(self._of(attempt, RUNTIME), new)
            os.rename(new, os.path.join(folder, RUNTIME))
            sync_folder(folder)

    def _discard_folders(self, *kept: Attempt | None) -> None:
        names = {attempt.identity for attempt in kept if attempt}
        for name in _list(self._attempts):
            if name not in names:
                shutil.rmtree(os.path.join(self._attempts, name), ignore_errors=True)

    def _discard_number(self, attempt: Attempt) -> None:
        """Among the generations: release 1.0.0 kept it there, and a confirmation that broke off leaves it."""
        try:
            confirmed = RECORDS.read(_Confirmed, self._confirmed) or _Confirmed()
        except OverlayError:  # better too much on the disk than too little
            return
        if attempt.number not in (confirmed.number, attempt.former):
            shutil.rmtree(os.path.join(self._generations, str(attempt.number)), ignore_errors=True)


@contextlib.contextmanager
def _ignored(damage: bool) -> Iterator[None]:
    try:
        yield
    except DamagedRecordError:
        if not damage:
            raise


def _manifest(path: str) -> Generation | None:
    generation = RECORDS.read(Generation, path)
    if generation is None:
        return None
    generation = replace(generation, calls=tuple(generation.calls))
    if generation.digest != digest_of(generation.calls):
        raise RECORDS.damaged(path, "its calls do not fit its digest")
    return generation


def _list(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(folder, error) from error
