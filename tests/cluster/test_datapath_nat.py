# SPDX-License-Identifier: GPL-3.0-or-later
"""Rule 2: what the kernel translates, and what is older than the overlay, goes on working and is never admitted."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import pytest
from fleet.datapath import TALK_PORT, Cluster, bypassed, full
from fleet.ends import of
from fleet.traffic import Conversations
from lab.api import Endpoint, Lab, Node
from lab.paths import PREFIX

pytest_plugins = ["fleet.deployed"]

REQUESTS = full(500, 40)
BOTH = pytest.mark.parametrize("family", [4, 6])


def all_succeed(clients: list[Endpoint], address: str, port: int, workload: str | None = None) -> None:
    for number in range(REQUESTS):
        answer = clients[number % len(clients)].http_get(address, port, timeout=1)
        assert workload in (None, answer["workload"])


@contextlib.contextmanager
def never_admitted(cluster: Cluster, *nodes: int) -> Iterator[None]:
    """On nodes that translate, all of them by default: one that sees both ends as they are may admit."""
    with contextlib.ExitStack() as stack:
        counted = [stack.enter_context(cluster.datapaths[node].counted()) for node in nodes or cluster.datapaths]
        yield
    for grown in counted:
        assert bypassed(grown) == 0
        assert not any(name.endswith(".admitted") for name in grown), grown


@BOTH
def test_node_port(cluster: Cluster, family: int) -> None:
    """From another node, from a workload elsewhere, from outside, and from the node's own second workload."""
    lab = cluster.lab
    clients = [lab.nodes[1], lab.workload(1, 1), lab.fabric, lab.workload(2, 2)]
    with cluster.nothing_invalid(), never_admitted(cluster):
        all_succeed(clients, of(lab.nodes[2], family), 30080, f"{PREFIX}n2-w1")


@pytest.fixture
def far_port() -> Callable[[Node, Endpoint], int]:
    """A NodePort whose workload is on another node: translated both ways where it comes in."""

    def make(node: Node, workload: Endpoint) -> int:
        node.host_run(
            ["nft", "-f", "-"],
            stdin=f"""
            table inet far {{}}
            delete table inet far
            table inet far {{
                chain prerouting {{
                    type nat hook prerouting priority dstnat;
                    meta nfproto ipv4 tcp dport 30081 dnat ip to {workload.ipv4}:8080
                    meta nfproto ipv6 tcp dport 30081 dnat ip6 to [{workload.ipv6}]:8080
                }}
                chain postrouting {{
                    type nat hook postrouting priority srcnat;
                    ct status dnat tcp dport 8080 masquerade
                }}
            }}
            """,
        )
        return 30081

    return make


@BOTH
def test_node_port_of_a_workload_on_another_node(
    cluster: Cluster, far_port: Callable[[Node, Endpoint], int], family: int
) -> None:
    lab = cluster.lab
    port = far_port(lab.nodes[1], lab.workload(2, 1))
    try:
        with cluster.nothing_invalid(), never_admitted(cluster, 1):
            all_succeed(
                [lab.fabric, lab.nodes[2], lab.workload(2, 2)], of(lab.nodes[1], family), port, f"{PREFIX}n2-w1"
            )
    finally:
        lab.nodes[1].host_run(["nft", "delete", "table", "inet", "far"])


@BOTH
def test_cluster_address(cluster: Cluster, family: int) -> None:
    lab = cluster.lab
    address = "10.96.0.1" if family == 4 else "fd00:10:96::1"
    with cluster.nothing_invalid(), never_admitted(cluster, 1):
        all_succeed([lab.workload(1, 1), lab.workload(1, 2), lab.nodes[1]], address, 8080, f"{PREFIX}n2-w1")


@BOTH
def test_workloads_of_the_same_node(cluster: Cluster, family: int) -> None:
    lab = cluster.lab
    with cluster.datapaths[2].counted() as grown, cluster.nothing_invalid():
        all_succeed([lab.workload(2, 2), lab.nodes[2]], of(lab.workload(2, 1), family), 8080, f"{PREFIX}n2-w1")
    assert bypassed(grown) == 0
    assert "workload.syn_in" not in grown
    assert grown["workload.same_node"] == REQUESTS / 2  # the node's own are no workload's


@BOTH
def test_a_service_of_the_node_itself(cluster: Cluster, family: int) -> None:
    """A server in the node's own network namespace, on a port that is a service of the overlay."""
    lab = cluster.lab
    node = lab.nodes[2]
    script = "import http.server, socket, sys\n"
    script += "class Server(http.server.ThreadingHTTPServer):\n    address_family = socket.AF_INET6\n"
    script += "class Handler(http.server.BaseHTTPRequestHandler):\n"
    script += "    def do_GET(self):\n"
    script += '        self.send_response(200); self.end_headers(); self.wfile.write(b\'{"workload": "node"}\')\n'
    script += "Server(('::', 8080), Handler).serve_forever()\n"
    server = node.popen(["/usr/bin/python3", "-c", script])
    try:
        wait_for_server(lab, of(node, family))
        with cluster.datapaths[2].counted() as grown, cluster.nothing_invalid():
            all_succeed(
                [lab.nodes[1], lab.workload(1, 1), lab.workload(2, 1), lab.fabric], of(node, family), 8080, "node"
            )
        assert bypassed(grown) == 0
        assert "uplink.admitted" not in grown
        assert "workload.admitted" not in grown
        assert grown["workload.host_address"] == REQUESTS / 4
    finally:
        server.kill()
        server.wait()


def wait_for_server(lab: Lab, address: str) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            lab.nodes[1].connect(address, 8080, 1).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_client_outside_the_listed_peers_takes_the_kernels_path(cluster: Cluster) -> None:
    with cluster.datapaths[2].counted() as grown:
        all_succeed([cluster.lab.fabric], cluster.lab.workload(2, 1).ipv4, 8080, f"{PREFIX}n2-w1")
    assert bypassed(grown) == 0
    assert grown["uplink.not_peer"] == REQUESTS
    assert "uplink.syn_in" not in grown


def test_connections_older_than_the_overlay_go_on(cluster: Cluster) -> None:
    lab = cluster.lab
    cluster.mode("off", force=True)
    with Conversations(pause=0.01) as live, cluster.nothing_invalid():
        for family in (4, 6):
            live.open(lab.nodes[1], lab.workload(2, 1), TALK_PORT, family=family)
            live.open(lab.workload(2, 1), lab.workload(1, 1), TALK_PORT, family=family)
            live.open(lab.nodes[1], lab.nodes[2], 30080, http=True, family=family)
        cluster.mode("on")
        with cluster.datapaths[2].counted() as grown:
            time.sleep(1)
        live.report().unharmed()
        assert bypassed(grown) == 0
        assert grown["uplink.unknown_flow"] > 20


def test_one_node_with_the_overlay_and_one_without(cluster: Cluster) -> None:
    """A roll-out that is half done."""
    lab = cluster.lab
    cluster.datapaths[1].mode("off", force=True)
    with cluster.nothing_invalid(), cluster.datapaths[2].counted() as grown:
        for server, client in ((2, 1), (1, 2)):
            for family in (4, 6):
                address = of(lab.workload(server, 1), family)
                all_succeed([lab.workload(client, 1), lab.nodes[client]], address, 8080, f"{PREFIX}n{server}-w1")
    # Into its workload all of them, out of it every second one: the node's own connections pass no interface of ours.
    assert grown["uplink.admitted"] == 2 * REQUESTS
    assert grown["workload.admitted"] == REQUESTS
    with Conversations(pause=0.01) as live, cluster.nothing_invalid():
        for family in (4, 6):
            live.open(lab.workload(1, 1), lab.workload(2, 1), TALK_PORT, family=family)
            live.open(lab.workload(2, 2), lab.workload(1, 1), TALK_PORT, family=family)
        time.sleep(3)
        with cluster.datapaths[2].counted() as grown:
            time.sleep(1)
        live.report().unharmed()
    assert bypassed(grown) > 100
