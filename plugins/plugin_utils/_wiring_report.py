# SPDX-License-Identifier: GPL-3.0-or-later
"""What the plans of a run found on the nodes, in a few lines: nodes that are wired alike share one. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.wiring import counted, uplink_text
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.workloads import some

Wiring = Mapping[str, Any]


def wiring_report(wirings: Mapping[str, Wiring]) -> list[str]:
    """Name of a node -> what :func:`_wiring.describe` returned for it -> lines of text."""
    return alike(wirings) + [f"{name}: {line}" for name, wiring in wirings.items() for line in kernel_path(wiring)]


def alike(wirings: Mapping[str, Wiring]) -> list[str]:
    """A line for each kind of wiring: uplinks and why, links left out, peers."""
    found: dict[str, list[str]] = {}
    for name, wiring in wirings.items():
        found.setdefault(_links(wiring), []).append(name)
    return [f"{links}{_peers([wirings[name] for name in names])}: {some(names)}" for links, names in found.items()]


def kernel_path(wiring: Wiring) -> list[str]:
    """A line for each reason for which workloads can never take the fast path."""
    reasons: dict[str, list[str]] = {}
    for one in wiring["kernel_path"]:
        reasons.setdefault(one["reason"], []).append(one["address"])
    return [f"the kernel's path for {some(addresses)}: {reason}" for reason, addresses in reasons.items()]


def _links(wiring: Wiring) -> str:
    found = wiring["uplinks"]
    told = f"uplink{'s' if len(found) > 1 else ''} " + ", ".join(uplink_text(one, numbers=False) for one in found)
    left_out = ", ".join(f"{one['name']} ({one['reason']})" for one in wiring["links_left_out"])
    return (told if found else "NO UPLINK") + (f"; left out {left_out}" if left_out else "")


def _peers(wirings: list[Wiring]) -> str:
    counts = [wiring["peers"] for wiring in wirings if wiring["peers"]]
    if not counts:
        return ""
    kinds = ("addresses", "prefixes")
    return "; peers: " + " and ".join(counted(_range([count[kind] for count in counts]), kind) for kind in kinds)


def _range(numbers: list[int]) -> str:
    least, most = min(numbers), max(numbers)
    return str(most) if least == most else f"{least} to {most}"
