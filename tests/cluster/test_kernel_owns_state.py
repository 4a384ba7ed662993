# SPDX-License-Identifier: GPL-3.0-or-later
"""conntrack's entries, and what ends or silence do to a connection, are as without the overlay."""

from __future__ import annotations

import socket
import struct
import time

import pytest
from fleet.datapath import TALK_PORT, Cluster, bypassed, full, until_fast
from fleet.ends import of
from fleet.traffic import Conversations, connection
from lab.api import Node

pytest_plugins = ["fleet.deployed"]

BOTH = pytest.mark.parametrize("family", [4, 6])


def entries(node: Node, port: int) -> list[dict[str, str | list[str]]]:
    """What conntrack knows of connections from a client's port."""
    return [one for one in node.conntrack() if one.get("original.sport") == str(port)]


def talk(ends: list[socket.socket], times: int = 100) -> None:
    for end in ends:
        end.settimeout(2)
    for __ in range(times):
        for speaker, listener in (ends, ends[::-1]):
            speaker.send(b"x")
            assert listener.recv(16) == b"x"


def test_flushing_conntrack_under_load_cuts_nothing(cluster: Cluster) -> None:
    """Between workloads: what the node masquerades in one direction only, a flush cuts without the overlay too."""
    lab = cluster.lab
    node = lab.nodes[2]
    with Conversations(pause=0.01) as live:
        for number in range(full(200, 20)):
            family = (4, 6)[number % 2]
            live.open(lab.workload(1, 1), lab.workload(2, 1), TALK_PORT, family=family)
            live.open(lab.workload(2, 2), lab.workload(1, 2), TALK_PORT, family=family)
        until_fast(cluster.datapaths[2], 1000)
        live.report().unharmed()
        with cluster.nothing_invalid():
            for __ in range(3):
                node.host_run(["conntrack", "-F"])
                time.sleep(1)
                live.report().unharmed()
            cluster.mode("off", force=True)
            time.sleep(0.5)
            live.report().unharmed()


@BOTH
@pytest.mark.parametrize("end", [0, 1], ids=["client", "server"])
@pytest.mark.parametrize("way", ["close", "reset"])
def test_end_of_a_connection_is_what_conntrack_sees_without_the_overlay(
    cluster: Cluster, way: str, end: int, family: int
) -> None:
    lab = cluster.lab
    client, server, node = lab.nodes[1], lab.workload(2, 1), lab.nodes[2]
    seen = []
    with cluster.nothing_invalid():
        for mode in ("off", "on"):
            cluster.mode(mode, **({"force": True} if mode == "off" else {}))
            ends = connection(client, server, of(server, family), TALK_PORT)
            port = ends[0].getsockname()[1]
            with cluster.datapaths[2].counted() as grown:
                talk(ends, 300)
            assert (bypassed(grown) > 100) is (mode == "on")
            established = [(one["state"], sorted(one["flags"])) for one in entries(node, port)]
            other = ends[1 - end]
            if way == "reset":
                ends[end].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            ends[end].close()
            try:
                told = f"{len(other.recv(16))} bytes"
            except ConnectionResetError:
                told = "reset"
            other.close()
            time.sleep(0.3)
            ended: list[object] = [one.get("state") for one in entries(node, port)]
            if way == "reset":
                # Beyond the frozen window a RST leaves the state; ten seconds are left (nf_conntrack_tcp_packet).
                ended = [int(str(one["timeout"])) <= 10 for one in entries(node, port)]
            sockets = [
                place.host_run(["ss", "-Htan", f"( sport = :{port} or dport = :{port} )"]).split()[:1]
                for place in (client, server)
            ]
            seen.append((established, told, ended, sockets))
    assert seen[0] == seen[1]
    assert seen[0][0] == [("ESTABLISHED", ["ASSURED"])]
    assert seen[0][1] == ("reset" if way == "reset" else "0 bytes")


@BOTH
@pytest.mark.parametrize("silence", [5, full(61, 7)])
@pytest.mark.parametrize("speaks_first", [0, 1], ids=["client", "server"])
def test_silence_right_after_the_handshake_harms_nothing(
    cluster: Cluster, speaks_first: int, silence: int, family: int
) -> None:
    lab = cluster.lab
    pairs = [(lab.nodes[1], lab.workload(2, 1)), (lab.workload(2, 1), lab.workload(1, 1))]
    with cluster.nothing_invalid():
        opened = [connection(client, server, of(server, family), TALK_PORT) for client, server in pairs]
        time.sleep(silence)
        for ends in opened:
            speaker, listener = ends[speaks_first], ends[1 - speaks_first]
            listener.settimeout(0.15)  # less than a repeat takes
            with cluster.datapaths[2].counted() as grown:
                speaker.send(b"x")
                assert listener.recv(16) == b"x"
                talk(ends, 300)
            assert bypassed(grown) > 100
            for end in ends:
                end.close()
