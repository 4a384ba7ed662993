# SPDX-License-Identifier: GPL-3.0-or-later
"""What the datapath knows of single flows: whether it admitted them, and how many packets left the kernel's path.

Processors count packets in the map ``recent``, in a slot for each direction of a flow that a hash of its key gives. Two
flows may share a slot; then it tells of the one that used it last.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils import _bpf_syscall as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._codec import Codec
from ansible_collections.ebpf.overlay.plugins.module_utils._errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._layout import DIRECTIONS, SCHEMAS
from ansible_collections.ebpf.overlay.plugins.module_utils._maps import PinnedMap, opened

_KEY, _FLOW = (Codec(schema, what) for schema, what in zip(SCHEMAS["flows"], ("key", "value")))
_RECENT = Codec(SCHEMAS["recent"][1], "value")
_TCP = 6
_MASK = (1 << 64) - 1
COUNTED = ("to_workload", "to_uplink")
"""What a packet that came from DIRECTIONS is counted as."""


def flow_key(flow: Mapping[str, Any]) -> bytes:
    """``workload, workload_port, remote, remote_port`` -> the key of the map ``flows``."""
    ends = {name: flow[name] for name in ("workload", "workload_port", "remote", "remote_port")}
    return _KEY.encode({**ends, "protocol": _TCP})


def ports_of(key: bytes, direction: int) -> int:
    """As they stand in the packets of this direction: source, destination."""
    one, other = (int.from_bytes(key[at : at + 2], sys.byteorder) for at in ((32, 34) if direction else (34, 32)))
    return other << 16 | one


def bucket_of(key: bytes, direction: int, buckets: int) -> int:
    """The slot of a direction (its place in DIRECTIONS) of a flow: bucket_of() in ways.h. ``buckets``: how many."""
    halves = [int.from_bytes(key[at : at + 8], sys.byteorder) for at in (0, 8, 16, 24)]
    workload, remote = halves[0] ^ halves[1], halves[2] ^ halves[3]
    source, destination = (workload, remote) if direction else (remote, workload)
    hashed = (source ^ destination >> 7 ^ ports_of(key, direction)) * 0x9E3779B97F4A7C15 & _MASK
    return hashed >> (64 - (buckets.bit_length() - 1))


def read_flows(pin_dir: str, flows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each flow: its ends, ``admitted``, ``interface`` (that of the workload, its number; 0 where it was not
    admitted), and how many packets took the fast path ``to_workload`` and ``to_uplink``.

    Nothing was admitted where no datapath is loaded. Raises :class:`OverlayError`.
    """
    with opened(f"{pin_dir}/flows") as known, opened(f"{pin_dir}/recent") as recent:
        if known is None or recent is None:
            return [_told(flow, None, (0, 0)) for flow in flows]
        _check(known, _KEY.size, _FLOW.size)
        _check(recent, 4, _RECENT.size)
        found = []
        for flow in flows:
            key = flow_key(flow)
            counts = tuple(_count(recent, key, direction) for direction in range(len(DIRECTIONS)))
            found.append(_told(flow, bpf.map_lookup(known.fd, key, _FLOW.size), counts))
        return found


def read_counters(pin_dir: str) -> dict[str, int]:
    """Packets by ``direction.reason``, without zeros; nothing where no datapath is loaded. Raises OverlayError."""
    key, value = (Codec(schema, what) for schema, what in zip(SCHEMAS["stats"], ("key", "value")))
    with opened(f"{pin_dir}/stats") as found:
        if found is None:
            return {}
        _check(found, key.size, value.size)
        counted = {key.decode(raw): value.decode(held)["packets"] for raw, held in found.read(value.total).items()}
    return {label: packets for label, packets in counted.items() if packets}


def _told(flow: Mapping[str, Any], value: bytes | None, counts: tuple[int, ...]) -> dict[str, Any]:
    interface = _FLOW.decode(value)["ways[0]"]["out"] if value else 0
    return {**flow, "admitted": value is not None, "interface": interface, **dict(zip(COUNTED, counts))}


def _count(recent: PinnedMap, key: bytes, direction: int) -> int:
    """Packets of this direction of the flow, over all processors."""
    stride, size = recent.info.value_stride, _RECENT.size
    slot = bucket_of(key, direction, recent.info.max_entries).to_bytes(4, sys.byteorder)
    raw = bpf.map_lookup(recent.fd, slot, stride) or b""
    copies = (raw[at : at + size] for at in range(0, len(raw), (size + 7) // 8 * 8))
    mine = (_RECENT.decode(copy) for copy in copies if copy.endswith(key))
    return sum(int(one["packets"]) for one in mine if one["ports"] == ports_of(key, direction))


def _check(found: PinnedMap, key_size: int, value_size: int) -> None:
    seen = found.info.key_size, found.info.value_size
    if seen != (key_size, value_size):
        raise OverlayError(
            "read what the datapath knows of a flow",
            found.path,
            f"keys and values have {seen[0]} and {seen[1]} bytes, not {key_size} and {value_size}",
            "Another version of the collection loaded it: run site.yml.",
        )
