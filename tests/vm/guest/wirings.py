# SPDX-License-Identifier: GPL-3.0-or-later
"""How node 1 of the machine's small cluster reaches node 2: wirings with devices that not every kernel has.

Each is set up as an administrator, or Calico, does it. ``there`` is a namespace; None is the machine's own, node 1.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lab import namespace
from lab.cluster import FABRIC_IPV4, UPLINK, ClusterPlan, NodePlan

PLAN = ClusterPlan(node_count=2, workload_count=1)
HERE, THERE = PLAN.nodes
BOTH = ((None, HERE, THERE), (THERE.name, THERE, HERE))

PORTS = ("port1", "port2")
VRF, VRF_TABLE = "tenant", "100"
NO_ETHERNET = "no Ethernet header"
WIREGUARD_PORT = 51820
# Private and public key.
_KEYS = {
    HERE.number: (
        "yBLzG4y/XyniaOpkwgo389ULU52JHbDD68fA9msfuUo=",
        "moL+gW+29euB/JnyKasCzjMQTxOwyZZnChnhBcpnnBU=",
    ),
    THERE.number: (
        "ELGKckMldpVwT2ajsd3JMRGU/H0uGJb0QMxRfHd6t2w=",
        "jxr6Qcoz4deqXCWIaR9QIfxrLCs0IKZbBAmF2Ve2vzE=",
    ),
}


@dataclass(frozen=True)
class Wiring:
    """``connect``: makes links, addresses and routes of both nodes. ``left_out``: link -> words of the reason why it is
    no uplink. ``fast``: the families whose connections take the fast path. ``change``: what happens to the links under
    open connections. ``finish``: what is set up when all interfaces are there. ``offloaded``: packets between start and
    end of a connection need not reach FORWARD. ``table``: of the routes, ``master``: what uplink and workloads belong
    to."""

    connect: Callable[[], None]
    uplinks: tuple[str, ...] = (UPLINK,)
    left_out: Mapping[str, str] = field(default_factory=dict)
    fast: tuple[int, ...] = (4, 6)
    change: Callable[[], None] | None = None
    finish: Callable[[], None] | None = None
    offloaded: bool = False
    master: str = ""
    table: str = "main"


def ethernet() -> None:
    """A cable, and routes to each other's workloads."""
    cable(UPLINK, HERE.mac, THERE.mac)
    addresses(UPLINK)
    routes()


def ipip() -> None:
    """IPv4 between workloads by IPIP, as in Calico's default manifest; IPv6 without a tunnel."""
    cable(UPLINK, HERE.mac, THERE.mac)
    addresses(UPLINK)
    run("modprobe", "ipip")
    for there, node, other in BOTH:
        ip("link", "set", "tunl0", "up", "mtu", "1480", there=there)
        ip("address", "add", f"{node.pods_ipv4.split('/')[0]}/32", "dev", "tunl0", there=there)
        ip("route", "add", other.pods_ipv4, "via", other.ipv4, "dev", "tunl0", "onlink", there=there)
        ip("route", "add", other.pods_ipv6, "via", other.ipv6, there=there)
    default_route()


def wireguard() -> None:
    """Both families between workloads by WireGuard, as Calico encrypts them."""
    from pyroute2 import WireGuard

    cable(UPLINK, HERE.mac, THERE.mac)
    addresses(UPLINK)
    for there, node, other in BOTH:
        ip("link", "add", "wg0", "mtu", "1420", "type", "wireguard", there=there)
        peer = {
            "public_key": _KEYS[other.number][1],
            "endpoint_addr": other.ipv4,
            "endpoint_port": WIREGUARD_PORT,
            "allowed_ips": [other.pods_ipv4, other.pods_ipv6],
        }
        with namespace.entered(node.name), WireGuard() as device:
            device.set("wg0", private_key=_KEYS[node.number][0], listen_port=WIREGUARD_PORT, peer=peer)
        ip("link", "set", "wg0", "up", there=there)
        ip("address", "add", f"{node.pods_ipv4.split('/')[0]}/32", "dev", "wg0", there=there)
        ip("address", "add", f"{node.pods_ipv6.split('/')[0]}1/128", "dev", "wg0", "nodad", there=there)
        for prefix in (other.pods_ipv4, other.pods_ipv6):
            ip("route", "add", prefix, "dev", "wg0", there=there)
    default_route()


def bond_vlan() -> None:
    """Two cables, a bond of both (active-backup), and a VLAN on it that has the node's address."""
    run("modprobe", "bonding", "max_bonds=0")
    for number, port in enumerate(PORTS):
        cable(port, f"02:18:00:00:03:{number:02x}", f"02:18:00:00:04:{number:02x}")
    for there, node, _other in BOTH:
        ip("link", "add", "bond0", "type", "bond", "mode", "active-backup", "miimon", "50", there=there)
        for port in PORTS:
            ip("link", "set", port, "down", there=there)
            ip("link", "set", port, "master", "bond0", there=there)
            ip("link", "set", port, "up", there=there)
        ip("link", "set", "bond0", "address", node.mac, "up", there=there)
        # Named as the lab's uplink, since its packet filter masquerades by that name.
        ip("link", "add", "link", "bond0", "name", UPLINK, "type", "vlan", "id", "100", there=there)
    addresses(UPLINK)
    routes()


def fail_over() -> None:
    """The port that a bond uses loses its carrier: the other end goes down."""
    ip("link", "set", PORTS[0], "down", there=THERE.name)


def vrf() -> None:
    """The uplink and the workloads belong to a VRF, whose table holds all routes."""
    cable(UPLINK, HERE.mac, THERE.mac)
    ip("link", "add", VRF, "type", "vrf", "table", VRF_TABLE)
    ip("link", "set", VRF, "up")
    ip("link", "set", UPLINK, "master", VRF)
    addresses(UPLINK)
    for there, _node, other in BOTH:
        table = ["table", VRF_TABLE] if there is None else []
        ip("route", "add", other.pods_ipv4, "via", other.ipv4, *table, there=there)
        ip("route", "add", other.pods_ipv6, "via", other.ipv6, *table, there=there)
    ip("route", "add", "default", "via", THERE.ipv4, "table", VRF_TABLE)


def external_vxlan() -> None:
    """IPv4 between workloads by a VXLAN whose tunnel the route chooses (collect metadata); IPv6 without a tunnel."""
    cable(UPLINK, HERE.mac, THERE.mac)
    addresses(UPLINK)
    for there, node, other in BOTH:
        ip("link", "add", "vx0", "address", node.mac, "mtu", "1450", "type", "vxlan", "dstport", "4789", "external",
           there=there)  # fmt: skip
        ip("link", "set", "vx0", "up", there=there)
        ip("address", "add", f"{node.pods_ipv4.split('/')[0]}/32", "dev", "vx0", there=there)
        gateway = other.pods_ipv4.split("/")[0]
        ip("neighbour", "add", gateway, "lladdr", other.mac, "nud", "permanent", "dev", "vx0", there=there)
        ip("route", "add", other.pods_ipv4, "encap", "ip", "id", "42", "dst", other.ipv4,
           "via", gateway, "dev", "vx0", "onlink", there=there)  # fmt: skip
        ip("route", "add", other.pods_ipv6, "via", other.ipv6, there=there)
    default_route()


FLOWTABLE = """table inet shortcut {{
  flowtable established {{ hook ingress priority filter; devices = {{ {devices} }}; }}
  chain forward {{
    type filter hook forward priority filter - 1;
    meta l4proto tcp ct state established flow add @established
  }}
}}
"""


def flowtable() -> None:
    """The kernel's own shortcut beside the overlay, on the uplink and on the workload's interface."""
    devices = ", ".join((UPLINK, HERE.workloads[0].host_interface))
    run("nft", FLOWTABLE.format(devices=devices))


WIRINGS = {
    "ipip": Wiring(ipip, left_out={"tunl0": NO_ETHERNET}, fast=(6,)),
    "bond_vlan": Wiring(bond_vlan, change=fail_over),
    "wireguard": Wiring(wireguard, left_out={"wg0": NO_ETHERNET}, fast=()),
    "vrf": Wiring(vrf, master=VRF, table=VRF_TABLE),
    "flowtable": Wiring(ethernet, finish=flowtable, offloaded=True),
    "external_vxlan": Wiring(external_vxlan, left_out={"vx0": "external"}, fast=(6,)),
}
ETHERNET = Wiring(ethernet)


def cable(name: str, here_mac: str, there_mac: str) -> None:
    """A pair of veths of one name, in the two nodes, both up."""
    pair = ["link", "add", name, "address", here_mac, "type", "veth", "peer", "name", name]
    ip(*pair, "address", there_mac, "netns", THERE.name)
    for there, _node, _other in BOTH:
        ip("link", "set", name, "up", there=there)


def addresses(name: str) -> None:
    """The nodes' own on the link, which comes up."""
    for there, node, _other in BOTH:
        ip("address", "add", f"{node.ipv4}/24", "dev", name, there=there)
        ip("address", "add", f"{node.ipv6}/64", "dev", name, "nodad", there=there)
        ip("link", "set", name, "up", there=there)


def routes() -> None:
    """To each other's workloads by way of the nodes; and node 1's default route."""
    for there, _node, other in BOTH:
        ip("route", "add", other.pods_ipv4, "via", other.ipv4, there=there)
        ip("route", "add", other.pods_ipv6, "via", other.ipv6, there=there)
    default_route()


def default_route() -> None:
    """Without one the kernel does not answer for the workloads' gateway. Node 2 stands for it."""
    ip("route", "add", "default", "via", THERE.ipv4)


def rest_of_the_world(peer: NodePlan) -> None:
    """What node 2 is beside a node: its workload, and somebody outside of the cluster."""
    workload = peer.workloads[0]
    for one in (f"{FABRIC_IPV4}/32", f"{workload.ipv4}/32"):
        ip("address", "add", one, "dev", "lo", there=peer.name)
    ip("address", "add", f"{workload.ipv6}/128", "dev", "lo", "nodad", there=peer.name)


def ip(*arguments: str, there: str | None = None) -> None:
    """Runs ``ip``. Raises RuntimeError with what it said."""
    run("ip", *(["-n", there] if there else []), *arguments)


def run(*command: str) -> None:
    """Raises RuntimeError with what the command said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
