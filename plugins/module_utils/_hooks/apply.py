# SPDX-License-Identifier: GPL-3.0-or-later
"""Apply filter plans to this network namespace's hooks."""

from __future__ import annotations

import errno
import os
from typing import Any, Callable

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import tcx as _tcx
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.tc import TrafficControl

from . import operations as do
from . import records as qdisc_records
from .text import ADVICE, DOING


def apply(operations: tuple[Any, ...], warn: Callable[[str], None]) -> None:
    """Apply a filter plan, one operation after the other.

    An interface that goes away meanwhile takes its own operations with it; the others are carried on. Afterwards that
    is an error for an interface that was named, a warning for one that a glob matched. Raises :class:`OverlayError`.
    """
    gone: dict[int, tuple[Any, OSError]] = {}
    with TrafficControl() as traffic_control:
        for operation in operations:
            if operation.ifindex in gone and operation.ifindex:
                continue
            try:
                _perform(operation, traffic_control)
            except OSError as error:
                if isinstance(operation, do.AddClsact):  # whatever qdisc is there now, it is not ours
                    qdisc_records.forget(operation.ifindex, operation.interface)
                if error.errno in (errno.ENODEV, errno.ENOLINK):
                    gone[operation.ifindex] = operation, error
                    qdisc_records.forget(operation.ifindex, operation.interface)
                elif not (isinstance(operation, do.DeleteFilter) and error.errno == errno.ENOENT):
                    raise _failure(operation, error) from error
    for operation, cause in gone.values():
        if operation.required:
            raise _failure(operation, OSError(errno.ENODEV, "")) from cause
        warn(f"The interface {operation.interface} went away meanwhile; nothing is attached there.")


def _failure(operation: Any, error: OSError) -> OverlayError:
    where = [f"interface {operation.interface}"] if operation.interface else []
    where += [str(getattr(operation, key)) for key in ("direction",) if hasattr(operation, key)]
    where += [
        f"{key} {getattr(operation, key)}"
        for key in ("priority", "handle", "name", "pin", "path")
        if hasattr(operation, key)
    ]
    if hasattr(operation, "program"):
        where.append(f"program {operation.program.pin}")
    advice = ADVICE.get(error.errno or 0, "Run again; `dmesg` may say more.")
    return OverlayError(DOING[type(operation)], ", ".join(where), error, advice)


def _perform(operation: Any, traffic_control: TrafficControl) -> None:
    if isinstance(operation, do.RecordQdisc):
        qdisc_records.note(operation.ifindex, operation.interface)
    elif isinstance(operation, do.ForgetQdisc):
        qdisc_records.forget(operation.ifindex, operation.interface)
    elif isinstance(operation, do.AddClsact):
        traffic_control.add_clsact(operation.ifindex)
    elif isinstance(operation, do.DeleteClsact):
        traffic_control.delete_clsact(operation.ifindex)
    elif isinstance(operation, do.DeleteFilter):
        traffic_control.delete_filter(
            operation.ifindex, operation.direction, operation.priority, operation.handle, operation.protocol
        )
    elif isinstance(operation, (do.RemoveLink, do.RemovePin)):
        _tcx.remove(operation.pin)
    elif isinstance(operation, do.RemoveDirectory):
        os.rmdir(operation.path)
    else:
        _attach(operation, traffic_control)


def _attach(operation: Any, traffic_control: TrafficControl) -> None:
    program_fd = bpf.obj_get(operation.program.pin)
    try:
        if isinstance(operation, do.CreateLink):
            _tcx.create(operation.pin, program_fd, operation.ifindex, operation.direction, operation.revision)
        elif isinstance(operation, do.UpdateLink):
            _tcx.update(operation.pin, program_fd, operation.expected_program_id)
        else:
            change = (
                traffic_control.add_filter if isinstance(operation, do.AddFilter) else traffic_control.change_filter
            )
            change(
                operation.ifindex, operation.direction, operation.priority, operation.handle, operation.name, program_fd
            )
    finally:
        os.close(program_fd)
