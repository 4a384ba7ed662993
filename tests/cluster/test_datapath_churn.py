# SPDX-License-Identifier: GPL-3.0-or-later
"""Rule 7: interfaces that are deleted, reused or stripped of the overlay; a stale entry never blackholes."""

from __future__ import annotations

import contextlib
import socket
import time

from fleet import frames
from fleet.datapath import TALK_PORT, Cluster, bypassed, detach, full
from fleet.deployed import roll_out
from fleet.traffic import Conversations, connection
from lab.api import Endpoint, Node, Workload
from lab.cluster import WORKLOAD_GATEWAY_IPV4, WORKLOAD_GATEWAY_IPV6, WORKLOAD_GATEWAY_MAC

pytest_plugins = ["fleet.deployed"]

ROUNDS = full(500, 20)


def add_link(node: Node, name: str, index: int, inside: Endpoint, inner_name: str, mac: str) -> None:
    """A veth with a given ifindex on the node."""
    node.host_run(["ip", "link", "add", "name", name, "index", str(index), "address", WORKLOAD_GATEWAY_MAC,
                   "type", "veth", "peer", "name", inner_name, "address", mac])  # fmt: skip
    node.host_run(["ip", "link", "set", "dev", inner_name, "netns", inside.netns])
    node.host_run(["ip", "link", "set", "dev", name, "up"])
    inside.host_run(["ip", "link", "set", "dev", inner_name, "up"])


def wire(node: Node, workload: Workload, index: int) -> None:
    """As the lab wires a workload, with a given ifindex."""
    host_side = workload.host_interface
    add_link(node, host_side, index, workload, "eth0", workload.mac)
    node.set_sysctls(
        {
            f"ipv4/conf/{host_side}/proxy_arp": 1,
            f"ipv4/neigh/{host_side}/proxy_delay": 0,
            f"ipv4/conf/{host_side}/rp_filter": 1,
            f"ipv6/conf/{host_side}/proxy_ndp": 1,
        }
    )
    inside = (
        f"addr add {workload.ipv4}/32 dev eth0\naddr add {workload.ipv6}/128 dev eth0 nodad\n"
        f"route add {WORKLOAD_GATEWAY_IPV4} dev eth0 scope link\n"
        f"route add default via {WORKLOAD_GATEWAY_IPV4} dev eth0\n"
        f"route add ::/0 via {WORKLOAD_GATEWAY_IPV6} dev eth0\n"
    )
    workload.host_run(["ip", "-batch", "-"], stdin=inside)
    outside = (
        f"route add {workload.ipv4}/32 dev {host_side} scope link\nroute add {workload.ipv6}/128 dev {host_side}\n"
    )
    node.host_run(["ip", "-batch", "-"], stdin=outside)
    # Neighbour discovery towards the gateway's link-local address, which the kernel makes from the MAC.
    node.host_run(["ip", "-6", "addr", "replace", f"{WORKLOAD_GATEWAY_IPV6}/64", "dev", host_side, "nodad"])


def test_no_packet_reaches_whoever_got_the_ifindex_of_a_workload_that_is_gone(cluster: Cluster) -> None:
    """The map entries stay; the index goes to an interface of another workload and then back to the same one."""
    lab = cluster.lab
    node, client = lab.nodes[2], lab.nodes[1]
    gone, other = lab.workload(2, 1), lab.workload(2, 2)
    datapath = cluster.datapaths[2]
    index = node.ifindex(gone.host_interface)
    stray = 0
    for number in range(ROUNDS):
        address = gone.ipv4 if number % 2 else gone.ipv6
        cluster.fresh()
        one, end = connection(client, gone, address, TALK_PORT)
        with datapath.counted() as grown:
            talk([one, end], 1.0 if number == 0 else 0.1)
        known = [key for key, __ in datapath.entries("flows") if key["remote_port"] == one.getsockname()[1]]
        # A recreated interface is on the kernel's path until the next run.
        assert (len(known), bypassed(grown) > 50) == ((1, True) if number == 0 else (0, False))
        assert number == 0 or not bypassed(grown)
        with datapath.counted() as grown:
            node.host_run(["ip", "link", "del", "dev", gone.host_interface])
            one.send(b"to nobody")
            attempt(client, address)
        assert bypassed(grown) == 0, grown
        add_link(node, "calistray", index, other, "eth9", "02:00:00:00:00:99")
        with frames.caught(other, "eth9") as seen, datapath.counted() as grown:
            one.send(b"to a stranger")
            attempt(client, address)
        stray += len(seen)
        assert bypassed(grown) == 0, grown
        node.host_run(["ip", "link", "del", "dev", "calistray"])
        wire(node, gone, index)
        assert node.ifindex(gone.host_interface) == index
        answered_in(client, address, 1.5)
        for closed in (one, end):
            closed.close()
    assert stray == 0
    roll_out()
    cluster.fresh()
    fast_again(cluster, client, gone)


def talk(ends: list[socket.socket], seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for speaker, listener in (ends, reversed(ends)):
            listener.settimeout(2)
            speaker.send(b"x")
            assert listener.recv(1) == b"x"
        time.sleep(0.005)
    time.sleep(0.1)  # until the last acknowledgement is there


def fast_again(cluster: Cluster, client: Endpoint, workload: Workload) -> None:
    """New connections of either family are fast in both directions."""
    for address in (workload.ipv4, workload.ipv6):
        with cluster.datapaths[2].counted() as grown:
            ends = connection(client, workload, address, TALK_PORT)
            talk(ends, 2)
        assert grown["uplink.admitted"] == 1
        assert grown["uplink.to_workload"] > 50
        assert grown["workload.to_uplink"] > 50
        for end in ends:
            end.close()


def test_a_known_flow_does_not_reach_a_workload_that_was_rolled_out_with_the_ifindex_of_another(
    cluster: Cluster,
) -> None:
    """The interface carries the programs, and the number is in its place again: only the heartbeat tells."""
    lab = cluster.lab
    node, client = lab.nodes[2], lab.nodes[1]
    gone, other = lab.workload(2, 1), lab.workload(2, 2)
    datapath = cluster.datapaths[2]
    index = node.ifindex(gone.host_interface)
    ends = [connection(client, gone, address, TALK_PORT) for address in (gone.ipv4, gone.ipv6)]
    with datapath.counted() as grown:
        for one, end in ends:
            talk([one, end], 1)
    assert bypassed(grown) > 50
    known = {key["remote_port"] for key, __ in datapath.entries("flows")}
    assert known == {one.getsockname()[1] for one, __ in ends}
    node.host_run(["ip", "link", "del", "dev", gone.host_interface])
    add_link(node, "calistray", index, other, "eth9", "02:00:00:00:00:99")
    try:
        give_address(node, "calistray", other, "eth9", "10.244.2.77")
        roll_out()
        assert index in [ifindex_of(node, name) for __, name in datapath.entries("devices")]
        assert known <= {key["remote_port"] for key, __ in datapath.entries("flows")}
        with frames.caught(other, "eth9") as seen, datapath.counted() as grown:
            for __ in range(30):
                for one, _far in ends:
                    one.send(b"to a stranger")
                time.sleep(0.05)
        assert seen == []
        assert bypassed(grown) == 0
        assert grown["uplink.heartbeat"] >= 2
        assert grown["uplink.suspended"] == 2
    finally:
        node.host_run(["ip", "link", "del", "dev", "calistray"])
        other.host_run(["ip", "rule", "del", "lookup", "77"])
        wire(node, gone, index)
        roll_out()
        for one, end in ends:
            one.close()
            end.close()


def give_address(node: Node, name: str, inside: Endpoint, inner_name: str, address: str) -> None:
    """Make it one more workload, with a way back of its own, so that the probe of a roll-out is answered."""
    node.set_sysctls({f"ipv4/conf/{name}/proxy_arp": 1, f"ipv4/neigh/{name}/proxy_delay": 0})
    ways = (
        f"addr add {address}/32 dev {inner_name}\nrule add from {address} lookup 77\n"
        f"route add {WORKLOAD_GATEWAY_IPV4} dev {inner_name} scope link table 77\n"
        f"route add default via {WORKLOAD_GATEWAY_IPV4} dev {inner_name} table 77\n"
    )
    inside.host_run(["ip", "-batch", "-"], stdin=ways)
    node.host_run(["ip", "route", "add", f"{address}/32", "dev", name, "scope", "link"])


def ifindex_of(node: Node, name: object) -> int:
    return node.ifindex(name) if isinstance(name, str) else int(str(name))


def attempt(client: Endpoint, address: str) -> None:
    with contextlib.suppress(OSError):
        client.connect(address, 8080, 0.05).close()


def answered_in(client: Endpoint, address: str, seconds: float) -> float:
    began = time.monotonic()
    assert client.http_get(address, timeout=seconds + 1)
    taken = time.monotonic() - began
    assert taken < seconds
    return taken


def test_a_workload_whose_programs_somebody_detached_is_on_the_kernels_path_without_a_pause(cluster: Cluster) -> None:
    """One program after the other. Known flows are left to the kernel in a second, new ones are not admitted."""
    lab = cluster.lab
    node, client, workload = lab.nodes[2], lab.nodes[1], lab.workload(2, 2)
    datapath = cluster.datapaths[2]
    with Conversations(pause=0.02) as live, cluster.nothing_invalid():
        for family in (4, 6):
            live.open(client, workload, TALK_PORT, family=family)
            live.open(workload, lab.workload(1, 1), TALK_PORT, family=family)
        time.sleep(3)
        live.report().unharmed()
        for direction in ("ingress", "egress"):
            detach(node, workload.host_interface, direction)
            time.sleep(0.2)  # the kernel lets go of a link a moment after its pin
            with datapath.counted() as grown:
                slowest = max(answered_in(client, workload.ipv4, 0.5) for __ in range(10))
                live.open(client, workload, TALK_PORT)
                time.sleep(2)
            report = live.report()
            print(f"{direction}: the slowest request took {slowest:.3f} s; {report}; {grown}")
            report.unharmed()
            assert not any(name.endswith(".admitted") for name in grown), grown
        with datapath.counted() as grown:
            time.sleep(0.5)
        assert bypassed(grown) == 0
        roll_out()
        time.sleep(2)
        with datapath.counted() as grown:
            time.sleep(0.5)
        live.report().unharmed()
        assert bypassed(grown) > 20  # those that were known
    cluster.fresh()
    fast_again(cluster, client, workload)
