# SPDX-License-Identifier: GPL-3.0-or-later
"""Seconds that pass at once: every time that the datapath has noted becomes older."""

from __future__ import annotations

from typing import Any

from prog.datapath import Datapath

from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf

TIMES = {"proven", "asked", "seen", "since", "there"}


def let_pass(overlay: Datapath, seconds: float) -> None:
    jiffies = int(seconds * overlay.second)
    for table in ("flows", "pending", "pending_out", "trials"):
        for key, value in overlay.entries(table):
            overlay.put(table, key, _older(value, jiffies))
    _memory(overlay, jiffies)


def _older(value: Any, jiffies: int) -> Any:
    """0 stands for no time at all."""
    return {
        name: _older(inner, jiffies)
        if isinstance(inner, dict)
        else (inner - jiffies) % 2**64
        if name in TIMES and inner
        else inner
        for name, inner in value.items()
    }


def _memory(overlay: Datapath, jiffies: int) -> None:
    """What each processor remembers."""
    descriptor, (key, value) = overlay.object.descriptors["recent"], overlay.codecs["recent"]
    stride = bpf.map_info(descriptor).value_stride
    size = (value.size + 7) // 8 * 8
    empty = bytes(stride)
    for keys, values in bpf.map_lookup_batch(descriptor, key.size, stride):
        for at in range(len(keys) // key.size):
            raw = values[at * stride :][:stride]
            if raw == empty:
                continue
            old = [raw[place : place + size] for place in range(0, stride, size)]
            new = b"".join(
                value.encode(_older(value.decode(one[: value.size]), jiffies)).ljust(size, b"\0") for one in old
            )
            bpf.map_update(descriptor, keys[at * key.size :][: key.size], new)
