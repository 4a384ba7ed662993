# SPDX-License-Identifier: GPL-3.0-or-later
"""Workloads that the reference plugin ``ptp`` of the Container Network Interface adds and removes, with addresses by
``host-local``: interfaces are called ``veth…``, and each workload has its own gateway, an address of its node."""

from __future__ import annotations

import json
import os
from typing import Any

from .. import links, paths
from ..cluster import NodePlan, WorkloadPlan
from ..namespace import path_of
from . import direct

PLUGINS = "/usr/lib/cni"  # where Debian has them


class Wired(direct.Wired):
    tools = {f"{PLUGINS}/ptp": "containernetworking-plugins"}
    variables = {"overlay_workload_interfaces": ["veth*"]}

    def add_workload(self, node: NodePlan, workload: WorkloadPlan, ipr: Any) -> None:
        del ipr
        links.script_in(workload.name, "ip link set lo up")
        cni("DEL", node, workload)  # of a node that lost its power, as the kubelet does
        cni("ADD", node, workload)

    def host_interface(self, node: str, workload: WorkloadPlan) -> str:
        return direct.link_of_route(node, workload.ipv4)


def cni(command: str, node: NodePlan, workload: WorkloadPlan) -> dict[str, Any]:
    """ADD or DEL, as a container runtime does it: the plugin runs in the node's network. Returns its result.

    Raises LabError with what the plugin said.
    """
    ranges = [[{"subnet": node.pods_ipv4}], [{"subnet": node.pods_ipv6}]]
    configuration = {
        "cniVersion": "1.0.0",
        "name": node.name,
        "type": "ptp",
        "ipMasq": False,  # the lab's own packet filter does
        "mtu": Wired.workload_mtu,
        "ipam": {
            "type": "host-local",
            "ranges": ranges,
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            "dataDir": str(paths.RUN_DIR / "cni"),
        },
        "args": {"cni": {"ips": [workload.ipv4, workload.ipv6]}},
    }
    environment = {
        "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin",
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": workload.name,
        "CNI_NETNS": str(path_of(workload.name)),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": PLUGINS,
    }
    said = links.run_in(node.name, [f"{PLUGINS}/ptp"], json.dumps(configuration), environment)
    return json.loads(said) if said else {}
