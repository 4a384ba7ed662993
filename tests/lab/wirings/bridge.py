# SPDX-License-Identifier: GPL-3.0-or-later
"""The node's addresses are on a bridge that holds the uplink, and the packet filter sees what is bridged (br_netfilter,
which kubeadm asks for): it translates before the bridge's own hooks see a packet."""

from __future__ import annotations

from typing import Any

from .. import links
from ..cluster import FABRIC_IPV4, FABRIC_IPV6, UPLINK, NodePlan
from ..namespace import set_sysctls
from ..paths import LabError
from . import direct

BRIDGE = "br0"


class Wired(direct.Wired):
    uplinks = (BRIDGE,)

    def connect(self, node: NodePlan, ipr: Any) -> None:
        del ipr
        direct.plug(node)
        links.script_in(
            node.name,
            f"""
            ip link add {BRIDGE} address {node.mac} type bridge mcast_snooping 0 forward_delay 0
            ip link set {UPLINK} up master {BRIDGE}
            ip link set {BRIDGE} up
            ip address add {node.ipv4}/24 dev {BRIDGE}
            ip address add {node.ipv6}/64 dev {BRIDGE} nodad
            ip route add default via {FABRIC_IPV4} dev {BRIDGE}
            ip route add ::/0 via {FABRIC_IPV6} dev {BRIDGE}""",
        )
        try:
            set_sysctls(node.name, {f"bridge/bridge-nf-call-{kind}tables": 1 for kind in ("ip", "ip6")})
        except FileNotFoundError:
            raise LabError(
                f"making the packet filter of {node.name} see what is bridged: this kernel has no br_netfilter; "
                "load it (modprobe br_netfilter) and run again"
            ) from None
