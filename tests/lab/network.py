# SPDX-License-Identifier: GPL-3.0-or-later
"""The namespaces of the fabric, the nodes and the workloads, and what the lab's wiring puts into them.

No interface ever exists outside our namespaces: each veth pair is created inside one with its peer inside another.
All MACs are fixed, so that a rebuilt node is reachable at once and not after a neighbour entry has aged.
"""

from __future__ import annotations

import contextlib
import os

from pyroute2 import netns

from . import filterrules, links, wirings
from .cluster import (
    FABRIC,
    FABRIC_BRIDGE,
    FABRIC_IPV4,
    FABRIC_IPV6,
    FABRIC_MAC,
    ClusterPlan,
    NodePlan,
)
from .namespace import path_of

# Byte counts per connection, for the proof that a bypassed flow's bytes were not seen.
_NODE = {**links.ROUTER, "netfilter/nf_conntrack_acct": 1}


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
    links.new_namespace(FABRIC, links.ROUTER)
    with links.talking_to(FABRIC) as ipr:
        links.set_up(ipr, "lo")
        # Snooping would drop neighbour discovery until the bridge has seen a querier.
        ipr.link("add", ifname=FABRIC_BRIDGE, kind="bridge", address=FABRIC_MAC, br_mcast_snooping=0)
        index = links.set_up(ipr, FABRIC_BRIDGE)
        links.add_address(ipr, index, FABRIC_IPV4, 24)
        links.add_address(ipr, index, FABRIC_IPV6, 64)
        wirings.named(cluster.wiring).build_fabric(cluster, ipr)


def build_node(cluster: ClusterPlan, node: NodePlan) -> None:
    """The node's namespace, its uplink on the fabric, its routes, its workloads and its packet filter."""
    wired = wirings.named(cluster.wiring)
    links.new_namespace(node.name, _NODE)
    with links.talking_to(node.name) as ipr:
        links.set_up(ipr, "lo")
        wired.connect(node, ipr)
        wired.route(cluster, node, ipr)
        for workload in node.workloads:
            links.new_namespace(workload.name, {})
            wired.add_workload(node, workload, ipr)
    filterrules.install(cluster, node, wired.uplinks)


def destroy_node(node: NodePlan) -> None:
    """Remove the namespaces of a node and its workloads, as a reboot of the machine would."""
    for workload in node.workloads:
        destroy_namespace(workload.name)
    destroy_namespace(node.name)
    # A namespace dies some time after its name: the port must be free for the next uplink now.
    with links.talking_to(FABRIC) as fabric:
        for port in node.fabric_ports:
            for index in fabric.link_lookup(ifname=port):
                fabric.link("del", index=index)
