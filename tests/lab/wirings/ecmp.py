# SPDX-License-Identifier: GPL-3.0-or-later
"""Two uplinks on each node, in two networks, and two next hops on every route that leads to other nodes.

``net.ipv4.fib_multipath_hash_policy`` is 1 (by ports too); 0 (by addresses) can be set at any time.
"""

from __future__ import annotations

from typing import Any

from .. import links
from ..cluster import FABRIC, FABRIC_IPV4, FABRIC_IPV6, UPLINK, ClusterPlan, NodePlan
from ..namespace import set_sysctls
from . import direct

SECOND = "ens47f2"
_BRIDGE = "br1"
_FABRIC_IPV4 = "198.18.1.1"
_FABRIC_IPV6 = "fd00:198:18:1::1"


class Wired(direct.Wired):
    uplinks = (UPLINK, SECOND)

    def build_fabric(self, cluster: ClusterPlan, ipr: Any) -> None:
        del ipr
        hash_by_ports(FABRIC)
        script = f"""
            ip link add {_BRIDGE} address 02:18:00:01:00:01 type bridge mcast_snooping 0
            ip link set {_BRIDGE} up
            ip address add {_FABRIC_IPV4}/24 dev {_BRIDGE}
            ip address add {_FABRIC_IPV6}/64 dev {_BRIDGE} nodad"""
        for node in cluster.nodes:
            script += _routes(node, f"br0 {_BRIDGE}", "boot")
        links.script_in(FABRIC, script)

    def connect(self, node: NodePlan, ipr: Any) -> None:
        del ipr
        hash_by_ports(node.name)
        direct.plug(node)
        second_ipv4, second_ipv6 = _second(node)
        links.script_in(
            FABRIC,
            f"""
            ip link add {node.fabric_ports[1]} address 02:18:00:01:02:{node.number:02x} type veth \\
                peer name {SECOND} address 02:18:00:01:01:{node.number:02x} netns {node.name}
            ip link set {node.fabric_ports[1]} up master {_BRIDGE}""",
        )
        links.script_in(
            node.name,
            f"""
            ip link set {UPLINK} up; ip link set {SECOND} up
            ip address add {node.ipv4}/24 dev {UPLINK}; ip address add {node.ipv6}/64 dev {UPLINK} nodad
            ip address add {second_ipv4}/24 dev {SECOND}; ip address add {second_ipv6}/64 dev {SECOND} nodad
            ip route add default nexthop via {FABRIC_IPV4} dev {UPLINK} nexthop via {_FABRIC_IPV4} dev {SECOND}
            ip route add ::/0 nexthop via {FABRIC_IPV6} dev {UPLINK} nexthop via {_FABRIC_IPV6} dev {SECOND}""",
        )

    def route(self, cluster: ClusterPlan, node: NodePlan, ipr: Any) -> None:
        direct.keep_pods(node, ipr)
        for other in cluster.others(node):
            links.script_in(node.name, _routes(other, f"{UPLINK} {SECOND}", "bird"))


def hash_by_ports(name: str, policy: int = 1) -> None:
    """``policy`` 0: by addresses alone."""
    set_sysctls(name, {f"{family}/fib_multipath_hash_policy": policy for family in ("ipv4", "ipv6")})


def _second(node: NodePlan) -> tuple[str, str]:
    return f"198.18.1.{10 + node.number}", f"fd00:198:18:1::{10 + node.number}"


def _routes(node: NodePlan, devices: str, protocol: str) -> str:
    """Commands for the routes to a node's workloads by way of both of its uplinks."""
    one, two = devices.split()
    second_ipv4, second_ipv6 = _second(node)
    ways = ((node.pods_ipv4, node.ipv4, second_ipv4), (node.pods_ipv6, node.ipv6, second_ipv6))
    return "".join(
        f"\nip route add {pods} proto {protocol} nexthop via {first} dev {one} nexthop via {second} dev {two}"
        for pods, first, second in ways
    )
