# SPDX-License-Identifier: GPL-3.0-or-later
"""Each wiring is what it says, on real devices and by real daemons, and a node that reboots gets it again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from lab import paths, wirings
from lab.api import Endpoint, Lab, Node, wait_until
from lab.cluster import HTTP_PORT, NODE_PORT, UPLINK
from lab.paths import LabError
from lab.testing import run_lab
from lab.wirings import bgp, bridge, ecmp, ptp, tunnel, vxlan

FAMILIES = ("ipv4", "ipv6")


def test_the_document_has_every_wiring_and_names_tests_that_exist() -> None:
    root = paths.LAB_DIR.parent.parent
    text = (root / "docs" / "wirings.md").read_text(encoding="utf-8")
    assert [name for name in wirings.NAMES if f"`{name}`" not in text] == []
    named = set(re.findall(r"`(test_\w+)`", text))
    files = (root / "tests").glob("*/test_*.py")
    there = {name for file in files for name in re.findall(r"def (test_\w+)", file.read_text(encoding="utf-8"))}
    assert named - there == set()


@pytest.fixture(scope="module", params=wirings.NAMES)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    run_lab("up", "--nodes", "2", "--workloads", "2", "--wiring", request.param)
    yield Lab.load()
    run_lab("down")


def shown(end: Endpoint, *arguments: str) -> list[dict[str, Any]]:
    """What ``ip`` says there."""
    found: list[dict[str, Any]] = json.loads(end.host_run(["ip", "-d", "-j", *arguments]) or "[]")
    return found


def sent(node: Node, device: str) -> int:
    return node.interface_counters(device)["tx_packets"]


def used(lab: Lab, device: str, family: str, times: int = 20) -> bool:
    """Whether connections from a workload of node 1 to one of node 2 leave by a device."""
    before = sent(lab.nodes[1], device)
    for __ in range(times):
        assert lab.workload(1, 1).http_get(getattr(lab.workload(2, 1), family))["workload"] == lab.workload(2, 1).name
    return sent(lab.nodes[1], device) >= before + times


def direct_is_plain(lab: Lab) -> None:
    assert all(used(lab, UPLINK, family) for family in FAMILIES)


def vxlan_learns_nothing(lab: Lab) -> None:
    for family, device in vxlan.DEVICES.items():
        data = shown(lab.nodes[1], "link", "show", device)[0]
        assert data["mtu"] == vxlan.MTU[family]
        assert data["linkinfo"]["info_data"]["learning"] is False
        assert [one["state"] for one in shown(lab.nodes[1], "neighbour", "show", "dev", device)] == [["PERMANENT"]]
        routes = shown(lab.nodes[1], f"-{family}", "route", "show", "dev", device, "proto", "80")
        assert [route["flags"] for route in routes] == [["onlink"]]
        assert used(lab, device, f"ipv{family}")
    assert shown(lab.workload(1, 1), "link", "show", "eth0")[0]["mtu"] == min(vxlan.MTU.values())


def ecmp_uses_both_uplinks(lab: Lab) -> None:
    for family in FAMILIES:
        before = {device: sent(lab.nodes[1], device) for device in (UPLINK, ecmp.SECOND)}
        used(lab, UPLINK, family, 40)
        grown = [sent(lab.nodes[1], device) - before[device] for device in before]
        assert min(grown) > 40, grown  # by ports: some four packets for each connection
    for policy, ways in ((0, 1), (1, 2)):
        ecmp.hash_by_ports(lab.nodes[1].name, policy)
        found = {
            shown(lab.nodes[1], "route", "get", lab.workload(2, 1).ipv4, "ipproto", "tcp", "sport", str(port),
                  "dport", str(HTTP_PORT))[0]["dev"]
            for port in range(40000, 40032)
        }  # fmt: skip
        assert len(found) == ways


def bridge_is_seen_by_the_packet_filter(lab: Lab) -> None:
    node = lab.nodes[1]
    assert shown(node, "link", "show", UPLINK)[0]["master"] == bridge.BRIDGE
    assert node.ipv4 in [one["local"] for one in shown(node, "address", "show", bridge.BRIDGE)[0]["addr_info"]]
    assert node.run(["cat", "/proc/sys/net/bridge/bridge-nf-call-iptables"]).stdout == "1\n"
    assert all(used(lab, bridge.BRIDGE, family) for family in FAMILIES)


def ptp_is_the_plugins_work(lab: Lab) -> None:
    node, workload = lab.nodes[1], lab.workload(1, 2)
    gone = workload.host_interface
    assert gone.startswith("veth")
    assert 'overlay_workload_interfaces: ["veth*"]' in paths.INVENTORY.read_text()
    reserved = paths.RUN_DIR / "cni" / node.name / workload.ipv4
    assert reserved.exists()
    ptp.cni("DEL", node.plan, workload.plan)
    assert not reserved.exists()
    assert gone not in [link["ifname"] for link in shown(node, "link")]
    with pytest.raises(OSError, match=r"timed out|No route|unreachable"):
        lab.workload(2, 1).connect(workload.ipv4, HTTP_PORT, 0.5)
    ptp.cni("ADD", node.plan, workload.plan)
    assert workload.host_interface != gone
    assert lab.workload(2, 1).http_get(workload.ipv4)["workload"] == workload.name


def bgp_tells_of_a_new_block(lab: Lab) -> None:
    here, there = lab.nodes
    for family, block in ((4, "10.244.1.64/26"), (6, "fd00:10:244:1::40/122")):
        own = shown(lab.nodes[here], f"-{family}", "route", "show", "proto", "bird", "type", "blackhole")
        assert [route["dst"] for route in own] == [bgp.blocks(lab.nodes[here].plan)[family]]
        assert not shown(lab.nodes[there], f"-{family}", "route", "show", block)
        bgp.add_block(lab.nodes[here].plan, block)
        wait_until(
            lambda family=family, block=block: bool(shown(lab.nodes[there], f"-{family}", "route", "show", block)),  # type: ignore[misc]
            5, f"node 2 has a route to {block}",
        )  # fmt: skip
        assert shown(lab.nodes[there], f"-{family}", "route", "show", block)[0]["protocol"] == "bird"


def tunnel_has_no_ethernet(lab: Lab) -> None:
    assert shown(lab.nodes[1], "link", "show", tunnel.DEVICE)[0]["link_type"] == "none"
    for family in FAMILIES:
        assert used(lab, tunnel.DEVICE, family)
        address, size = getattr(lab.workload(2, 1), family), 3_000_000
        assert len(lab.workload(1, 1).http_request(address, path=f"/bytes/{size}")) == size


WHAT_IT_SAYS = {
    "direct": direct_is_plain,
    "vxlan": vxlan_learns_nothing,
    "ecmp": ecmp_uses_both_uplinks,
    "bridge": bridge_is_seen_by_the_packet_filter,
    "ptp": ptp_is_the_plugins_work,
    "bgp": bgp_tells_of_a_new_block,
    "tunnel": tunnel_has_no_ethernet,
}


def test_it_is_what_it_says(lab: Lab) -> None:
    WHAT_IT_SAYS[lab.cluster.wiring](lab)


@pytest.mark.parametrize("family", FAMILIES)
def test_everybody_reaches_everybody(lab: Lab, family: str) -> None:
    target, masked = lab.workload(2, 1), lab.workload(1, 1)
    for client in (lab.fabric, lab.nodes[1], lab.nodes[2], masked, lab.workload(2, 2)):
        assert client.http_get(getattr(target, family))["workload"] == target.name
        assert client.http_get(getattr(lab.nodes[2], family), NODE_PORT)["workload"] == target.name


def test_a_node_that_reboots_is_wired_again(lab: Lab) -> None:
    node = lab.nodes[1]
    try:
        node.start()
    except LabError as error:
        raise AssertionError(paths.tail(paths.LOGS / "supervisor.log")) from error
    for family in FAMILIES:
        wait_until(lambda family=family: answers(lab, family), 20, f"workloads of node 1 answer by {family}")  # type: ignore[misc]


def answers(lab: Lab, family: str) -> bool:
    here, there = lab.workload(1, 1), lab.workload(2, 1)
    try:
        return all(
            client.http_get(getattr(server, family), timeout=1)["workload"] == server.name
            for client, server in ((here, there), (there, here))
        )
    except OSError:
        return False
