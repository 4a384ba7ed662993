# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes that are wired as clusters really are: a dry run finds the ways and names what stays in the kernel's path."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from fleet import play
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
        ("overlay_peers=nodes", "overlay_peers[0]. Reason: 'nodes' is no prefix"),
    ],
)
def test_text_that_says_nothing_is_refused_by_name(text: str, words: str) -> None:
    done = play.playbook("site.yml", "--check", "-e", text)
    assert done.code != 0
    assert done.changes == set()
    assert words in " ".join(done.output.split())
