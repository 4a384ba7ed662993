# SPDX-License-Identifier: GPL-3.0-or-later
"""Whoever writes the map `devices` begins an epoch of the place: the role, and whoever restores a generation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from ansible_collections.ebpf.overlay.plugins.filter import cluster

ROLE = Path(__file__).resolve().parents[2] / "roles/node"


def every_task(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for task in tasks for one in (task, *every_task(task.get("block", [])))]


def test_every_write_of_devices_begins_an_epoch() -> None:
    text = (ROLE / "tasks/steps.yml").read_text(encoding="utf-8")
    syncs = [task["ebpf.overlay.bpf_map_sync"] for task in every_task(yaml.safe_load(text))
             if "ebpf.overlay.bpf_map_sync" in task]  # fmt: skip
    (written,) = [sync for sync in syncs if sync["map"].endswith("/devices")]
    assert written["epochs"] == written["map"].replace("/devices", "/device_epochs")

    plan: dict[str, Any] = {
        "maps": dict.fromkeys(("ifindex_map", "services", "peers", "devices"), ()),
        "attachments": (),
    }
    source = str(ROLE / "files/bpf/overlay.c")
    calls = cluster.generation_calls(json.dumps(plan), "/pins", [], source, {}, "auto", True)
    (restored,) = [call["arguments"] for call in calls if call["arguments"].get("map") == "/pins/devices"]
    assert restored["epochs"] == "/pins/device_epochs"
