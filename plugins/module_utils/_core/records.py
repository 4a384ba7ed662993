# SPDX-License-Identifier: GPL-3.0-or-later
"""Records on disk: JSON that tells its format, written by a rename. One that cannot be read is an error, not absent."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from .errors import OverlayError

_Record = TypeVar("_Record")
NEW = ".new"  # how a file is called until it is whole
_DOING = "read a record of the node"
# How the members of a record are annotated, without what is in brackets -> what JSON makes of them.
_KINDS = {"int": int, "str": str, "bool": bool, "tuple": list, "list": list, "dict": dict, "Mapping": dict}


class DamagedRecordError(OverlayError):
    """What the record held is lost: it can only be made anew."""


@dataclass(frozen=True)
class Format:
    """How records of one kind are written. Each is a dataclass.

    ``number``: the format that this release writes; it reads all formats up to it. A record that tells no number has
    format 1. ``advice``: what a person can do where the content of a record is lost, a full sentence.
    """

    number: int
    advice: str

    def encode(self, record: Any, known_to_first_release: bool = False) -> bytes:
        """Release 1.0.0 takes a record with a format for none at all."""
        told = {} if known_to_first_release else {"format": self.number}
        return json.dumps({**asdict(record), **told}, sort_keys=True).encode("utf-8")

    def read(self, kind: type[_Record], path: str) -> _Record | None:
        """None where no such file is. Raises :class:`OverlayError` naming the file, of the kind DamagedRecordError
        where its content is lost."""
        members = self._members(path)
        if members is None:
            return None
        members.pop("format", None)
        known = {member.name: str(member.type).partition("[")[0] for member in fields(kind)}  # type: ignore[arg-type]
        if unknown := set(members) - set(known):
            raise OverlayError(
                _DOING, path, f"this release does not know its members {', '.join(sorted(unknown))}",
                "Use the release of the collection that wrote it.",
            )  # fmt: skip
        for name, value in members.items():
            if not is_of(_KINDS[known[name]], value):
                raise self.damaged(path, f"{name} is {json.dumps(value)[:40]}")
        try:
            return kind(**members)
        except TypeError as error:
            raise self.damaged(path, error) from error

    def of(self, path: str) -> int:
        """The format of the record; 0 where no such file is. Raises :class:`OverlayError`."""
        members = self._members(path)
        return 0 if members is None else int(members.get("format", 1))

    def check(self, number: object, path: str) -> None:
        """Raises :class:`OverlayError` for a number that no release up to this one has written."""
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise self.damaged(path, f"its format is {json.dumps(number)}")
        if number > self.number:
            raise OverlayError(
                _DOING, path, f"its format is {number}, and this release knows those up to {self.number}",
                "Use the release of the collection that wrote it.",
            )  # fmt: skip

    def damaged(self, path: str, reason: object) -> DamagedRecordError:
        return DamagedRecordError(_DOING, path, f"it is damaged: {reason}", self.advice)

    def _members(self, path: str) -> dict[str, Any] | None:
        try:
            with open(path, encoding="utf-8") as stream:
                found = json.load(stream)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise unreadable(path, error) from error
        except (ValueError, RecursionError) as error:
            raise self.damaged(path, error) from error
        if not isinstance(found, dict):
            raise self.damaged(path, "it holds no record")
        self.check(found.get("format", 1), path)
        return found


def is_of(kind: type, value: object) -> bool:
    """Whether JSON gave a value of this kind: true is no number there."""
    return isinstance(value, kind) and isinstance(value, bool) == (kind is bool)


def unreadable(path: str, error: OSError) -> OverlayError:
    return OverlayError(_DOING, path, error, "Look at the disk; the kernel's log may say more.")


def is_there(path: str) -> bool:
    """Whether a file or folder is there. Raises :class:`OverlayError` where that cannot be told."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise unreadable(path, error) from error
    return True


def write(path: str, content: bytes, mode: int = 0o600) -> None:
    """Whole or not at all, on the disk when this returns. Raises :class:`OSError`."""
    temporary = f"{path}{NEW}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(temporary, path)
    sync_folder(os.path.dirname(path))


def sync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: str) -> None:
    """Harmless where no such file is."""
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    sync_folder(os.path.dirname(path))


def is_full(error: OSError) -> bool:
    """Whether a write failed for want of space."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def told(doing: str, target: str) -> Iterator[None]:
    """An :class:`OSError` as an :class:`OverlayError`."""
    try:
        yield
    except OSError as error:
        path = str(error.filename or target).removesuffix(NEW)
        raise OverlayError(doing, path, error, "Look at the disk's space and rights.") from error
