# SPDX-License-Identifier: GPL-3.0-or-later
"""The loaded datapath's control entry and its flows."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._maps.codec import Codec
from ansible_collections.ebpf.overlay.plugins.module_utils._maps.pinned import PinnedMap, opened

from .layout import SCHEMAS
from .mode import NANOSECONDS, Control, SetControl

KEY = bytes(4)
CONTROL = Codec(SCHEMAS["control"][1], "value")
SIZES = len(KEY), CONTROL.size
_FLOW_KEY, _FLOW = (Codec(schema, what) for schema, what in zip(SCHEMAS["flows"], ("key", "value")))
_CLOCK_MONOTONIC_COARSE = 6  # include/uapi/linux/time.h; its resolution is one jiffy


def jiffies_per_second() -> int:
    """What the datapath counts time in."""
    return round(1 / time.clock_getres(_CLOCK_MONOTONIC_COARSE))


class OtherLayoutError(OverlayError):
    """The datapath that is loaded is of another release."""


def read_control(pin_dir: str) -> Control | None:
    """None while no datapath is loaded. Raises :class:`OverlayError`, of the kind OtherLayoutError for one whose entry
    this release cannot decode."""
    with opened(f"{pin_dir}/control") as found:
        if found is None:
            return None
        _check(found)
        value = CONTROL.decode(bpf.map_lookup(found.fd, KEY, CONTROL.size) or bytes(CONTROL.size))
        return Control(**value)


def known_control(pin_dir: str) -> Control | None:
    """None also for a datapath of another release. Raises :class:`OverlayError`."""
    try:
        return read_control(pin_dir)
    except OtherLayoutError:
        return None


def other_layout(pin_dir: str) -> bool | None:
    """Whether a datapath of another layout may be on, since its entry holds more than zeros; None where it is of this
    one, or none is loaded. Raises :class:`OverlayError`."""
    with opened(f"{pin_dir}/control") as found:
        if found is None or _sizes(found) == SIZES:
            return None
        return any(bpf.map_lookup(found.fd, bytes(found.info.key_size), found.info.value_stride) or b"")


def write_zeros(pin_dir: str) -> None:
    """Mode off in every layout. Raises :class:`OverlayError`."""
    path = f"{pin_dir}/control"
    with opened(path) as found:
        try:
            if found:
                bpf.map_update(found.fd, bytes(found.info.key_size), bytes(found.info.value_stride))
        except OSError as error:
            raise OverlayError("set the mode", path, error, "Run as root (become: true).") from error


def write_control(pin_dir: str, operation: SetControl) -> None:
    """One write of one entry; the lease counts from here. Raises :class:`OverlayError`."""
    value = asdict(operation.control)
    if operation.lease:
        value["deadline"] = time.monotonic_ns() + int(operation.lease * NANOSECONDS)
    path = f"{pin_dir}/control"
    with opened(path) as found:
        if found is None:
            raise OverlayError(
                "set the mode", path, "it is gone", "Something removed the datapath; run site.yml again."
            )
        _check(found)
        try:
            bpf.map_update(found.fd, KEY, CONTROL.encode(value))
        except OSError as error:
            raise OverlayError("set the mode", path, error, "Run as root (become: true).") from error


def _check(found: PinnedMap) -> None:
    """Raises :class:`OverlayError` before the kernel gets buffers of another size than it fills or reads."""
    sizes = _sizes(found)
    if sizes != SIZES:
        raise OtherLayoutError(
            "use the control entry", found.path,
            f"it is of another layout: keys of {sizes[0]} bytes and values of {sizes[1]} instead of {SIZES[0]} and "
            f"{SIZES[1]}",
            "Use the release of the collection that loaded the datapath; rollback.yml and site.yml know how.",
        )  # fmt: skip


def _sizes(found: PinnedMap) -> tuple[int, int]:
    return found.info.key_size, found.info.value_stride


def known_flows(pin_dir: str) -> list[dict[str, Any]]:
    """The flows that the datapath has admitted and not seen end: key and value in one dict."""
    with opened(f"{pin_dir}/flows") as found:
        if found and (found.info.key_size, found.info.value_size) != (_FLOW_KEY.size, _FLOW.size):
            return []  # of another layout: only its own release knows which of them are live
        entries = found.read(_FLOW.total) if found else {}
    flows = ({**_FLOW_KEY.decode(key), **_FLOW.decode(value)} for key, value in entries.items())
    return [flow for flow in flows if not flow["ended"]]
