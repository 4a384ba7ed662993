# SPDX-License-Identifier: GPL-3.0-or-later
"""Records on disk: JSON that tells its format, written by a rename. One that cannot be read is an error, not absent."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any, TypeVar

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError

from .model import FORMAT

_Record = TypeVar("_Record")


class DamagedRecordError(OverlayError):
    """What the record held is lost: it can only be made anew."""


def encode(record: Any, known_to_first_release: bool = False) -> bytes:
    """A dataclass as it lies on disk. Release 1.0.0 takes a record with a format for none at all."""
    told = {} if known_to_first_release else {"format": FORMAT}
    return json.dumps({**asdict(record), **told}, sort_keys=True).encode("utf-8")


def read_record(kind: type[_Record], path: str) -> _Record | None:
    """None where no such file is. Raises :class:`OverlayError` naming the file, of the kind DamagedRecordError where
    its content is lost."""
    members = _members(path)
    if members is None:
        return None
    members.pop("format", None)
    names = {member.name for member in fields(kind)}  # type: ignore[arg-type]
    if unknown := set(members) - names:
        raise OverlayError(
            "read a record of the node", path, f"this release does not know its members {', '.join(sorted(unknown))}",
            "Use the release of the collection that wrote it.",
        )  # fmt: skip
    try:
        return kind(**members)
    except TypeError as error:
        raise _damaged(path, error) from error


def format_of(path: str) -> int:
    """The format of the record; 1 where it names none, 0 where no such file is. Raises :class:`OverlayError`."""
    members = _members(path)
    return 0 if members is None else int(members.get("format", 1))


def _members(path: str) -> dict[str, Any] | None:
    try:
        with open(path, encoding="utf-8") as stream:
            found = json.load(stream)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OverlayError(
            "read a record of the node", path, error, "Look at the disk; the kernel's log may say more."
        ) from error
    except ValueError as error:
        raise _damaged(path, error) from error
    if not isinstance(found, dict):
        raise _damaged(path, "it holds no record")
    number = found.get("format", 1)
    if not isinstance(number, int) or number > FORMAT:
        raise OverlayError(
            "read a record of the node", path, f"its format is {number}, and this release knows those up to {FORMAT}",
            "Use the release of the collection that wrote it.",
        )  # fmt: skip
    return found


def _damaged(path: str, reason: object) -> DamagedRecordError:
    return DamagedRecordError(
        "read a record of the node", path, f"it is damaged: {reason}",
        "site.yml makes a new one, and rollback.yml with overlay_rollback_to=0 takes the overlay off.",
    )  # fmt: skip


def write(path: str, content: bytes, mode: int = 0o600) -> None:
    """Whole or not at all, on the disk when this returns. Raises :class:`OSError`."""
    temporary = f"{path}.new"
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
        raise OverlayError(doing, error.filename or target, error, "Look at the disk's space and rights.") from error
