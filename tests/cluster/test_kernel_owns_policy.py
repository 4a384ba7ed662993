# SPDX-License-Identifier: GPL-3.0-or-later
"""The packet filter of a workload's node decides over connections to a listed service, as without the overlay."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest
from fleet.datapath import TALK_PORT, Cluster, bypassed, full, until_fast
from fleet.ends import of
from fleet.frames import caught
from fleet.rules import attempts, forward, ruled
from fleet.traffic import Conversations, connection, converse, speak
from lab.api import Endpoint, Workload

pytest_plugins = ["fleet.deployed"]

BOTH = pytest.mark.parametrize("family", [4, 6])
CONNECTIONS = full(1_000, 100)
ESTABLISHED = "ct state established,related accept"


def by_source(client: Workload, _server: Workload) -> str:
    return forward(
        ESTABLISHED, f"ip saddr {client.ipv4} tcp dport 8080 drop", f"ip6 saddr {client.ipv6} tcp dport 8080 drop"
    )


def by_workload(_client: Workload, server: Workload) -> str:
    return forward(
        f"ip daddr {server.ipv4} tcp dport 8080 ct state new drop",
        f"ip6 daddr {server.ipv6} tcp dport 8080 ct state new drop",
    )


def by_interface(client: Workload, server: Workload) -> str:
    return forward(
        ESTABLISHED,
        f'iifname "ens47f1" oifname "{server.host_interface}" ip saddr {client.ipv4} drop',
        f'iifname "ens47f1" oifname "{server.host_interface}" ip6 saddr {client.ipv6} drop',
    )


def as_calico_does(client: Workload, server: Workload) -> str:
    """Accepted by a bit of the mark, which a policy's chain sets; what no policy accepts is dropped at the end."""
    return f"""
    chain by_policies {{
        meta mark set meta mark and 0xfffeffff
        ip saddr != {client.ipv4} tcp dport 8080 meta mark set meta mark or 0x10000
        ip6 saddr != {client.ipv6} tcp dport 8080 meta mark set meta mark or 0x10000
        meta mark and 0x10000 == 0x10000 return
    }}
    chain to_workload {{
        {ESTABLISHED}
        ct state invalid drop
        jump by_policies
        meta mark and 0x10000 == 0x10000 return
        drop
    }}
    chain dispatch {{ oifname "{server.host_interface}" goto to_workload; }}
    chain forward {{
        type filter hook forward priority filter - 10; policy accept;
        oifname "cali*" jump dispatch
        meta mark and 0x10000 == 0x10000 accept
    }}
    """


def rejected(client: Workload, _server: Workload) -> str:
    return forward(
        ESTABLISHED,
        f"ip saddr {client.ipv4} tcp dport 8080 reject with tcp reset",
        f"ip6 saddr {client.ipv6} tcp dport 8080 reject",
    )


def of_the_answer(client: Workload, _server: Workload) -> str:
    """The SYN comes through, its answer does not."""
    return forward(
        f"ip daddr {client.ipv4} tcp sport 8080 tcp flags & (syn | ack) == syn | ack drop",
        f"ip6 daddr {client.ipv6} tcp sport 8080 tcp flags & (syn | ack) == syn | ack drop",
    )


SHAPES = [by_source, by_workload, by_interface, as_calico_does, rejected, of_the_answer]


@BOTH
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_who_is_refused_stays_refused(
    cluster: Cluster, shape: Callable[[Workload, Workload], str], family: int
) -> None:
    """And his open connection, like everybody else's new ones, stays on the fast path where the rules accept it."""
    lab = cluster.lab
    client, server = lab.workload(1, 1), lab.workload(2, 1)
    address = of(server, family)
    assert attempts(client, address, 8080, CONNECTIONS, 5) == CONNECTIONS
    with Conversations(pause=0.01) as live:
        live.open(client, server, TALK_PORT, family=family)
        until_fast(cluster.datapaths[2])
        with ruled(lab.nodes[2], shape(client, server)):
            assert attempts(client, address, 8080, CONNECTIONS, 1.3) == 0
            with cluster.datapaths[2].counted() as grown:
                time.sleep(0.3)
            assert bypassed(grown) > 10
            live.report().unharmed()
            if shape is not by_workload:
                assert attempts(lab.workload(1, 2), address, 8080, 10, 1.3) == 10
        assert attempts(client, address, 8080, 10, 5) == 10


def ask_from(client: Endpoint, address: str, port: int, timeout: float) -> int:
    """One request from the client's port ``port``, 0 for any; the server closes. Returns the port. Raises OSError."""
    with client.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.settimeout(timeout)
        one.bind(("", port))
        one.connect((address, 8080))
        for __ in range(20):
            one.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200" in one.recv(4096)
        one.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        while one.recv(4096):
            pass
        return int(one.getsockname()[1])


@BOTH
@pytest.mark.parametrize("shape", [by_source, as_calico_does], ids=lambda shape: shape.__name__)
def test_a_rule_added_later_refuses_a_port_used_a_second_ago(
    cluster: Cluster, shape: Callable[[Workload, Workload], str], family: int
) -> None:
    lab = cluster.lab
    client, server = lab.workload(1, 1), lab.workload(2, 1)
    address = of(server, family)
    ask_from(client, address, 0, 2)  # the way is proven
    for pause in (0.2, 1):
        with cluster.datapaths[2].counted() as grown:
            port = ask_from(client, address, 0, 2)
        assert bypassed(grown) > 10
        time.sleep(pause)
        with ruled(lab.nodes[2], shape(client, server)), pytest.raises(TimeoutError):
            ask_from(client, address, port, 1.3)
        ask_from(client, address, port, 2)


@BOTH
@pytest.mark.parametrize("end", [0, 1], ids=["to the workload", "from the workload"])
def test_a_rule_against_established_packets_cuts_a_live_flow(cluster: Cluster, end: int, family: int) -> None:
    """Repeats of what was lost included: one is a heartbeat, and must not open the way for the next."""
    lab = cluster.lab
    client, server = lab.nodes[1], lab.workload(2, 1)
    ends = connection(client, server, of(server, family), TALK_PORT)
    sender, receiver = ends[end], ends[1 - end]
    match = f"tcp {'dport' if end == 0 else 'sport'} {TALK_PORT} ct state established drop"
    place, interface = (server, "eth0") if end == 0 else (client, client.uplink)
    try:
        with cluster.datapaths[2].counted() as grown:
            converse(ends, 0.6)
        assert bypassed(grown) > 50
        with ruled(lab.nodes[2], forward(match)):
            speak(sender, 2)
            with caught(place, interface) as seen:
                speak(sender, 1)
            port = ends[0].getsockname()[1]
            arrived = [one for one in seen if port in (one.source_port, one.destination_port)]
            assert not [one for one in arrived if (one.destination_port == TALK_PORT) == (end == 0)]
        receiver.settimeout(5)  # mended: what was kept back arrives
        assert receiver.recv(65536)
    finally:
        for one in ends:
            one.close()


def limited(count: int) -> str:
    return (
        "set sources { type ipv4_addr; flags dynamic; size 1024; }\n"
        + forward(f"tcp dport 8080 ct state new add @sources {{ ip saddr ct count over {count} }} drop")
    )  # fmt: skip


def test_a_limit_of_connections_counts_what_is_open(cluster: Cluster) -> None:
    lab = cluster.lab
    client, server = lab.workload(1, 1), lab.workload(2, 1)
    for node in lab.nodes.values():
        node.host_run(["conntrack", "-F"], check=False)
    with ruled(lab.nodes[2], limited(10)):
        for __ in range(30):
            client.http_get(server.ipv4, 8080, timeout=0.9)
            time.sleep(0.03)  # the count forgets closed connections once a jiffy, eight at a time
        with Conversations(pause=0.01) as live:
            for __ in range(10):
                live.open(client, server, 8080, http=True)
            with cluster.datapaths[2].counted() as grown:
                time.sleep(full(70, 4))
            assert bypassed(grown) > 1000
            assert attempts(client, server.ipv4, 8080, 5, 1.3) == 0
            live.report().unharmed()
