# SPDX-License-Identifier: GPL-3.0-or-later
"""Workloads of other nodes by a link without Ethernet header, as with IPIP and WireGuard: a tun device, and a process
behind it that carries each packet to the other node's by UDP."""

from __future__ import annotations

import json
import sys
from typing import Any

from .. import links
from ..cluster import ClusterPlan, NodePlan
from . import direct, tunnel_carrier

DEVICE = "tunl0"
MTU = 1440  # as Calico sets it for WireGuard


class Wired(direct.Wired):
    workload_mtu = MTU

    def route(self, cluster: ClusterPlan, node: NodePlan, ipr: Any) -> None:
        direct.keep_pods(node, ipr)
        script = f"""
            ip tuntap add {DEVICE} mode tun
            ip address add 10.244.{node.number}.1/32 dev {DEVICE}
            ip address add fd00:10:244:{node.number}::1/128 dev {DEVICE} nodad
            ip link set {DEVICE} up mtu {MTU} txqueuelen 5000"""
        for other in cluster.others(node):
            script += f"""
            ip route add {other.pods_ipv4} via {other.ipv4} dev {DEVICE} onlink proto bird
            ip route add {other.pods_ipv6} dev {DEVICE} proto bird"""
        links.script_in(node.name, script)

    def processes(self, cluster: ClusterPlan, node: NodePlan) -> dict[str, list[str]]:
        ways = {pods: other.ipv4 for other in cluster.others(node) for pods in (other.pods_ipv4, other.pods_ipv6)}
        script = [sys.executable, "-I", "-S", tunnel_carrier.__file__]
        return {f"{node.name}-tunnel": [*script, DEVICE, node.ipv4, json.dumps(ways)]}
