# SPDX-License-Identifier: GPL-3.0-or-later
"""Workloads of other nodes by VXLAN, as Calico does it: a device without learning for each family, whose neighbours and
forwarding entries are all static, an address of the pod range on it, and routes ``onlink`` by way of the far one's."""

from __future__ import annotations

from typing import Any

from .. import links
from ..cluster import UPLINK, ClusterPlan, NodePlan
from . import direct

DEVICES = {4: "vxlan.calico", 6: "vxlan-v6.calico"}
# 50 and 70 bytes of headers less than the fabric's. Calico gives workloads the smaller one where both families are on.
MTU = {4: 1450, 6: 1430}


class Wired(direct.Wired):
    workload_mtu = min(MTU.values())

    def route(self, cluster: ClusterPlan, node: NodePlan, ipr: Any) -> None:
        direct.keep_pods(node, ipr)
        links.script_in(node.name, "".join(_device(node, family) + _ways(cluster, node, family) for family in (4, 6)))


def _device(node: NodePlan, family: int) -> str:
    device, length = DEVICES[family], {4: 32, 6: 128}[family]
    return f"""
        ip link add {device} address {_mac(node, family)} mtu {MTU[family]} type vxlan \\
            id 4096 dstport 4789 nolearning local {_underlay(node, family)} dev {UPLINK}
        ip address add {_address(node, family)}/{length} dev {device}
        ip link set {device} up"""


def _ways(cluster: ClusterPlan, node: NodePlan, family: int) -> str:
    device = DEVICES[family]
    lines = ""
    for other in cluster.others(node):
        far, mac = _address(other, family), _mac(other, family)
        pods = other.pods_ipv4 if family == 4 else other.pods_ipv6
        lines += f"""
        bridge fdb add {mac} dev {device} dst {_underlay(other, family)}
        ip neighbour add {far} lladdr {mac} dev {device} nud permanent
        ip route add {pods} via {far} dev {device} onlink proto 80"""  # Felix's own number
    return lines


def _underlay(node: NodePlan, family: int) -> str:
    return node.ipv4 if family == 4 else node.ipv6


def _address(node: NodePlan, family: int) -> str:
    return f"10.244.{node.number}.1" if family == 4 else f"fd00:10:244:{node.number}::1"


def _mac(node: NodePlan, family: int) -> str:
    return f"66:18:00:00:{family:02x}:{node.number:02x}"
