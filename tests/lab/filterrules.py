# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's packet filter: what a Kubernetes node does to forwarded packets, as one nftables table.

Loaded from outside with the machine's own ``nft``, so that a fresh node needs no packet filter tools. Read the
counters with ``nft list counters table inet lab`` in the node's namespace.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from .cluster import (
    CLUSTER_IPV4,
    CLUSTER_IPV6,
    HTTP_PORT,
    NODE_PORT,
    POD_SUPERNET_IPV4,
    POD_SUPERNET_IPV6,
    UPLINK,
    ClusterPlan,
    NodePlan,
    WorkloadPlan,
)
from .namespace import path_of
from .paths import LabError

TABLE = "lab"
# forwarded: every packet that reached FORWARD. invalid: dropped there. nodeport, clusterip, masqueraded: connections.
COUNTERS = ("forwarded", "invalid", "established", "new", "nodeport", "clusterip", "masqueraded")


def _node_port(workload: WorkloadPlan) -> list[str]:
    match = f"fib daddr type local tcp dport {NODE_PORT} counter name nodeport"
    return [
        f"meta nfproto ipv4 {match} dnat ip to {workload.ipv4}:{HTTP_PORT}",
        f"meta nfproto ipv6 {match} dnat ip6 to [{workload.ipv6}]:{HTTP_PORT}",
    ]


def _cluster_address(workload: WorkloadPlan) -> list[str]:
    match = f"tcp dport {HTTP_PORT} counter name clusterip"
    return [
        f"ip daddr {CLUSTER_IPV4} {match} dnat ip to {workload.ipv4}:{HTTP_PORT}",
        f"ip6 daddr {CLUSTER_IPV6} {match} dnat ip6 to [{workload.ipv6}]:{HTTP_PORT}",
    ]


def _masquerade(node: NodePlan, uplinks: Sequence[str]) -> list[str]:
    leaving = "oifname { " + ", ".join(f'"{name}"' for name in uplinks) + " }"
    rules = [
        f"ip saddr {node.pods_ipv4} ip daddr != {POD_SUPERNET_IPV4} {leaving} counter name masqueraded masquerade",
        f"ip6 saddr {node.pods_ipv6} ip6 daddr != {POD_SUPERNET_IPV6} {leaving} counter name masqueraded masquerade",
    ]
    # A workload that reaches itself through a service must see the node as its peer, or it answers itself directly.
    for workload in node.workloads[:1]:
        rules += [
            f"ct status dnat ip saddr {workload.ipv4} ip daddr {workload.ipv4} counter name masqueraded masquerade",
            f"ct status dnat ip6 saddr {workload.ipv6} ip6 daddr {workload.ipv6} counter name masqueraded masquerade",
        ]
    return rules


def ruleset(cluster: ClusterPlan, node: NodePlan, uplinks: Sequence[str] = (UPLINK,)) -> str:
    """The node's table as nft reads it; replaces an older one of the same name in one transaction.

    What leaves the pod range by one of the ``uplinks`` is masqueraded.
    """
    translate: list[str] = []
    if node.workloads:
        translate += _node_port(node.workloads[0])
        translate += _cluster_address(cluster.next_node(node).workloads[0])
    chains = {
        "forward": (
            "type filter hook forward priority filter; policy accept;",
            [
                "counter name forwarded",
                "ct state invalid counter name invalid drop",
                "ct state established,related counter name established accept",
                "counter name new accept",
            ],
        ),
        "prerouting": ("type nat hook prerouting priority dstnat; policy accept;", translate),
        "output": ("type nat hook output priority -100; policy accept;", translate),
        "postrouting": (
            "type nat hook postrouting priority srcnat; policy accept;",
            _masquerade(node, uplinks),
        ),
    }
    lines = [f"table inet {TABLE} {{}}", f"delete table inet {TABLE}", f"table inet {TABLE} {{"]
    lines += [f"  counter {name} {{}}" for name in COUNTERS]
    for chain, (head, rules) in chains.items():
        lines += [f"  chain {chain} {{", f"    {head}", *(f"    {rule}" for rule in rules), "  }"]
    lines += ["}", ""]
    return "\n".join(lines)


def install(cluster: ClusterPlan, node: NodePlan, uplinks: Sequence[str] = (UPLINK,)) -> None:
    """Load the node's table into its namespace. Raises LabError with nft's own message."""
    done = subprocess.run(
        ["nsenter", f"--net={path_of(node.name)}", "nft", "-f", "-"],
        input=ruleset(cluster, node, uplinks),
        text=True,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        raise LabError(f"loading the packet filter of {node.name} failed: {done.stderr.strip()}")
