# SPDX-License-Identifier: GPL-3.0-or-later
"""What is told of a node's wiring, and of a fleet's in a few lines."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import wiring as _wiring
from ansible_collections.ebpf.overlay.plugins.plugin_utils._wiring_report import wiring_report

from .test_topology import cluster, interface, picture_of, plan, route, workload


def told_of(facts: dict[str, Any], name: str = "n1", peers: Any = ()) -> dict[str, Any]:
    found: dict[str, Any] = plan(name, facts, peers=peers)["wiring"]
    return found


def vxlan(facts: dict[str, Any]) -> dict[str, Any]:
    """Node 1 reaches the workloads of node 2 by VXLAN, and those of node 3 by IPIP."""
    facts["n1"]["interfaces"] += [
        interface("vxlan.calico", 9, "10.244.1.0/32"),
        interface("tunl0", 8, link_type="ipip"),
    ]
    facts["n1"]["routes"][2] = route("10.244.2.0/24", "vxlan.calico", "10.244.2.0")
    facts["n1"]["routes"][3] = route("10.244.3.0/24", "tunl0", "198.18.0.13")
    facts["n2"]["own_addresses"].append("10.244.2.0")
    return facts


def test_uplinks_and_links_left_out_say_why() -> None:
    found = told_of(vxlan(cluster()))
    assert found["uplinks"] == [
        {"name": "ens47f1", "why": ["default route", "routes to peers"], "addresses": 2, "prefixes": 0},
        {"name": "vxlan.calico", "why": ["routes to peers"], "addresses": 1, "prefixes": 1},
    ]
    assert [one["name"] for one in found["links_left_out"]] == ["tunl0"]
    assert found["peers"] == {"addresses": 3, "prefixes": 2}
    facts = cluster()
    facts["n1"]["uplinks_by_route"] = False
    assert [one["why"] for one in told_of(facts)["uplinks"]] == [["named by overlay_uplinks"]]
    facts = cluster()
    facts["n1"]["routes"] += [{**route("0.0.0.0/0", "ens47f1", "198.18.0.9"), "table": "100"}]
    assert told_of(facts)["uplinks"][0]["why"] == ["default route", "default route of table 100", "routes to peers"]


def test_the_links_of_routes_to_the_users_peers_are_uplinks() -> None:
    facts = cluster()
    facts["n1"]["interfaces"].append(interface("eth1", 9, "192.0.2.1/24"))
    facts["n1"]["routes"].append(route("172.16.0.0/12", "eth1", "192.0.2.254"))
    assert plan("n1", facts)["uplinks"] == ["ens47f1"]
    assert plan("n1", facts, peers=["172.16.0.0/16"])["uplinks"] == ["ens47f1", "eth1"]
    assert plan("n1", facts, peers="any")["uplinks"] == ["ens47f1"]


def test_workloads_that_never_qualify_are_in_no_map_and_told_with_the_reason() -> None:
    facts = cluster()
    before = plan("n1", facts)
    facts["n1"]["workloads"] += [
        workload("10.244.1.12", "cali2", 6, excluded="10.244.1.12/32"),
        workload("fd44::12", "cali2", 6, excluded="10.244.1.12/32"),
        workload("10.244.1.14", "cali4", 8, unfit="its packets have no Ethernet header (link type none)"),
    ]
    after = plan("n1", facts)
    assert {key: after[key] for key in ("maps", "attachments")} == {key: before[key] for key in ("maps", "attachments")}
    assert {one["address"]: one["reason"] for one in after["wiring"]["kernel_path"]} == {
        "10.244.1.12": "overlay_exclude names 10.244.1.12/32",
        "fd44::12": "overlay_exclude names 10.244.1.12/32",
        "10.244.1.14": "its packets have no Ethernet header (link type none)",
    }
    assert after["notes"] == ["the kernel's path for 10.244.1.14: its packets have no Ethernet header (link type none)"]


def test_keys_that_facts_did_not_have_change_no_generation() -> None:
    facts = cluster()
    now = plan("n1", facts)
    for node in facts.values():
        for one in node["workloads"]:
            assert one.pop("unfit", one.pop("excluded", "")) == ""
    former = plan("n1", facts)
    assert {key: former[key] for key in ("maps", "attachments")} == {key: now[key] for key in ("maps", "attachments")}


@pytest.mark.parametrize(
    ("uplinks", "workloads", "peers", "words"),
    [
        (["eth0"], ["10.0.0.1"], ["10.1.0.0/16"], ""),
        (["eth0"], [], ["10.1.0.0/16"], ""),
        ([], [], ["10.1.0.0/16"], "no uplink was found"),
        (["eth0"], [], [], "it has no peers"),
        (["eth0"], [], ["10.1.0.1", "fd00::1/128"], "only addresses"),
        (["eth0"], ["10.0.0.1", "fd00::1"], ["10.1.0.0/16", "fd00::2"], "no IPv6 prefix"),
        (["eth0"], ["10.0.0.1"], ["fd00::/64"], "no IPv4 prefix"),
    ],
)
def test_what_is_missing_is_said_by_name(
    uplinks: list[str], workloads: list[str], peers: list[str], words: str
) -> None:
    found = _wiring.lacks([workload(address, "cali1", 5) for address in workloads], uplinks, peers)
    assert len(found) == bool(words)
    assert words in "".join(found)


def test_a_node_all_of_whose_workloads_stay_in_the_kernels_path_says_so() -> None:
    excluded = [workload("10.0.0.1", "cali1", 5, excluded="cali*")]
    assert _wiring.lacks(excluded, ["eth0"], ["10.1.0.0/16"]) == ["none of its workloads can take the fast path"]


def test_a_node_alone_has_no_peers_and_says_so() -> None:
    assert any("it has no peers" in note for note in plan("n1", cluster(1))["notes"])


def test_nodes_whose_workloads_no_route_tells_are_named() -> None:
    facts = cluster()
    for node in facts.values():
        node["routes"] = [one for one in node["routes"] if one["prefix"] != "10.244.3.0/24"]
    (note,) = plan("n1", facts, picture_of(facts))["notes"]
    assert "workloads of n3 are no peers" in note
    assert plan("n1", facts, peers=["10.244.2.0/24"])["notes"] == []
    facts["n1"]["routes"].append(route("10.244.0.0/16", "ens47f1", "198.18.0.12"))
    assert plan("n1", facts, picture_of(facts))["notes"] == []


def test_nodes_that_are_wired_alike_share_a_line() -> None:
    facts = vxlan(cluster(5))
    facts["n4"]["workloads"] += [workload("10.244.4.12", "cali2", 6, excluded="cali2")]
    facts["n5"] |= {"uplinks": [], "interfaces": []}
    picture = picture_of(facts)
    lines = wiring_report({name: plan(name, facts, picture)["wiring"] for name in facts})
    assert lines == [
        "uplinks ens47f1 (default route, routes to peers), vxlan.calico (routes to peers); left out tunl0 (its packets "
        "have no Ethernet header (link type ipip)); peers: 5 addresses and 4 prefixes: n1",
        "uplink ens47f1 (default route, routes to peers); peers: 4 to 5 addresses and 4 prefixes: n2, n3, n4",
        "NO UPLINK; peers: 5 addresses and 4 prefixes: n5",
        "n4: the kernel's path for 10.244.4.12: overlay_exclude names cali2",
    ]
    assert wiring_report({}) == []
