# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's path for a node whose way back fails: whatever is loaded is switched off, or taken off its hooks.

It knows nothing of how a map is laid out, and needs neither a module nor a library.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._hooks.inspect import read_interfaces
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.machine import interface_table
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.traffic import DIRECTIONS, TCX

from .layout import BPFFS, OWNER, PIN_DIR

CONTROL = f"{PIN_DIR}/control"


def kernels_path() -> None:
    """Switch off; where that is refused, detach. Raises :class:`OverlayError` when neither can be done."""
    try:
        switch_off()
    except OverlayError:
        detach()


def switch_off() -> None:
    """Fill every control entry with zeros, in whatever size: mode off, in every layout. The pinned one, and those of
    programs that run although their pins are gone. Raises :class:`OverlayError`."""
    try:
        for descriptor in _control_maps():
            try:
                info = bpf.map_info(descriptor)
                bpf.map_update(descriptor, bytes(info.key_size), bytes(info.value_stride))
            finally:
                os.close(descriptor)
    except OSError as error:
        raise OverlayError(
            "switch the overlay off", CONTROL, error, "Detach its filters: rollback.yml with overlay_rollback_to=0."
        ) from error


def _control_maps() -> Iterator[int]:
    if os.path.exists(CONTROL):
        yield bpf.obj_get(CONTROL)
    numbers = {number for _interface, _direction, entry in _ours() for number in entry["map_ids"] or ()}
    for number in sorted(numbers):
        descriptor = bpf.map_fd_by_id(number)
        if bpf.map_info(descriptor).name == "control":
            yield descriptor
        else:
            os.close(descriptor)


def detach() -> None:
    """Take every program of ours off its hook. Qdiscs stay. Raises :class:`OverlayError`."""
    try:
        for interface, direction, entry in list(_ours()):
            if entry["mechanism"] == TCX:
                _detach_link(entry)
            else:
                _delete_filter(interface, direction, entry)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        raise OverlayError("detach the overlay", "all interfaces", said, "Look at the node: tc filter show.") from error


def _ours() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(interface, direction, entry) of each program of ours."""
    for interface in read_interfaces(interface_table(), BPFFS, noted=False):
        for direction in DIRECTIONS:
            for entry in interface[direction]:
                if entry["owner"] == OWNER:
                    yield interface["name"], direction, entry


def _detach_link(entry: dict[str, Any]) -> None:
    descriptor = bpf.link_fd_by_id(entry["link_id"])
    try:
        bpf.link_detach(descriptor)
    finally:
        os.close(descriptor)
    if entry["pin"]:
        os.unlink(entry["pin"])


def _delete_filter(interface: str, direction: str, entry: dict[str, Any]) -> None:
    """By tc(8), which is there where ip(8) is."""
    handle, priority = f"{entry['handle']:#x}", str(entry["priority"])
    command = ["tc", "filter", "del", "dev", interface, direction, "protocol", "all", "pref", priority]
    # pylint: disable-next=ansible-bad-function
    subprocess.run([*command, "handle", handle, entry["kind"]], check=True, capture_output=True, text=True)
