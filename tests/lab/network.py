# SPDX-License-Identifier: GPL-3.0-or-later
"""Namespaces and wiring: the fabric, the nodes' uplinks, and workloads as Calico wires them. Built with pyroute2.

No interface ever exists outside our namespaces: each veth pair is created inside one with its peer inside another.
All MACs are fixed, so that a rebuilt node is reachable at once and not after a neighbour entry has aged.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from pyroute2 import IPRoute, netns

from . import filterrules
from .cluster import (
    FABRIC,
    FABRIC_BRIDGE,
    FABRIC_IPV4,
    FABRIC_IPV6,
    FABRIC_MAC,
    UPLINK,
    WORKLOAD_GATEWAY_IPV4,
    WORKLOAD_GATEWAY_IPV6,
    WORKLOAD_GATEWAY_MAC,
    ClusterPlan,
    NodePlan,
    WorkloadPlan,
)
from .namespace import path_of, set_sysctls

SCOPE_LINK = 253
PROTO_BOOT = 3
PROTO_BIRD = 12
IFA_F_NODAD = 0x02

# Duplicate address detection delays every address by a second and finds nothing here.
_EVERY_NAMESPACE = {
    "ipv6/conf/all/accept_dad": 0,
    "ipv6/conf/default/accept_dad": 0,
    "ipv6/conf/default/dad_transmits": 0,
    "ipv6/conf/default/accept_ra": 0,
    "ipv6/conf/default/router_solicitations": 0,
    "ipv4/conf/all/rp_filter": 0,
    "ipv4/conf/default/rp_filter": 0,
}
_ROUTER = {"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1, "ipv6/conf/default/forwarding": 1}
# Byte counts per connection, for the proof that a bypassed flow's bytes were not seen.
_NODE = {**_ROUTER, "netfilter/nf_conntrack_acct": 1}


def _index(ipr: IPRoute, interface: str) -> int:
    found = ipr.link_lookup(ifname=interface)
    if not found:
        raise LookupError(f"no interface {interface}")
    return int(found[0])


def _up(ipr: IPRoute, interface: str, **attributes: Any) -> int:
    index = _index(ipr, interface)
    ipr.link("set", index=index, state="up", **attributes)
    return index


def _address(ipr: IPRoute, index: int, address: str, length: int) -> None:
    flags = {"flags": IFA_F_NODAD} if ":" in address else {}
    ipr.addr("add", index=index, address=address, prefixlen=length, **flags)


def _new_namespace(name: str, sysctls: dict[str, int]) -> None:
    netns.create(name)
    set_sysctls(name, {**_EVERY_NAMESPACE, **sysctls})


def destroy_namespace(name: str) -> bool:
    """Remove the namespace's name; its interfaces go as soon as no process holds it. False if there was none."""
    try:
        netns.remove(name)
    except FileNotFoundError:
        return False
    except OSError:
        # Created but not yet mounted, when the lab that made it was killed between the two.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path_of(name))
    return True


def build_fabric(cluster: ClusterPlan) -> None:
    """The underlay switch: a bridge with the gateway's addresses, and routes to the pod ranges through the nodes."""
    _new_namespace(FABRIC, _ROUTER)
    with IPRoute(netns=FABRIC) as ipr:
        _up(ipr, "lo")
        # Snooping would drop neighbour discovery until the bridge has seen a querier.
        ipr.link("add", ifname=FABRIC_BRIDGE, kind="bridge", address=FABRIC_MAC, br_mcast_snooping=0)
        index = _up(ipr, FABRIC_BRIDGE)
        _address(ipr, index, FABRIC_IPV4, 24)
        _address(ipr, index, FABRIC_IPV6, 64)
        for node in cluster.nodes:
            ipr.route("add", dst=node.pods_ipv4, gateway=node.ipv4, proto=PROTO_BOOT)
            ipr.route("add", dst=node.pods_ipv6, gateway=node.ipv6, oif=index, proto=PROTO_BOOT)


def build_node(cluster: ClusterPlan, node: NodePlan) -> None:
    """The node's namespace, its uplink on the fabric, its routes, its workloads and its packet filter."""
    _new_namespace(node.name, _NODE)
    with IPRoute(netns=FABRIC) as fabric:
        fabric.link(
            "add",
            ifname=node.fabric_port,
            kind="veth",
            address=node.fabric_port_mac,
            peer={"ifname": UPLINK, "address": node.mac, "net_ns_fd": node.name},
        )
        set_sysctls(FABRIC, {f"ipv6/conf/{node.fabric_port}/disable_ipv6": 1})
        _up(fabric, node.fabric_port, master=_index(fabric, FABRIC_BRIDGE))
    with IPRoute(netns=node.name) as ipr:
        _up(ipr, "lo")
        uplink = _up(ipr, UPLINK)
        _address(ipr, uplink, node.ipv4, 24)
        _address(ipr, uplink, node.ipv6, 64)
        ipr.route("add", dst="default", gateway=FABRIC_IPV4, oif=uplink, proto=PROTO_BOOT)
        ipr.route("add", dst="::/0", gateway=FABRIC_IPV6, oif=uplink, proto=PROTO_BOOT)
        for other in cluster.nodes:
            if other.number == node.number:
                # As BIRD does for a node's own block: an address without a workload is not sent to the gateway.
                ipr.route("add", dst=node.pods_ipv4, type="blackhole", proto=PROTO_BIRD)
                ipr.route("add", dst=node.pods_ipv6, type="blackhole", proto=PROTO_BIRD)
            else:
                ipr.route("add", dst=other.pods_ipv4, gateway=other.ipv4, oif=uplink, proto=PROTO_BIRD)
                ipr.route("add", dst=other.pods_ipv6, gateway=other.ipv6, oif=uplink, proto=PROTO_BIRD)
        for workload in node.workloads:
            build_workload(ipr, node, workload)
    filterrules.install(cluster, node)


def build_workload(ipr: IPRoute, node: NodePlan, workload: WorkloadPlan) -> None:
    """The workload's namespace and its veth into the node that ``ipr`` talks to.

    As Calico's CNI plugin and Felix do it: addresses are /32 and /128, the default route leads to a link-local
    gateway that the host side answers for, and the host has one route per workload address.
    """
    host_side = workload.host_interface
    _new_namespace(workload.name, {})
    ipr.link(
        "add",
        ifname=host_side,
        kind="veth",
        address=WORKLOAD_GATEWAY_MAC,
        peer={"ifname": "eth0", "address": workload.mac, "net_ns_fd": workload.name},
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
    with IPRoute(netns=workload.name) as inside:
        _up(inside, "lo")
        eth0 = _up(inside, "eth0")
        host_index = _up(ipr, host_side)
        _address(inside, eth0, workload.ipv4, 32)
        _address(inside, eth0, workload.ipv6, 128)
        inside.route("add", dst=f"{WORKLOAD_GATEWAY_IPV4}/32", oif=eth0, scope=SCOPE_LINK, proto=PROTO_BOOT)
        inside.route("add", dst="default", gateway=WORKLOAD_GATEWAY_IPV4, oif=eth0, proto=PROTO_BOOT)
        inside.route("add", dst="::/0", gateway=WORKLOAD_GATEWAY_IPV6, oif=eth0, proto=PROTO_BOOT)
    ipr.route("add", dst=f"{workload.ipv4}/32", oif=host_index, scope=SCOPE_LINK, proto=PROTO_BOOT)
    ipr.route("add", dst=f"{workload.ipv6}/128", oif=host_index, proto=PROTO_BOOT)


def destroy_node(node: NodePlan) -> None:
    """Remove the namespaces of a node and its workloads, as a reboot of the machine would."""
    for workload in node.workloads:
        destroy_namespace(workload.name)
    destroy_namespace(node.name)
    # A namespace dies some time after its name: the port must be free for the next uplink now.
    with IPRoute(netns=FABRIC) as fabric:
        for index in fabric.link_lookup(ifname=node.fabric_port):
            fabric.link("del", index=index)
