# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes that are wired as clusters really are: a dry run finds the ways and names what stays in the kernel's path."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet import play
from fleet.datapath import Datapath, bypassed
from lab.api import Lab, Node
from lab.cluster import UPLINK
from lab.paths import PREFIX

PLAN = "Work out what this node must be"


@pytest.fixture(scope="module")
def lab(ready_lab: Lab) -> Lab:
    return ready_lab


def in_network_of(node: Node, script: str) -> None:
    """With the machine's own root file system: a node's has no /dev/net/tun."""
    subprocess.run(["nsenter", f"--net=/proc/{node.pid}/ns/net", "sh", "-ec", script], check=True)


@pytest.fixture
def node(lab: Lab) -> Iterator[Node]:
    """Node 1, which shapes its first workload and reaches the workloads of node 2 by a tunnel, of node 3 by VXLAN."""
    found = lab.nodes[1]
    two, three = lab.nodes[2].plan, lab.nodes[3].plan
    shaped = found.plan.workloads[0].host_interface
    script = f"""ip tuntap add tunl0 mode tun; ip link set tunl0 up
        ip link add vxlan.calico type vxlan id 4096 dev {UPLINK} dstport 4789 nolearning; ip link set vxlan.calico up
        ip route replace {two.pods_ipv4} via {two.ipv4} dev tunl0 onlink
        ip route replace {three.pods_ipv4} via {three.ipv4} dev vxlan.calico onlink
        ip route add blackhole 10.99.1.0/26
        tc qdisc replace dev {shaped} root tbf rate 1gbit burst 1m latency 50ms"""
    in_network_of(found, script)
    yield found
    script = f"""tc qdisc del dev {shaped} root; ip route del blackhole 10.99.1.0/26
        ip link del tunl0; ip link del vxlan.calico
        ip route replace {two.pods_ipv4} via {two.ipv4}; ip route replace {three.pods_ipv4} via {three.ipv4}"""
    in_network_of(found, script)


def plans(done: play.Run) -> dict[str, Any]:
    return {one.host: json.loads(one.result["ansible_facts"]["node_planned"]) for one in done.of(PLAN)}


def test_a_dry_run_finds_the_ways_and_names_what_is_left_out(lab: Lab, node: Node) -> None:
    done = play.playbook("site.yml", "--check", "--diff")
    planned = plans(done)
    assert set(planned) == {one.name for one in lab.nodes.values()}
    assert planned[f"{PREFIX}n1"]["uplinks"] == [UPLINK, "vxlan.calico"]
    assert planned[f"{PREFIX}n2"]["uplinks"] == [UPLINK]
    for name in (f"{PREFIX}n2", f"{PREFIX}n3"):
        kinds = {entry["key"]: entry["value"] for entry in planned[name]["maps"]["peers"]}
        assert kinds["10.99.1.0/26"] == 1, "node 1 keeps that block for its workloads"
        assert planned[name]["notes"] == []
    workload = node.plan.workloads[0].ipv4
    flags = {entry["key"]: entry["value"]["flags"] for entry in planned[f"{PREFIX}n1"]["maps"]["ifindex_map"]}
    assert flags.pop(workload) == 1
    told = " ".join(done.output.split())
    assert f"{PREFIX}n1: link tunl0 is no uplink: its packets have no Ethernet header (link type none)" in told
    assert f"{PREFIX}n1: no redirect_peer for {workload}" in told


def test_the_dry_run_tells_uplinks_and_why_in_a_line_for_nodes_that_are_wired_alike(node: Node) -> None:
    excluded = node.plan.workloads[1]
    done = play.playbook("site.yml", "--check", "-e", f"overlay_exclude={excluded.ipv4}").succeeded()
    told = " ".join(done.output.split())
    assert (
        f"uplinks {UPLINK} (default route, routes to peers), vxlan.calico (routes to peers); left out tunl0 (" in told
    )
    assert re.search(rf"uplink {UPLINK} \(default route, routes to peers\); peers: [^:]*: {PREFIX}n2, {PREFIX}n3", told)
    never = (
        f"{PREFIX}n1: the kernel's path for {excluded.ipv4}, {excluded.ipv6}: overlay_exclude names {excluded.ipv4}/32"
    )
    assert never in told
    planned = plans(done)[f"{PREFIX}n1"]
    assert excluded.host_interface not in {one["interface"] for one in planned["attachments"]}
    keys = {entry["key"] for entry in planned["maps"]["ifindex_map"]}
    assert keys & {excluded.ipv4, excluded.ipv6} == set()
    assert not [note for note in planned["notes"] if "overlay_exclude" in note], "nothing to warn of"


def test_the_status_names_them_too(node: Node) -> None:
    done = play.playbook("playbooks/status.yml").succeeded()
    assert f"{PREFIX}n1: link tunl0 is no uplink" in done.output
    assert f"{PREFIX}n1: no redirect_peer for {node.plan.workloads[0].ipv4}" in done.output


@pytest.mark.usefixtures("lab")
def test_variables_given_as_text_are_what_they_say() -> None:
    services, peers = '[{"port": "8000-8010"}, {"protocol": "tcp", "port": "80"}]', "10.0.0.0/8,fd00::/8"
    done = play.playbook(
        "site.yml", "--check", "-e", f"overlay_services='{services}'", "-e", f"overlay_peers={peers}",
        "-e", f"overlay_uplinks={UPLINK}",
    )  # fmt: skip
    for name, planned in plans(done).items():
        assert planned["maps"]["services"] == [{"key": 80, "value": 1}, {"key": "8000-8010", "value": 1}], name
        kinds = {entry["key"]: entry["value"] for entry in planned["maps"]["peers"]}
        assert [prefix for prefix, kind in kinds.items() if kind] == ["10.0.0.0/8", "fd00::/8"], name
        assert planned["uplinks"] == [UPLINK]


@pytest.mark.usefixtures("lab")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("overlay_services=web", "overlay_services. Reason: 'web' is no list"),
        ("overlay_services='[{\"port\": 99999}]'", "overlay_services[0].port. Reason: 99999 is no port"),
        ("overlay_exclude=10.244.1.300", "overlay_exclude[0]. Reason: '10.244.1.300' is neither a prefix"),
        ("overlay_peers=nodes", "overlay_peers[0]. Reason: 'nodes' is no prefix"),
    ],
)
def test_text_that_says_nothing_is_refused_by_name(text: str, words: str) -> None:
    done = play.playbook("site.yml", "--check", "-e", text)
    assert done.code != 0
    assert done.changes == set()
    assert words in " ".join(done.output.split())


def test_an_excluded_workload_leaves_the_fast_path_with_its_open_connections(lab: Lab, tmp_path: Path) -> None:
    """Each change of overlay_exclude is a generation of the nodes that have such a workload, and of no other."""
    at_once = {"overlay_batches": ["100%"]}
    play.playbook("site.yml", variables=at_once).succeeded()
    served, client = lab.workload(2, 1), Datapath(lab.nodes[2])
    connection = lab.nodes[1].connect(served.ipv4, 8080)

    def ask(times: int = 20) -> dict[str, int]:
        with client.counted() as grown:
            for __ in range(times):
                connection.sendall(b"GET / HTTP/1.1\r\nHost: workload\r\n\r\n")
                assert connection.recv(65536)
                time.sleep(0.02)
        return grown

    ask()
    assert bypassed(ask()) > 20
    excluding = {**at_once, "overlay_exclude": [served.ipv4]}
    done = play.playbook("site.yml", variables=excluding).succeeded()
    assert {host for host, _task in done.changes} == {f"{PREFIX}n2"}
    assert bypassed(ask()) == 0
    connection.close()
    assert play.playbook("site.yml", variables=excluding).succeeded().changes == set()
    files = {"overlay_status_json": str(tmp_path / "status.json"), "overlay_exclude": [served.ipv4]}
    told = play.playbook("playbooks/status.yml", variables=files).succeeded()
    assert f"overlay_exclude names {served.ipv4}/32" in told.output
    found = {one["name"]: one for one in json.loads((tmp_path / "status.json").read_text(encoding="utf-8"))["nodes"]}
    assert {one["address"] for one in found[f"{PREFIX}n2"]["wiring"]["kernel_path"]} == {served.ipv4, served.ipv6}
    assert [one["name"] for one in found[f"{PREFIX}n1"]["wiring"]["uplinks"]] == [UPLINK]
    assert found[f"{PREFIX}n1"]["wiring"]["peers"]["prefixes"] > 0
    counted = found[f"{PREFIX}n2"]["connections"]
    assert counted["begun"] == counted["admitted"] > 0
    done = play.playbook("site.yml", variables=at_once).succeeded()
    assert {host for host, _task in done.changes} == {f"{PREFIX}n2"}
    play.playbook("rollback.yml", variables={"overlay_rollback_to": "0"}).succeeded()
