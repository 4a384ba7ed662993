# SPDX-License-Identifier: GPL-3.0-or-later
"""Generations and histories to try things on."""

from __future__ import annotations

from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._generations import model
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.model import Attempt, Generation, History

CALLS: tuple[dict[str, Any], ...] = (
    {"module": "bpffs", "arguments": {}},
    {
        "module": "bpf_map_sync",
        "arguments": {
            "map": "/p/ifindex_map",
            "entries": [
                {"key": "10.0.0.1", "value": {"ifindex": 5, "flags": 0}},
                {"key": "10.0.0.2", "value": {"ifindex": 6, "flags": 0}},
            ],
        },
    },
    {"module": "bpf_map_sync", "arguments": {"map": "/p/devices", "entries": [{"key": 5, "value": 5}]}},
    {
        "module": "tc_bpf_attach",
        "arguments": {"attachments": [{"interface": "cali5"}, {"interface": "cali6"}], "purge": True},
    },
)


def calls_of(number: int) -> tuple[model.Call, ...]:
    return (*CALLS, {"module": "overlay_mode", "arguments": {"mode": "on", "generation": number}})


def digest(number: int) -> str:
    return model.digest_of(calls_of(number))


def generation(number: int, former: int) -> Generation:
    return Generation(number, former, digest(number), "now", calls_of(number), {"cali5": 5, "cali6": 6})


def history(*numbers: int, confirmed: int, attempt: Attempt | None = None, by: str = "by") -> History:
    return History({n: generation(n, n - 1) for n in numbers}, confirmed, by, attempt)


def attempt(number: int, former: int) -> Attempt:
    return Attempt(f"a{number}", number, former, 0, "boot")
