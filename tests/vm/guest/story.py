# SPDX-License-Identifier: GPL-3.0-or-later
"""What the checks share, and hand on to each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lab.cluster import HTTP_PORT

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import topology
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.layout import PIN_DIR

from .modules import run
from .network import Network, peer_facts

NEIGH, PEER = 1, 2  # as in settings.h
PACKAGES = ["linux-libc-dev", "python3-bpfcc", "python3-pyroute2"]
SERVICES = [{"protocol": "tcp", "port": HTTP_PORT}]


@dataclass
class Story:
    """``expected``: the capabilities of this system. ``bundle``: the packed source of the datapath. ``runtime``: the
    packed modules. ``plan``: what this node must be. ``pristine``: what it was in the beginning."""

    expected: dict[str, Any]
    bundle: str
    runtime: str
    network: Network = field(default_factory=Network)
    plan: dict[str, Any] = field(default_factory=dict)
    pristine: dict[str, Any] = field(default_factory=dict)

    def gather(self) -> dict[str, Any]:
        """Read the facts of this node and make the plan that follows from them; returns the facts."""
        told: dict[str, Any] = run("overlay_facts")["ansible_facts"]["overlay"]
        both = {"here": told, "there": peer_facts()}
        picture = topology.build_picture(both, fresh=both)
        self.plan = topology.plan_node("here", told, picture, SERVICES)
        return told

    def build(self, redirect: int) -> dict[str, Any]:
        """The arguments of ``bpf_object``."""
        defines = {"OVERLAY_REDIRECT": redirect, "OVERLAY_CHECK_MTU": self.expected["check_mtu"]}
        programs = ["from_uplink", "from_workload", "to_uplink", "to_workload"]
        return {"bundle": self.bundle, "pin_dir": PIN_DIR, "programs": programs, "defines": defines}

    def attachments(self) -> dict[str, Any]:
        """Arguments of ``tc_bpf_attach``."""
        return {"attachments": self.plan["attachments"], "purge": True}

    def calls(self) -> list[dict[str, Any]]:
        """The calls of a generation, in the order in which the role makes them."""

        def fill(name: str) -> dict[str, Any]:
            arguments = {"map": f"{PIN_DIR}/{name}", "entries": self.plan["maps"][name], "purge": True}
            return {"module": "bpf_map_sync", "arguments": arguments}

        return [
            {"module": "overlay_packages", "arguments": {"packages": PACKAGES}},
            {"module": "bpffs", "arguments": {}},
            {"module": "bpf_object", "arguments": self.build(NEIGH)},
            *map(fill, ("ifindex_map", "services", "peers")),
            {"module": "overlay_conntrack", "arguments": {}},
            {"module": "tc_bpf_attach", "arguments": self.attachments()},
            fill("devices"),
        ]
