# SPDX-License-Identifier: GPL-3.0-or-later
"""Conntrack's sysctls in this network namespace, the file that keeps them, and the record of their former values."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.conntrack import flag_live_entries
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.features import stable_version

from .conntrack import (
    ESTABLISHED,
    FILE,
    FORMAT,
    NAMES,
    FlagEntries,
    ForgetFormer,
    Former,
    Observed,
    RecordFormer,
    RemoveFile,
    SetSysctl,
    WriteFile,
    checked_record,
    unreadable,
)
from .control import other_layout, read_control
from .layout import PIN_DIR, STATE_DIR

RECORD = f"{STATE_DIR}/conntrack.json"
# Packets that a program has redirected already are still on their way when the mode becomes off.
SETTLE = 1.0  # seconds


def observe() -> Observed:
    """Raises :class:`OverlayError`."""
    return Observed(
        read_values(),
        stable_version(platform.release(), platform.version()),
        _read_file(),
        _read_record(),
        _mode(),
    )


def _mode() -> str:
    """Of a datapath of another layout: on where it may be."""
    if (other := other_layout(PIN_DIR)) is not None:
        return "on" if other else "off"
    control = read_control(PIN_DIR)
    return control.effective(time.monotonic_ns()) if control else "off"


def read_values() -> dict[str, int]:
    """The values of the sysctls that are there; empty where conntrack is not loaded."""
    values = {}
    for name in (*NAMES, ESTABLISHED):
        with contextlib.suppress(FileNotFoundError), open(_path(name), encoding="ascii") as stream:
            values[name] = int(stream.read())
    return values


def apply(operation: Any) -> int:
    """Returns how many connections were flagged. Raises :class:`OverlayError`."""
    if isinstance(operation, FlagEntries):
        time.sleep(SETTLE)
        return flag_live_entries()
    if isinstance(operation, SetSysctl):
        _set(operation)
    elif isinstance(operation, RecordFormer):
        _record(operation.former)
    elif isinstance(operation, WriteFile):
        _write_whole(FILE, operation.text, 0o644)
    elif isinstance(operation, RemoveFile):
        _remove(FILE)
    elif isinstance(operation, ForgetFormer):
        _remove(f"{FILE}.new")  # what a crash left of it
        _remove(RECORD)
        with contextlib.suppress(OSError):  # generations are kept there too
            os.rmdir(STATE_DIR)
    return 0


def _path(name: str) -> str:
    # Of this network namespace: /proc/sys/net shows that of the process that opens it.
    return f"/proc/sys/{name.replace('.', '/')}"


def _set(operation: SetSysctl) -> None:
    try:
        with open(_path(operation.name), "w", encoding="ascii") as stream:
            stream.write(str(operation.value))
    except OSError as error:
        raise OverlayError(
            "set a sysctl",
            f"{operation.name} to {operation.value}",
            error,
            "Run as root (become: true), with /proc/sys writable.",
        ) from error


def _read_file() -> str | None:
    try:
        with open(FILE, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OverlayError("read the file of sysctls", FILE, error, "Look at the file.") from error


def _read_record() -> Former | None:
    try:
        with open(RECORD, encoding="utf-8") as stream:
            content = json.load(stream)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise unreadable(RECORD, error) from error
    return checked_record(RECORD, content)


def _record(former: Former) -> None:
    with contextlib.suppress(OSError):  # the write tells
        os.makedirs(STATE_DIR, mode=0o700, exist_ok=True)
    _write_whole(RECORD, json.dumps({"format": FORMAT, "former": dict(former)}, sort_keys=True) + "\n", 0o600)


def _write_whole(path: str, text: str, mode: int) -> None:
    """The file is the new or the old one, whenever the power goes."""
    temporary = f"{path}.new"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(temporary, flags, mode), "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(temporary, path)
        _sync_folder(path)
    except OSError as error:
        raise OverlayError("write a file", path, error, "Look at the disk's space and rights.") from error


def _remove(path: str) -> None:
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        _sync_folder(path)
    except OSError as error:
        raise OverlayError("remove a file", path, error, "Look at the disk's rights.") from error


def _sync_folder(path: str) -> None:
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
