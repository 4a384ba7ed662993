# SPDX-License-Identifier: GPL-3.0-or-later
"""What the datapath knows of single flows: whether it admitted them, and how many packets left the kernel's path.

Each processor counts packets in the map ``recent``, in a slot for each direction of a flow. Flows may share a slot,
which then tells of the one that used it last. All are looked through: which one is whose is the datapath's affair.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._maps.codec import Codec
from ansible_collections.ebpf.overlay.plugins.module_utils._maps.pinned import PinnedMap, opened

from .layout import SCHEMAS

_KEY, _FLOW = (Codec(schema, what) for schema, what in zip(SCHEMAS["flows"], ("key", "value")))
_RECENT = Codec(SCHEMAS["recent"][1], "value")
_TCP = 6
COUNTED = ("to_workload", "to_uplink")


def flow_key(flow: Mapping[str, Any]) -> bytes:
    """``workload, workload_port, remote, remote_port`` -> the key of the map ``flows``."""
    ends = {name: flow[name] for name in ("workload", "workload_port", "remote", "remote_port")}
    return _KEY.encode({**ends, "protocol": _TCP})


def read_flows(pin_dir: str, flows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each flow: its ends, ``admitted``, ``interface`` (that of the workload, its number; 0 where it was not
    admitted), and how many packets took the fast path ``to_workload`` and ``to_uplink``.

    Nothing was admitted where no datapath is loaded. Raises :class:`OverlayError`.
    """
    found = [{**flow, "admitted": False, "interface": 0, **dict.fromkeys(COUNTED, 0)} for flow in flows]
    with opened(f"{pin_dir}/flows") as known, opened(f"{pin_dir}/recent") as recent:
        if known is None or recent is None or not found:
            return found
        _check(known, _KEY.size, _FLOW.size)
        _check(recent, 4, _RECENT.size)
        admitted = {}
        for flow in found:
            key = flow_key(flow)
            value = bpf.map_lookup(known.fd, key, _FLOW.size)
            if value is not None:
                flow.update(admitted=True, interface=_FLOW.decode(value)["ways[0]"]["out"])
                admitted[key] = flow
        for key, record in _records(recent, admitted):
            flow = admitted[key]
            flow[COUNTED[record["in"] == flow["interface"]]] += record["packets"]
    return found


def _records(recent: PinnedMap, keys: Iterable[bytes]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """What all processors remember of these keys. One slot after the other: all of them may be a lot of memory."""
    size = _RECENT.size
    empty = bytes(recent.info.value_stride)
    for _slot, raw in bpf.map_lookup_slots(recent.fd, recent.info.max_entries, recent.info.value_stride):
        for key in () if raw == empty else keys:
            if key not in raw:
                continue
            for at in range(0, len(raw), (size + 7) // 8 * 8):
                record = _RECENT.decode(raw[at : at + size])
                if _KEY.encode(record["key"]) == key:
                    yield key, record


def read_counters(pin_dir: str) -> dict[str, int]:
    """Packets by ``direction.reason``, without zeros; nothing where no datapath is loaded. Raises OverlayError."""
    key, value = (Codec(schema, what) for schema, what in zip(SCHEMAS["stats"], ("key", "value")))
    with opened(f"{pin_dir}/stats") as found:
        if found is None:
            return {}
        _check(found, key.size, value.size)
        counted = {key.decode(raw): value.decode(held)["packets"] for raw, held in found.read(value.total).items()}
    return {label: packets for label, packets in counted.items() if packets}


def _check(found: PinnedMap, key_size: int, value_size: int) -> None:
    seen = found.info.key_size, found.info.value_size
    if seen != (key_size, value_size):
        raise OverlayError(
            "read what the datapath knows of a flow",
            found.path,
            f"keys and values have {seen[0]} and {seen[1]} bytes, not {key_size} and {value_size}",
            "Another version of the collection loaded it: run site.yml.",
        )
