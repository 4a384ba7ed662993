# SPDX-License-Identifier: GPL-3.0-or-later
"""The facts that a node of a large cluster would have, without the node."""

from __future__ import annotations

import time
from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.topology import FORMAT

WORKLOADS = 30


def address(number: int) -> str:
    return f"198.18.{number >> 8}.{number & 255}"


def pods(number: int) -> str:
    return f"10.{number >> 8}.{number & 255}"


def route(prefix: str, gateway: str | None) -> dict[str, Any]:
    return {"prefix": prefix, "interface": "ens1", "gateway": gateway, "metric": 0, "source": None}


def facts(number: int, nodes: int) -> dict[str, Any]:
    """Of node ``number`` of ``nodes``: one uplink, a route to the pods of each other node."""
    uplink = {
        "name": "ens1",
        "ifindex": 2,
        "mtu": 1500,
        "mac": "02:00:00:00:00:01",
        "addresses": [f"{address(number)}/15"],
        "primary": [address(number)],
    }
    free = {"never_by_peer": "", "may_be_taken": "", "never_admitted": ""}
    workloads = [
        {
            "address": f"{pods(number)}.{index + 1}",
            "interface": f"cali{index:011x}",
            "ifindex": 10 + index,
            "mtu": 1500,
            **free,
        }
        for index in range(WORKLOADS)
    ]
    others = (other for other in range(1, nodes + 1) if other != number)
    return {
        "format": FORMAT,
        "uplinks": [{**uplink, "gateways": ["198.19.255.254"]}],
        "uplinks_by_route": True,
        "workloads": workloads,
        "links_left_out": [],
        "workload_prefixes": [f"{pods(number)}.0/24"],
        "interfaces": [{**uplink, "kind": "", "loopback": False, "up": True, "unfit": ""}],
        "addresses": [address(number)],
        "own_addresses": [address(number)],
        "routes": [
            route("0.0.0.0/0", "198.19.255.254"),
            route("198.18.0.0/15", None),
            *(route(f"{pods(other)}.0/24", address(other)) for other in others),
        ],
        "capabilities": {"supported": True, "redirect_peer_safe": True, "redirect": "peer", "check_mtu": True},
        "package_manager": "apt",
        "identity": {"machine_id": f"{number:032x}", "boot_id": f"boot-{number}"},
        "gathered_at": time.time(),
        "known_peers": [],
    }


class ActionModule(ActionBase):
    """``simulated_facts``: arguments ``number`` and ``nodes``."""

    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        number, nodes = (int(self._task.args[name]) for name in ("number", "nodes"))
        return {**result, "ansible_facts": {"overlay": facts(number, nodes)}}
