# SPDX-License-Identifier: GPL-3.0-or-later
"""The traffic of a small cluster, each kind of it between all who can have it, and what became of it.

Workload to workload on other nodes and on the same one, nodes to workloads and back, NodePorts, the cluster's address,
and masqueraded connections to the outside; long ones, and many that begin at once.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import namespace, workload_server
from lab.api import Endpoint, Lab, Workload, wait_until
from lab.cluster import CLUSTER_IPV4, CLUSTER_IPV6, HTTP_PORT, NODE_PORT

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import flows

from .datapath import Cluster, Datapath
from .ends import of
from .traffic import Conversations, Report

_RTT = 68  # tcpi_rtt in struct tcp_info, include/uapi/linux/tcp.h, in microseconds
_REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class Exchange:
    """A client, what it connects to, and who answers.

    ``whole``: neither side's node translates it. ``far``: the server's node does not, and is another one.
    """

    kind: str
    client: Endpoint
    address: str
    port: int
    server: Endpoint
    whole: bool = False
    far: bool = False


@dataclass
class Outcome:
    """``report``: of the long connections. ``handshake``: seconds that the slowest of those that began at once took.
    ``eligible``: how many times a node could have taken a connection to the fast path; ``slow``: where it did not."""

    report: Report
    handshake: float
    retransmitted: int
    invalid: int
    eligible: int
    slow: list[str]

    @property
    def share(self) -> float:
        """Of the eligible ones, how many were on the fast path, both ways."""
        return 1 - len(self.slow) / self.eligible


def exchanges(lab: Lab, family: int) -> list[Exchange]:
    """All of them. The nodes and the fabric have servers of their own: see :func:`servers`."""
    found: list[Exchange] = []

    def add(kind: str, client: Endpoint, server: Endpoint, **more: Any) -> None:
        address = more.pop("address", of(server, family))
        found.append(Exchange(kind, client, address, more.pop("port", HTTP_PORT), server, **more))

    cluster_address = CLUSTER_IPV4 if family == 4 else CLUSTER_IPV6
    for number, node in lab.nodes.items():
        first, last = node.workloads[1], node.workloads[max(node.workloads)]
        following = lab.nodes[lab.cluster.next_node(node.plan).number].workloads[1]
        add("one node", last, first)
        add("own node", node, first)
        add("own node", first, node)
        add("outside", first, lab.fabric)
        for client in (last, node):
            add("cluster address", client, following, address=cluster_address, far=True)
        add("NodePort", lab.fabric, first, address=of(node, family), port=NODE_PORT)
        for other in lab.nodes.values():
            if other.plan.number == number:
                continue
            for client in node.workloads.values():
                for server in other.workloads.values():
                    add("workloads", client, server, whole=True, far=True)
            add("node to workload", node, other.workloads[1], far=True)
            add("workload to node", first, other)
            for client in (node, last):
                add("NodePort", client, other.workloads[1], address=of(other, family), port=NODE_PORT)
    return found


@contextlib.contextmanager
def servers(lab: Lab) -> Iterator[None]:
    """The block runs with the workloads' server on the nodes and in the fabric too."""
    ends = [lab.fabric, *lab.nodes.values()]
    script = [sys.executable, "-I", "-S", workload_server.__file__]
    started = [subprocess.Popen(["nsenter", f"--net={end.netns}", *script, end.name]) for end in ends]
    try:
        for end in ends:
            wait_until(lambda end=end: _listens(end), 10, f"{end.name} has a server")  # type: ignore[misc]
        yield
    finally:
        for one in started:
            one.kill()
            one.wait()


def _listens(end: Endpoint) -> bool:
    try:
        namespace.connect(end.name, "127.0.0.1", HTTP_PORT, 1).close()
    except OSError:
        return False
    return True


def carry_out(lab: Lab, families: tuple[int, ...], at_once: int, seconds: float, cluster: Cluster | None) -> Outcome:
    """All exchanges, once each to see who answers, then for some seconds, then many at once.

    ``cluster``: where the overlay is on. Raises OSError, and AssertionError for an answer by somebody else.
    """
    listed = [exchange for family in families for exchange in exchanges(lab, family)]
    if cluster:
        cluster.fresh()
    repeated, invalid = _repeated(lab), _invalid(lab)
    for exchange in listed:
        answer = exchange.client.http_get(exchange.address, exchange.port)
        assert answer["workload"] == exchange.server.name, exchange
        if exchange.whole:
            assert answer["client"] in (exchange.client.ipv4, exchange.client.ipv6), exchange
    with Conversations() as live:
        ends = [
            live.open(one.client, one.server, one.port, address=one.address, http=True)
            for one in listed
        ]  # fmt: skip
        time.sleep(seconds)
        report = live.report()
        eligible = [(number, flow) for one, end in zip(listed, ends) for number, flow in views(one, *end).items()]
        slow: list[str] = []
        for number, datapath in cluster.datapaths.items() if cluster else ():
            slow += not_fast(datapath, [flow for where, flow in eligible if where == number])
    handshake = max(_begin_at_once(exchange, at_once) for exchange in _one_of_each(listed))
    time.sleep(0.3)
    repeated, invalid = _repeated(lab) - repeated, _invalid(lab) - invalid
    return Outcome(report, handshake, repeated, invalid, len(eligible), slow)


def views(exchange: Exchange, address: str, port: int) -> dict[int, dict[str, Any]]:
    """Number of the node -> the connection as its datapath may know it. The client's end is ``address``, ``port``."""
    found = {}
    server, client = exchange.server, exchange.client
    if exchange.far and isinstance(server, Workload):
        own = server.ipv6 if ":" in address else server.ipv4
        here = exchange.address if exchange.whole else own
        flow = {"workload": here, "workload_port": HTTP_PORT, "remote": address, "remote_port": port}
        found[server.plan.node_number] = flow
    if exchange.whole and isinstance(client, Workload):
        there = {"remote": exchange.address, "remote_port": exchange.port}
        found[client.plan.node_number] = {"workload": address, "workload_port": port, **there}
    return found


def not_fast(datapath: Datapath, known: list[dict[str, Any]], seconds: float = 2) -> list[str]:
    """Which of the connections, of which packets are under way, do not take the node's fast path in both directions.

    More than one look: two flows that share a slot of the datapath's memory hide each other's count.
    """
    ways = {flows.flow_key(flow): set[str]() for flow in known}
    last: list[dict[str, Any]] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        left = [flow for flow in known if len(ways[flows.flow_key(flow)]) < len(flows.COUNTED)]
        last = flows.read_flows(datapath.pins, left)
        for seen in last:
            ways[flows.flow_key(seen)].update(name for name in flows.COUNTED if seen[name])
        if not left:
            return []
        time.sleep(0.1)
    return [f"on {datapath.node.name}: {seen}" for seen in last]


def _one_of_each(listed: list[Exchange]) -> list[Exchange]:
    """The first exchange of each kind and family."""
    return list({(one.kind, ":" in one.address): one for one in reversed(listed)}.values())


def _begin_at_once(exchange: Exchange, count: int) -> float:
    """Requests over connections of their own. AssertionError if one gets no answer.

    Returns how many seconds the slowest handshake took, by the kernel's clock: a busy machine keeps this process and
    that of the server waiting.
    """
    family = socket.AF_INET6 if ":" in exchange.address else socket.AF_INET
    slowest = 0
    answers: dict[socket.socket, bytes] = {exchange.client.socket(family): b"" for __ in range(count)}
    with selectors.DefaultSelector() as waiting:
        for one in answers:
            one.setblocking(False)
            one.connect_ex((exchange.address, exchange.port))
            waiting.register(one, selectors.EVENT_WRITE)
        while waiting.get_map():
            ready = waiting.select(10)
            assert ready, f"{exchange}: {len(waiting.get_map())} of {count} got no answer within 10 s"
            for key, event in ready:
                one = key.fileobj  # type: ignore[assignment]
                if event == selectors.EVENT_WRITE:
                    info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT + 4)
                    slowest = max(slowest, struct.unpack_from("I", info, _RTT)[0])
                    one.sendall(_REQUEST)
                    waiting.modify(one, selectors.EVENT_READ)
                elif data := one.recv(65536):
                    answers[one] += data
                else:
                    waiting.unregister(one)
                    one.close()
    assert all(b'"workload"' in answer for answer in answers.values()), exchange
    return slowest / 1e6


def _repeated(lab: Lab) -> int:
    """Segments that anybody in the lab sent again, without those that the other end says it had already got."""
    total = 0
    for end in (lab.fabric, *lab.nodes.values(), *lab.workloads()):
        with namespace.entered(end.name):
            counted = {**_counters("snmp", "Tcp:"), **_counters("netstat", "TcpExt:")}
        total += counted["RetransSegs"] - counted["TCPDSACKRecv"]
    return total


def _counters(name: str, group: str) -> dict[str, int]:
    text = Path("/proc/thread-self/net", name).read_text(encoding="ascii")
    names, values = (line.split()[1:] for line in text.splitlines() if line.startswith(group))
    return dict(zip(names, map(int, values)))


def _invalid(lab: Lab) -> int:
    return sum(node.nft_counter("invalid").packets for node in lab.nodes.values())
