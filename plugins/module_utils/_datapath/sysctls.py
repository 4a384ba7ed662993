# SPDX-License-Identifier: GPL-3.0-or-later
"""Conntrack's sysctls in this network namespace, the file that keeps them, and the record of their former values."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core import records
from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.conntrack import flag_live_entries
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.features import stable_version

from .conntrack import (
    DEFAULTS,
    ESTABLISHED,
    FILE,
    NAMES,
    FlagEntries,
    ForgetFormer,
    Former,
    Observed,
    RecordFormer,
    RemoveFile,
    SetSysctl,
    WriteFile,
)
from .control import other_layout, read_control
from .layout import PIN_DIR, STATE_DIR

RECORD = f"{STATE_DIR}/conntrack.json"
RECORDS = records.Format(1, "Restore the file, or remove it: the kernel's defaults then count as the former values.")
# Packets that a program has redirected already are still on their way when the mode becomes off.
SETTLE = 1.0  # seconds


@dataclass(frozen=True)
class Record:
    """``conntrack.json``: the former values."""

    former: Mapping[str, int | None]


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
        _write(RECORD, RECORDS.encode(Record(operation.former)), 0o600)
    elif isinstance(operation, WriteFile):
        _write(FILE, operation.text.encode("utf-8"), 0o644)
    elif isinstance(operation, RemoveFile):
        _remove(FILE)
    elif isinstance(operation, ForgetFormer):
        _remove(f"{FILE}{records.NEW}")  # what a crash left of it
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
    record = RECORDS.read(Record, RECORD)
    if record is None:
        return None
    former = record.former
    if not all(name in DEFAULTS and (value is None or records.is_of(int, value)) for name, value in former.items()):
        raise RECORDS.damaged(RECORD, "its former values are no sysctls of conntrack")
    return former


def _write(path: str, content: bytes, mode: int) -> None:
    with records.told("write a file", path):
        os.makedirs(os.path.dirname(path), mode=0o755 if mode & 0o077 else 0o700, exist_ok=True)
        records.write(path, content, mode)


def _remove(path: str) -> None:
    with records.told("remove a file", path):
        records.remove(path)
