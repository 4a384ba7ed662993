# SPDX-License-Identifier: GPL-3.0-or-later
"""The address plan: which nodes and workloads there are and what they are called. Pure: touches nothing.

Every name, address and MAC follows from a node's number ``i`` and a workload's number ``j`` (both count from 1),
so that a lab that was killed half way can be found again by its names alone.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

from .paths import PREFIX

FABRIC = f"{PREFIX}fabric"
FABRIC_BRIDGE = "br0"
FABRIC_MAC = "02:18:00:00:00:01"
FABRIC_IPV4 = "198.18.0.1"
FABRIC_IPV6 = "fd00:198:18::1"
UPLINK = "ens47f1"

POD_SUPERNET_IPV4 = "10.244.0.0/16"
POD_SUPERNET_IPV6 = "fd00:10:244::/48"
CLUSTER_IPV4 = "10.96.0.1"
CLUSTER_IPV6 = "fd00:10:96::1"
NODE_PORT = 30080
HTTP_PORT = 8080
ECHO_PORT = 8081

# What Calico gives the host side of every workload's veth, and the link-local address that follows from it.
WORKLOAD_GATEWAY_MAC = "ee:ee:ee:ee:ee:ee"
WORKLOAD_GATEWAY_IPV4 = "169.254.1.1"
WORKLOAD_GATEWAY_IPV6 = "fe80::ecee:eeff:feee:eeee"

MAX_NODES = 200
MAX_WORKLOADS = 200

# Exactly the namespaces that this lab makes. Anything else, ``ovl-x…`` included, belongs to somebody else.
OUR_NAMESPACE = re.compile(rf"^{PREFIX}(fabric|n[1-9]\d{{0,2}}(-w[1-9]\d{{0,2}})?)$")


@dataclass(frozen=True)
class WorkloadPlan:
    """One workload: a network namespace with one interface, wired to its node as Calico wires a pod."""

    node_number: int
    number: int

    @property
    def name(self) -> str:
        return f"{PREFIX}n{self.node_number}-w{self.number}"

    @property
    def ipv4(self) -> str:
        return f"10.244.{self.node_number}.{10 + self.number}"

    @property
    def ipv6(self) -> str:
        return f"fd00:10:244:{self.node_number}::{10 + self.number}"

    @property
    def mac(self) -> str:
        return f"02:0a:f4:00:{self.node_number:02x}:{10 + self.number:02x}"

    @property
    def host_interface(self) -> str:
        """The host-side veth: ``cali`` and eleven hexadecimal digits, as Calico forms it."""
        return "cali" + hashlib.sha256(self.name.encode()).hexdigest()[:11]


@dataclass(frozen=True)
class NodePlan:
    """One node: its uplink's addresses, its pod range and its workloads."""

    number: int
    workload_count: int

    @property
    def name(self) -> str:
        return f"{PREFIX}n{self.number}"

    @property
    def ipv4(self) -> str:
        return f"198.18.0.{10 + self.number}"

    @property
    def ipv6(self) -> str:
        return f"fd00:198:18::{10 + self.number}"

    @property
    def mac(self) -> str:
        return f"02:18:00:00:01:{10 + self.number:02x}"

    @property
    def fabric_port(self) -> str:
        """The name of this node's port on the fabric's bridge."""
        return f"n{self.number}"

    @property
    def fabric_ports(self) -> tuple[str, str]:
        """The names of this node's ports in the fabric. The second is there where the wiring has two uplinks."""
        return self.fabric_port, f"{self.fabric_port}b"

    @property
    def fabric_port_mac(self) -> str:
        return f"02:18:00:00:02:{10 + self.number:02x}"

    @property
    def pods_ipv4(self) -> str:
        return f"10.244.{self.number}.0/24"

    @property
    def pods_ipv6(self) -> str:
        return f"fd00:10:244:{self.number}::/64"

    @property
    def workloads(self) -> tuple[WorkloadPlan, ...]:
        return tuple(WorkloadPlan(self.number, j) for j in range(1, self.workload_count + 1))


@dataclass(frozen=True)
class ClusterPlan:
    """The whole lab as asked for on the command line."""

    node_count: int = 3
    workload_count: int = 2
    base: str = "fresh"
    systemd: bool = False
    wiring: str = "direct"
    nodes: tuple[NodePlan, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= self.node_count <= MAX_NODES:
            raise ValueError(f"--nodes must be between 1 and {MAX_NODES}, not {self.node_count}")
        if not 0 <= self.workload_count <= MAX_WORKLOADS:
            raise ValueError(f"--workloads must be between 0 and {MAX_WORKLOADS}, not {self.workload_count}")
        if self.base not in ("fresh", "ready"):
            raise ValueError(f"--base must be fresh or ready, not {self.base}")
        nodes = tuple(NodePlan(i, self.workload_count) for i in range(1, self.node_count + 1))
        object.__setattr__(self, "nodes", nodes)

    def next_node(self, node: NodePlan) -> NodePlan:
        """The node after this one, the first after the last: where this node's cluster address leads."""
        return self.nodes[node.number % self.node_count]

    def others(self, node: NodePlan) -> tuple[NodePlan, ...]:
        """All nodes but this one."""
        return tuple(other for other in self.nodes if other.number != node.number)

    def namespaces(self) -> list[str]:
        """Every network namespace of this lab."""
        names = [FABRIC]
        for node in self.nodes:
            names.append(node.name)
            names.extend(workload.name for workload in node.workloads)
        return names

    def as_dict(self) -> dict[str, int | str | bool]:
        """What :meth:`from_dict` needs to build the same plan again."""
        return {
            "nodes": self.node_count,
            "workloads": self.workload_count,
            "base": self.base,
            "systemd": self.systemd,
            "wiring": self.wiring,
        }

    @classmethod
    def from_dict(cls, data: dict[str, int | str | bool]) -> ClusterPlan:
        return cls(
            int(data["nodes"]), int(data["workloads"]), str(data["base"]), bool(data["systemd"]), str(data["wiring"])
        )
