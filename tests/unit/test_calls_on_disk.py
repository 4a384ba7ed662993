# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls that earlier releases have written are valid for ever, since newer code takes them from the disk.

Add to CALLS when a generation's calls get another argument. Never change what is there.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.ebpf.overlay.plugins.filter.cluster import already
from ansible_collections.ebpf.overlay.plugins.module_utils._generations import states
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.calls import KINDS
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.model import Generation, digest_of
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.runtime import Runtime
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.store import Store

PINS = "/sys/fs/bpf/ebpf-overlay"
# Of format 2. Release 1.0.0's are made by its own code only.
CALLS: tuple[dict[str, Any], ...] = (
    {"module": "overlay_packages", "arguments": {"packages": ["python3-bpfcc", "linux-libc-dev"]}},
    {"module": "bpffs", "arguments": {}},
    {
        "module": "bpf_object",
        "arguments": {
            "bundle": "eNqrVspNzMxTslJQyi9LLcpJrNRLVqoFAFhXB0U=",
            "pin_dir": PINS,
            "programs": ["from_uplink", "from_workload", "to_uplink", "to_workload"],
            "defines": {"OVERLAY_FLOWS": 65536, "OVERLAY_REDIRECT": 2},
        },
    },
    {
        "module": "bpf_map_sync",
        "arguments": {
            "map": f"{PINS}/ifindex_map",
            "entries": [{"key": "10.244.1.11", "value": {"ifindex": 5, "flags": 0}}],
            "purge": True,
        },
    },
    {
        "module": "bpf_map_sync",
        "arguments": {"map": f"{PINS}/devices", "entries": [{"key": 4711, "value": 5}], "purge": True},
    },
    {"module": "overlay_conntrack", "arguments": {"manage": True}},
    {
        "module": "tc_bpf_attach",
        "arguments": {
            "attachments": [{"interface": "cali5", "direction": "ingress", "program": f"{PINS}/from_workload"}],
            "mechanism": "auto",
            "priority": 0,
            "purge": True,
        },
    },
    {"module": "overlay_mode", "arguments": {"mode": "on", "generation": 1}},
    {"module": "overlay_mode", "arguments": {"mode": "off"}},
    # What takes the overlay off.
    {"module": "tc_bpf_attach", "arguments": {"attachments": [], "purge": True}},
    {"module": "bpf_object", "arguments": {"pin_dir": PINS, "state": "absent"}},
    {
        "module": "bpf_object",
        "arguments": {"bundle": "x", "pin_dir": PINS, "programs": ["from_uplink"], "on_map_change": "replace"},
    },
    {"module": "bpffs", "arguments": {"path": "/sys/fs/bpf", "state": "unmounted", "emptied": [PINS]}},
    {"module": "overlay_conntrack", "arguments": {"state": "absent"}},
)
DIGEST = (
    "8240c9e1109b69ce244046e2066abefd4b5a719d84fb3fb48e4c7359da6c0186"  # of the first two, as release 1.0.0 made it
)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call["module"])
def test_call_of_an_earlier_release_is_valid(call: dict[str, Any]) -> None:
    kind = KINDS[call["module"]]
    checked = ArgumentSpecValidator(dict(kind.spec), required_if=kind.required_if).validate(dict(call["arguments"]))
    assert checked.error_messages == []


def test_digest_of_calls_is_that_of_earlier_releases() -> None:
    """Another way to make it would roll every node out anew after an upgrade."""
    assert digest_of(CALLS[:2]) == DIGEST


@pytest.mark.parametrize("told", [{}, {"format": 2}])
def test_record_without_a_format_is_no_reason_to_roll_out(tmp_path: Path, told: dict[str, int]) -> None:
    """The node is asked nothing; and if it is (its code is another one now), nothing is to be done."""
    record = asdict(Generation(1, 0, digest_of(CALLS), "now", CALLS, {"cali5": 5}))
    folder = tmp_path / "state/generations/1"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({**record, **told}), encoding="utf-8")
    (tmp_path / "state/confirmed.json").write_text(json.dumps({"number": 1, "by": "a1", "left": 0, **told}))
    history = Store(str(tmp_path / "state")).read()
    assert history.generations[1] == Generation(1, 0, digest_of(CALLS), "now", CALLS, {"cali5": 5})
    facts = {"number": history.confirmed, "digest": history.digest, "switched_off": False, "as_confirmed": True}
    assert already(list(CALLS), {"generation": facts}, False)
    params = {"calls": CALLS, "timeout": 1.0, "drain_timeout": 0.0, "enable": False, "gathered_from": None}
    begun = states.Begun(params, Runtime("AAAA"), Store(str(tmp_path / "state")))
    planned = begun.plan(states.Observed(history, was_on=True))
    assert (planned.operations, planned.before) == ((), planned.after)
