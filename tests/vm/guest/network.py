# SPDX-License-Identifier: GPL-3.0-or-later
"""Half of a small cluster: this machine is node 1 of the lab with one workload, and a namespace stands for node 2.

Names, addresses, packet filter and the workload's server are those of the lab. ``ip`` builds what pyroute2 builds
there, since the library's calls differ between the versions that are to be tested here.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial

from lab import filterrules, namespace, workload_server
from lab.api import Endpoint, Node, wait_until
from lab.cluster import (
    WORKLOAD_GATEWAY_IPV4,
    WORKLOAD_GATEWAY_IPV6,
    WORKLOAD_GATEWAY_MAC,
    NodePlan,
    WorkloadPlan,
)

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.topology import FORMAT

from .wirings import ETHERNET, HERE, PLAN, THERE, Wiring, ip, rest_of_the_world, run

_SYSCTLS = {"ipv6/conf/all/accept_dad": 0, "ipv6/conf/default/accept_dad": 0, "ipv6/conf/default/accept_ra": 0}
_ROUTER = {"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1, "ipv6/conf/default/forwarding": 1}


class Network:
    """``node``: this machine. ``workload``: its one. ``peer``: node 2, which has its workload's addresses as well."""

    def __init__(self, wiring: Wiring = ETHERNET) -> None:
        self.wiring = wiring
        self.node = Node(HERE)
        self.workload = self.node.workloads[1]
        remote = THERE.workloads[0]
        self.peer = Endpoint(THERE.name, remote.ipv4, remote.ipv6)

    def build(self) -> None:
        """Raises LabError or CalledProcessError with what the tool said."""
        namespace.NETNS_DIR.mkdir(parents=True, exist_ok=True)
        here = namespace.path_of(HERE.name)
        here.touch()
        run("mount", "--bind", "/proc/1/ns/net", str(here))
        ip("link", "set", "lo", "up")
        namespace.set_sysctls(HERE.name, {**_SYSCTLS, **_ROUTER})
        self._namespace(THERE.name)
        self.wiring.connect()
        rest_of_the_world(THERE)
        self._build_workload(HERE.workloads[0])
        filterrules.install(PLAN, HERE)
        if self.wiring.finish:
            self.wiring.finish()
        for name in (self.peer.name, self.workload.name):
            server = [sys.executable, workload_server.__file__, name]
            subprocess.Popen(["nsenter", f"--net={namespace.path_of(name)}", "--", *server])
        for endpoint in (self.peer, self.workload):
            wait_until(partial(_answers, endpoint), 60.0, f"the server of {endpoint.name} answers")

    def _build_workload(self, workload: WorkloadPlan) -> None:
        side, there = workload.host_interface, workload.name
        self._namespace(there)
        pair = ["link", "add", side, "address", WORKLOAD_GATEWAY_MAC, "type", "veth", "peer", "name", "eth0"]
        ip(*pair, "address", workload.mac, "netns", there)
        namespace.set_sysctls(
            HERE.name,
            {
                f"ipv4/conf/{side}/proxy_arp": 1,
                f"ipv4/neigh/{side}/proxy_delay": 0,
                f"ipv4/conf/{side}/rp_filter": 1,
                f"ipv6/conf/{side}/proxy_ndp": 1,
            },
        )
        ip("link", "set", "eth0", "up", there=there)
        if self.wiring.master:
            ip("link", "set", side, "master", self.wiring.master)
        ip("link", "set", side, "up")
        ip("address", "add", f"{workload.ipv4}/32", "dev", "eth0", there=there)
        ip("address", "add", f"{workload.ipv6}/128", "dev", "eth0", "nodad", there=there)
        ip("route", "add", f"{WORKLOAD_GATEWAY_IPV4}/32", "dev", "eth0", "scope", "link", there=there)
        ip("route", "add", "default", "via", WORKLOAD_GATEWAY_IPV4, "dev", "eth0", there=there)
        ip("-6", "route", "add", "default", "via", WORKLOAD_GATEWAY_IPV6, "dev", "eth0", there=there)
        table = ["table", self.wiring.table]
        ip("route", "add", f"{workload.ipv4}/32", "dev", side, "scope", "link", *table)
        ip("-6", "route", "add", f"{workload.ipv6}/128", "dev", side, *table)

    def _namespace(self, name: str) -> None:
        run("ip", "netns", "add", name)
        namespace.set_sysctls(name, _SYSCTLS)
        ip("link", "set", "lo", "up", there=name)


def peer_facts(node: NodePlan = THERE) -> dict[str, object]:
    """What the picture of the cluster needs of node 2."""
    return {
        "format": FORMAT,
        "uplinks": [{"primary": [node.ipv4, node.ipv6]}],
        "addresses": [node.ipv4, node.ipv6],
        "own_addresses": [node.ipv4, node.ipv6],
        "workloads": [],
        "workload_prefixes": [node.pods_ipv4, node.pods_ipv6],
        "routes": [],
        "identity": {},
        "capabilities": {"supported": True},
    }


def _answers(endpoint: Endpoint) -> bool:
    try:
        return bool(endpoint.http_get("127.0.0.1")["workload"])
    except OSError:
        return False
