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
from ansible_collections.ebpf.overlay.plugins.module_utils._maps import PinnedMap, opened
from ansible_collections.ebpf.overlay.plugins.module_utils._plan_mode import NANOSECONDS, Control, SetControl

KEY = bytes(4)
CONTROL = Codec(SCHEMAS["control"][1], "value")
_FLOW_KEY, _FLOW = (Codec(schema, what) for schema, what in zip(SCHEMAS["flows"], ("key", "value")))

# A handshake takes a few round trips; what is older was given up.
_HANDSHAKE = 3 * NANOSECONDS


def read_control(pin_dir: str) -> Control | None:
    """None while no datapath is loaded. Raises :class:`OverlayError`."""
    with opened(f"{pin_dir}/control") as found:
        if found is None:
            return None
        _check(found)
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
        _check(found)
        try:
            bpf.map_update(found.fd, KEY, CONTROL.encode(value))
        except OSError as error:
            raise OverlayError("set the mode", path, error, "Run as root (become: true).") from error


def _check(found: PinnedMap) -> None:
    """Raises :class:`OverlayError` before the kernel gets buffers of another size than it fills or reads."""
    sizes, known = (found.info.key_size, found.info.value_stride), (len(KEY), CONTROL.size)
    if sizes != known:
        raise OverlayError(
            "use the control entry", found.path,
            f"it is of another layout: keys of {sizes[0]} bytes and values of {sizes[1]} instead of {known[0]} and "
            f"{known[1]}",
            "Use the release of the collection that loaded the datapath; rollback.yml and site.yml know how.",
        )  # fmt: skip


def known_flows(pin_dir: str, session: int) -> list[dict[str, Any]]:
    """The flows that a mode other than off still redirects: key and value in one dict.

    Established ones, and those whose handshake is under way; a flow that is being closed needs nothing any more.
    """
    return [flow for name in ("flows", "transient") for flow in _flows(f"{pin_dir}/{name}") if _live(flow, session)]


def _flows(path: str) -> list[dict[str, Any]]:
    with opened(path) as found:
        if found and (found.info.key_size, found.info.value_size) != (_FLOW_KEY.size, _FLOW.size):
            return []  # of another layout: only its own release knows which of them are live
        entries = found.read(_FLOW.total) if found else {}
    return [{**_FLOW_KEY.decode(key), **_FLOW.decode(value)} for key, value in entries.items()]


def _live(flow: dict[str, Any], session: int) -> bool:
    if flow["session"] != session or flow["state"] == "closing":
        return False
    return flow["state"] == "established" or time.monotonic_ns() - flow["since"] < _HANDSHAKE
