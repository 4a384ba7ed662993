# SPDX-License-Identifier: GPL-3.0-or-later
"""The plain wiring: one Ethernet uplink for each node, a route by way of it to each other node's workloads, and
workloads as Calico wires them. What other wirings do not say otherwise is so there too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .. import links
from ..cluster import (
    FABRIC,
    FABRIC_BRIDGE,
    FABRIC_IPV4,
    FABRIC_IPV6,
    UPLINK,
    WORKLOAD_GATEWAY_IPV4,
    WORKLOAD_GATEWAY_IPV6,
    WORKLOAD_GATEWAY_MAC,
    ClusterPlan,
    NodePlan,
    WorkloadPlan,
)
from ..namespace import set_sysctls


class Wired:
    """What the rest of the lab asks of a wiring. ``ipr`` is a connection to the node's namespace (pyroute2).

    ``tools``: tool -> Debian package, beside those that every lab needs. ``variables``: for the inventory.
    ``uplinks``: the devices by which packets leave the cluster. ``workload_mtu``: in bytes.
    """

    tools: Mapping[str, str] = {}
    variables: Mapping[str, Any] = {}
    uplinks: tuple[str, ...] = (UPLINK,)
    workload_mtu = 1500

    def build_fabric(self, cluster: ClusterPlan, ipr: Any) -> None:
        """How others reach the workloads: ``ipr`` is the fabric's, which has its bridge and addresses."""
        index = links.index_of(ipr, FABRIC_BRIDGE)
        for node in cluster.nodes:
            ipr.route("add", dst=node.pods_ipv4, gateway=node.ipv4, proto=links.PROTO_BOOT)
            ipr.route("add", dst=node.pods_ipv6, gateway=node.ipv6, oif=index, proto=links.PROTO_BOOT)

    def connect(self, node: NodePlan, ipr: Any) -> None:
        """The node's links to the fabric, its addresses and its default routes."""
        plug(node)
        uplink = links.set_up(ipr, UPLINK)
        links.add_address(ipr, uplink, node.ipv4, 24)
        links.add_address(ipr, uplink, node.ipv6, 64)
        ipr.route("add", dst="default", gateway=FABRIC_IPV4, oif=uplink, proto=links.PROTO_BOOT)
        ipr.route("add", dst="::/0", gateway=FABRIC_IPV6, oif=uplink, proto=links.PROTO_BOOT)

    def route(self, cluster: ClusterPlan, node: NodePlan, ipr: Any) -> None:
        """The node's routes to workloads of all nodes, its own included."""
        uplink = links.index_of(ipr, self.uplinks[0])
        keep_pods(node, ipr)
        for other in cluster.others(node):
            ipr.route("add", dst=other.pods_ipv4, gateway=other.ipv4, oif=uplink, proto=links.PROTO_BIRD)
            ipr.route("add", dst=other.pods_ipv6, gateway=other.ipv6, oif=uplink, proto=links.PROTO_BIRD)

    def add_workload(self, node: NodePlan, workload: WorkloadPlan, ipr: Any) -> None:
        """The workload's interface, in its namespace and on its node.

        As Calico's CNI plugin and Felix do it: addresses are /32 and /128, the default route leads to a link-local
        gateway that the host side answers for, and the host has one route per workload address.
        """
        host_side = workload.host_interface
        ipr.link(
            "add",
            ifname=host_side,
            kind="veth",
            address=WORKLOAD_GATEWAY_MAC,
            mtu=self.workload_mtu,
            peer={
                "ifname": "eth0",
                "address": workload.mac,
                "mtu": self.workload_mtu,
                "net_ns_fd": workload.name,
            },
        )
        set_sysctls(
            node.name,
            {
                f"ipv4/conf/{host_side}/proxy_arp": 1,
                f"ipv4/neigh/{host_side}/proxy_delay": 0,
                f"ipv4/conf/{host_side}/rp_filter": 1,
                f"ipv4/conf/{host_side}/route_localnet": 1,
                f"ipv6/conf/{host_side}/proxy_ndp": 1,
            },
        )
        with links.talking_to(workload.name) as inside:
            links.set_up(inside, "lo")
            eth0 = links.set_up(inside, "eth0")
            host_index = links.set_up(ipr, host_side)
            links.add_address(inside, eth0, workload.ipv4, 32)
            links.add_address(inside, eth0, workload.ipv6, 128)
            gateway = f"{WORKLOAD_GATEWAY_IPV4}/32"
            inside.route("add", dst=gateway, oif=eth0, scope=links.SCOPE_LINK, proto=links.PROTO_BOOT)
            inside.route("add", dst="default", gateway=WORKLOAD_GATEWAY_IPV4, oif=eth0, proto=links.PROTO_BOOT)
            inside.route("add", dst="::/0", gateway=WORKLOAD_GATEWAY_IPV6, oif=eth0, proto=links.PROTO_BOOT)
        ipr.route("add", dst=f"{workload.ipv4}/32", oif=host_index, scope=links.SCOPE_LINK, proto=links.PROTO_BOOT)
        ipr.route("add", dst=f"{workload.ipv6}/128", oif=host_index, proto=links.PROTO_BOOT)

    def host_interface(self, node: str, workload: WorkloadPlan) -> str:
        """The workload's interface on the running node (its name)."""
        del node
        return workload.host_interface

    def processes(self, cluster: ClusterPlan, node: NodePlan) -> dict[str, list[str]]:
        """Name -> command of what runs in the node's network as long as the node does."""
        del cluster, node
        return {}

    def awaited(self, cluster: ClusterPlan) -> str:
        """What the wiring itself still has to bring about once all runs, in a few words; empty for nothing."""
        del cluster
        return ""


def plug(node: NodePlan) -> None:
    """The veth pair between the fabric's bridge and the node's uplink."""
    with links.talking_to(FABRIC) as fabric:
        fabric.link(
            "add",
            ifname=node.fabric_port,
            kind="veth",
            address=node.fabric_port_mac,
            peer={"ifname": UPLINK, "address": node.mac, "net_ns_fd": node.name},
        )
        set_sysctls(FABRIC, {f"ipv6/conf/{node.fabric_port}/disable_ipv6": 1})
        links.set_up(fabric, node.fabric_port, master=links.index_of(fabric, FABRIC_BRIDGE))


def keep_pods(node: NodePlan, ipr: Any) -> None:
    """As BIRD does for a node's own block: an address without a workload is not sent to the gateway."""
    ipr.route("add", dst=node.pods_ipv4, type="blackhole", proto=links.PROTO_BIRD)
    ipr.route("add", dst=node.pods_ipv6, type="blackhole", proto=links.PROTO_BIRD)


def link_of_route(node: str, address: str) -> str:
    """The device of the node's route to exactly that address."""
    family = ["-6"] if ":" in address else []
    listed = json.loads(links.run_in(node, ["ip", *family, "-j", "route", "show", address]) or "[]")
    return str(listed[0]["dev"]) if listed else ""
