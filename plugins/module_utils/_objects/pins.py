# SPDX-License-Identifier: GPL-3.0-or-later
"""Pins: what is in a folder on a bpffs, and the few calls that change that.

Every call that changes something goes through one of the functions under "changes", each of which is one system call.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf

from . import headers
from .plan import (
    Announce,
    Commit,
    MakeFolder,
    PinNew,
    Publish,
    RemoveFolder,
    RemoveTree,
    Unpin,
)
from .state import (
    BUILD,
    NEW,
    NEXT,
    Entry,
    Layout,
    MapPin,
    OtherEntry,
    ProgramPin,
)

# --- what is pinned ---------------------------------------------------------------------------------------------------


def layout_of(fd: int) -> Layout:
    info = bpf.map_info(fd)
    return Layout(info.type_name, info.key_size, info.value_size, info.max_entries, info.flags)


def read_folder(folder: str) -> dict[str, Entry] | None:
    """Everything in ``folder`` by name; None when there is no such folder. Raises :class:`OverlayError`."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise refused("read the pins", folder, error) from error
    return {name: _read_entry(folder, name) for name in names}


def _read_entry(folder: str, name: str) -> Entry:
    path = os.path.join(folder, name)
    try:
        if os.path.islink(path):
            return OtherEntry(name, os.readlink(path))
        if os.path.isdir(path):
            return OtherEntry(name)
        fd = bpf.obj_get(path)
        try:
            kind = bpf.object_kind(fd)
            if kind == "bpf-map":
                return MapPin(name, bpf.map_info(fd).id, layout_of(fd))
            if kind == "bpf-prog":
                info = bpf.prog_info(fd)
                return ProgramPin(name, info.id, info.tag, info.xlated_size)
            return OtherEntry(name)
        finally:
            os.close(fd)
    except OSError as error:
        # Iterators that the kernel pins itself (maps.debug) are listed and cannot be opened.
        if error.errno == errno.ENOENT:
            return OtherEntry(name)
        raise refused("read a pin", path, error) from error


def refused(doing: str, target: str, error: OSError) -> OverlayError:
    """The error of a call that the kernel refused; for EPERM the advice names the capabilities."""
    advice = "Run again; if it stays, look at the kernel's log."
    if error.errno == errno.EPERM:
        advice = "Run with become: true; CAP_BPF and CAP_NET_ADMIN (before Linux 5.8: CAP_SYS_ADMIN) are needed."
    return OverlayError(doing, target, error, advice)


# --- changes ----------------------------------------------------------------------------------------------------------


def pin(fd: int, path: str) -> None:
    try:
        bpf.obj_pin(fd, path)
    except OSError as error:
        raise refused("pin", path, error) from error


def rename(old: str, new: str) -> None:
    """Atomic, also over an existing pin: who opens ``new`` meanwhile gets the old object or the new one."""
    try:
        os.rename(old, new)
    except OSError as error:
        raise refused("move a pin", f"{old} to {new}", error) from error


def unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError as error:
        raise refused("remove a pin", path, error) from error


def symlink(target: str, path: str) -> None:
    try:
        os.symlink(target, path)
    except OSError as error:
        raise refused("write the build record", path, error) from error


def make_folder(path: str) -> None:
    try:
        os.makedirs(path, mode=0o700)
    except OSError as error:
        raise refused("make the folder for pins", path, error) from error


def remove_folder(path: str) -> None:
    try:
        os.rmdir(path)
    except OSError as error:
        raise refused("remove the folder for pins", path, error) from error


def apply(folder: str, operations: Iterable[Any], descriptors: Mapping[str, int]) -> None:
    """Apply a plan of ``plan``; ``descriptors``: the loaded objects that it pins, by name."""
    for operation in operations:
        if isinstance(operation, MakeFolder):
            make_folder(folder)
        elif isinstance(operation, Unpin):
            unlink(f"{folder}/{operation.name}")
        elif isinstance(operation, Announce):
            symlink(operation.record, f"{folder}/{NEXT}{NEW}")
            rename(f"{folder}/{NEXT}{NEW}", f"{folder}/{NEXT}")
        elif isinstance(operation, PinNew):
            pin(descriptors[operation.name], f"{folder}/{operation.name}{NEW}")
        elif isinstance(operation, Publish):
            rename(f"{folder}/{operation.name}{NEW}", f"{folder}/{operation.name}")
        elif isinstance(operation, Commit):
            rename(f"{folder}/{NEXT}", f"{folder}/{BUILD}")
        elif isinstance(operation, RemoveFolder):
            remove_folder(folder)
        elif isinstance(operation, RemoveTree):
            headers.remove_tree(operation.path)
        else:
            raise TypeError(f"unknown operation: {operation!r}")
