# SPDX-License-Identifier: GPL-3.0-or-later
"""The loaded datapath's control entry and its flows."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils import _bpf_syscall as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._codec import Codec
from ansible_collections.ebpf.overlay.plugins.module_utils._errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._layout import SCHEMAS
from ansible_collections.ebpf.overlay.plugins.module_utils._maps import opened
from ansible_collections.ebpf.overlay.plugins.module_utils._plan_mode import NANOSECONDS, Control, SetControl

KEY = bytes(4)
CONTROL = Codec(SCHEMAS["control"][1], "value")
_FLOW_KEY, _FLOW = (Codec(schema, what) for schema, what in zip(SCHEMAS["flows"], ("key", "value")))
_CLOCK_MONOTONIC_COARSE = 6  # include/uapi/linux/time.h; its resolution is one jiffy


def jiffies_per_second() -> int:
    """What the datapath counts time in."""
    return round(1 / time.clock_getres(_CLOCK_MONOTONIC_COARSE))


def read_control(pin_dir: str) -> Control | None:
    """None while no datapath is loaded. Raises :class:`OverlayError`."""
    with opened(f"{pin_dir}/control") as found:
        if found is None:
            return None
        value = CONTROL.decode(bpf.map_lookup(found.fd, KEY, CONTROL.size) or bytes(CONTROL.size))
        return Control(**value)


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
        try:
            bpf.map_update(found.fd, KEY, CONTROL.encode(value))
        except OSError as error:
            raise OverlayError("set the mode", path, error, "Run as root (become: true).") from error


def known_flows(pin_dir: str) -> list[dict[str, Any]]:
    """The flows that the datapath has admitted and not seen end: key and value in one dict."""
    with opened(f"{pin_dir}/flows") as found:
        entries = found.read(_FLOW.total) if found else {}
    flows = ({**_FLOW_KEY.decode(key), **_FLOW.decode(value)} for key, value in entries.items())
    return [flow for flow in flows if not flow["ended"]]
