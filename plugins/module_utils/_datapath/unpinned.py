# SPDX-License-Identifier: GPL-3.0-or-later
"""A datapath whose pins are gone: its filters keep it running, and it is found through them."""

from __future__ import annotations

import os
from dataclasses import asdict

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._hooks.inspect import read_interfaces
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.machine import interface_table
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.traffic import DIRECTIONS

from .control import CONTROL, KEY
from .layout import BPFFS, OWNER
from .mode import Control, SetUnpinned


def controls() -> dict[int, Control]:
    """The entries, by map id, of a datapath that only its filters keep alive. Raises :class:`OverlayError`."""
    try:
        hooks = [
            entry
            for interface in read_interfaces(interface_table(), BPFFS)
            for direction in DIRECTIONS
            for entry in interface[direction]
        ]
        numbers = {number for entry in hooks if entry["owner"] == OWNER for number in entry["map_ids"] or ()}
        return {number: control for number in sorted(numbers) for control in _control_of(number)}
    except OSError as error:
        raise OverlayError("look for a running overlay", "all interfaces", error, "Run as root.") from error


def _control_of(map_id: int) -> list[Control]:
    descriptor = bpf.map_fd_by_id(map_id)
    try:
        info = bpf.map_info(descriptor)
        if (info.name, info.value_size) != ("control", CONTROL.size):
            return []
        return [Control(**CONTROL.decode(bpf.map_lookup(descriptor, KEY, CONTROL.size) or bytes(CONTROL.size)))]
    finally:
        os.close(descriptor)


def write(operation: SetUnpinned) -> None:
    """One write of one entry. Raises :class:`OverlayError`."""
    try:
        descriptor = bpf.map_fd_by_id(operation.map_id)
        try:
            bpf.map_update(descriptor, KEY, CONTROL.encode(asdict(operation.control)))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OverlayError("set the mode", f"map {operation.map_id}", error, "Run as root (become: true).") from error
