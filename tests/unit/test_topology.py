# SPDX-License-Identifier: GPL-3.0-or-later
"""From the facts of all nodes to the maps of one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.ebpf.overlay.plugins.module_utils import _topology, _uplinks
from ansible_collections.ebpf.overlay.plugins.module_utils._codec import Codec, encode_entries, in_blocks
from ansible_collections.ebpf.overlay.plugins.module_utils._errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._layout import SCHEMAS

SERVICES = [{"protocol": "tcp", "port": 8080}]
NOW = 1_800_000_000
CONTROLLER = _topology.Controller(("f" * 32, "boot-f"), {"n1": "198.18.0.11"})


def interface(name: str, ifindex: int, *addresses: str, **more: Any) -> dict[str, Any]:
    found = {
        "name": name, "ifindex": ifindex, "mtu": 1500, "mac": "02:00:00:00:00:01", "kind": "veth", "loopback": False,
        "up": True, "addresses": list(addresses), "primary": [address.split("/")[0] for address in addresses[:1]],
        "link_type": "ether", "external": False, "master": "", "member_of": "", **more,
    }  # fmt: skip
    return {"unfit": _uplinks.why_unfit(found, ["cali*"]), **found}


def route(
    prefix: str, interface: str | None, gateway: str | None = None, metric: int = 0, source: str | None = None
) -> dict[str, Any]:
    return {"prefix": prefix, "interface": interface, "gateway": gateway, "metric": metric, "source": source}


def workload(address: str, interface: str, ifindex: int, **more: str) -> dict[str, Any]:
    free = {"never_by_peer": "", "may_be_taken": "", "never_admitted": ""}
    return {"address": address, "interface": interface, "ifindex": ifindex, "mtu": 1500, "mac": None, **free, **more}


def node(number: int, nodes: int = 3, uplinks: tuple[str, ...] = ()) -> dict[str, Any]:
    """The facts of a node as in the lab: one uplink, one workload, a route per other node."""
    links = [interface("ens47f1", 2, f"198.18.0.{10 + number}/24")]
    routes = [route("0.0.0.0/0", "ens47f1", "198.18.0.1"), route("198.18.0.0/24", "ens47f1")]
    routes += [
        route(f"10.244.{other}.0/24", "ens47f1", f"198.18.0.{10 + other}")
        for other in range(1, nodes + 1)
        if other != number
    ]
    found, left_out = _uplinks.find_uplinks(links, routes, uplinks)
    return {
        "format": _topology.FORMAT,
        "interfaces": links,
        "routes": routes,
        "workloads": [workload(f"10.244.{number}.11", "cali1", 5)],
        "workload_prefixes": [],
        "uplinks": found,
        "uplinks_by_route": not uplinks,
        "links_left_out": left_out,
        "addresses": [f"198.18.0.{10 + number}"],
        "own_addresses": _uplinks.own_addresses(links, routes),
        "identity": {"machine_id": f"{number:032x}", "boot_id": f"boot-{number}"},
        "gathered_at": NOW - 100,
        "capabilities": {"supported": True},
        "kernel": {"release": "6.1.0-40-amd64"},
        "known_peers": [],
    }


def cluster(nodes: int = 3) -> dict[str, Any]:
    return {f"n{number}": node(number, nodes) for number in range(1, nodes + 1)}


def picture_of(facts: dict[str, Any], fresh: tuple[str, ...] | None = None, max_age: float = 3600) -> dict[str, Any]:
    """By default this run gathered all facts."""
    return _topology.build_picture(facts, facts if fresh is None else fresh, NOW, max_age, CONTROLLER)


def planned_peers(name: str, facts: dict[str, Any], picture: dict[str, Any]) -> dict[str, Any]:
    entries = _topology.plan_node(name, facts[name], picture, SERVICES)["maps"]["peers"]
    return {entry["key"]: entry["value"] for entry in entries}


def test_peers_are_the_other_nodes_and_what_is_routed_through_them() -> None:
    facts = cluster()
    planned = _topology.plan_node("n1", facts["n1"], picture_of(facts), SERVICES)
    peers = {entry["key"]: entry["value"] for entry in planned["maps"]["peers"]}
    assert peers == {
        "198.18.0.11/32": {"uplink": 0, "mtu": 0, "next_hop": "::"},  # its own: never a peer
        "198.18.0.12/32": {"uplink": 2, "mtu": 1500, "next_hop": "::"},
        "198.18.0.13/32": {"uplink": 2, "mtu": 1500, "next_hop": "::"},
        "10.244.2.0/24": {"uplink": 2, "mtu": 1500, "next_hop": "198.18.0.12"},
        "10.244.3.0/24": {"uplink": 2, "mtu": 1500, "next_hop": "198.18.0.13"},
    }


def test_the_reply_side_is_attached_first() -> None:
    facts = cluster()
    planned = _topology.plan_node("n1", facts["n1"], picture_of(facts), SERVICES)
    assert [attachment["interface"] for attachment in planned["attachments"]] == ["cali1", "ens47f1"]
    assert [entry["value"] for entry in planned["maps"]["devices"]] == [2, 5]


def test_an_uplink_that_only_leads_to_peers_is_found_by_route_unless_the_user_chose() -> None:
    facts = cluster(2)
    facts["n1"]["interfaces"].append(interface("ens9", 9, "203.0.113.1/24"))
    facts["n1"]["routes"].append(route("198.18.0.12", "ens9"))
    picture = picture_of(facts)
    assert _topology.plan_node("n1", facts["n1"], picture, SERVICES)["uplinks"] == ["ens47f1", "ens9"]
    facts["n1"]["uplinks_by_route"] = False
    planned = _topology.plan_node("n1", facts["n1"], picture, SERVICES)
    assert planned["uplinks"] == ["ens47f1"]
    assert "198.18.0.12/32" not in {entry["key"] for entry in planned["maps"]["peers"]}


def test_every_planned_entry_fits_its_schema() -> None:
    facts = cluster()
    planned = _topology.plan_node("n2", facts["n2"], picture_of(facts), SERVICES)
    for name, entries in planned["maps"].items():
        key, value = SCHEMAS[name]
        assert len(encode_entries(in_blocks(entries), Codec(key, "key"), Codec(value, "value"))) == len(entries), name


def test_two_nodes_with_one_address_are_refused_by_name() -> None:
    facts = {"n1": node(1), "other": {**node(2), "uplinks": node(1)["uplinks"]}}
    with pytest.raises(OverlayError, match=r"n1 and other.*198\.18\.0\.11"):
        picture_of(facts)


def test_one_machine_under_two_names_is_refused_and_clones_are_not() -> None:
    facts = cluster(2)
    facts["n2"]["identity"] = {**facts["n1"]["identity"], "boot_id": "boot-2"}  # a clone
    assert sorted(picture_of(facts)["nodes"]) == ["n1", "n2"]
    facts["n2"]["identity"] = facts["n1"]["identity"]
    with pytest.raises(OverlayError, match=r"n1 and n2.*one machine"):
        picture_of(facts)
    for name in facts:
        facts[name]["identity"] = {"machine_id": "", "boot_id": "boot"}  # it has none: nothing is known
    assert sorted(picture_of(facts)["nodes"]) == ["n1", "n2"]


def test_a_node_with_the_facts_of_the_controller_is_refused_unless_it_is_the_controller() -> None:
    facts = cluster(2)
    facts["n1"]["identity"] = {"machine_id": "f" * 32, "boot_id": "boot-f"}
    assert sorted(picture_of(facts)["nodes"]) == ["n1", "n2"]
    facts["n1"]["addresses"] = ["192.0.2.1"]
    with pytest.raises(OverlayError, match=r"node n1.*controller"):
        picture_of(facts)


def test_a_kernel_that_is_too_old_is_refused_before_anything_is_done() -> None:
    facts = cluster(2)
    facts["n2"] |= {"capabilities": {"supported": False}, "kernel": {"release": "5.4.0-200-generic"}}
    with pytest.raises(OverlayError, match=r"node n2.*5\.4\.0-200-generic is older than Linux 5\.10"):
        picture_of(facts)


def test_nodes_without_facts_or_with_old_ones_are_named() -> None:
    facts: dict[str, Any] = {**cluster(3), "n4": None}
    facts["n2"]["gathered_at"] = facts["n3"]["gathered_at"] = NOW - 7200
    picture = picture_of(facts, fresh=("n3",))
    assert sorted(picture["nodes"]) == ["n1", "n3"]
    assert picture["missing"] == {"n2": "facts are 2.0 h old", "n4": "no facts"}


@given(st.integers(2, 8), st.data())
def test_a_node_that_is_missing_shrinks_nobodys_map(nodes: int, data: st.DataObject) -> None:
    facts = cluster(nodes)
    before = {name: planned_peers(name, facts, picture_of(facts)) for name in facts}
    lost = data.draw(st.sets(st.sampled_from(sorted(facts)), min_size=1))
    for name in facts:
        known = [{"key": key, "value": value} for key, value in before[name].items() if value["uplink"]]
        facts[name]["known_peers"] = known
        # Routes of nodes that are gone may be gone too.
        if data.draw(st.booleans()):
            facts[name]["routes"] = facts[name]["routes"][:3]
    picture = picture_of({name: None if name in lost else facts[name] for name in facts})
    for name in set(facts) - lost:
        assert planned_peers(name, facts, picture) == before[name]


@given(st.integers(2, 8), st.data())
def test_a_node_that_was_removed_leaves_no_entry(nodes: int, data: st.DataObject) -> None:
    facts = cluster(nodes)
    removed = data.draw(st.sampled_from(sorted(facts)))
    before = {name: planned_peers(name, facts, picture_of(facts)) for name in facts}
    left = {name: facts[name] for name in facts if name != removed}
    theirs = {f"198.18.0.{10 + int(removed[1:])}/32", f"10.244.{removed[1:]}.0/24"}
    for name, node_facts in left.items():
        node_facts["known_peers"] = [{"key": key, "value": value} for key, value in before[name].items()]
        assert set(before[name]) - set(planned_peers(name, left, picture_of(left))) == theirs


def test_a_peer_whose_interface_is_gone_is_not_kept() -> None:
    facts = cluster(2)
    value = {"uplink": 77, "mtu": 1500, "next_hop": "::"}
    facts["n1"]["known_peers"] = [{"key": "192.0.2.1/32", "value": value}]
    assert "192.0.2.1/32" not in planned_peers("n1", facts, picture_of({"n1": facts["n1"], "n2": None}))


@given(st.integers(2, 12))
def test_every_node_knows_every_other_and_never_itself(nodes: int) -> None:
    facts = cluster(nodes)
    picture = picture_of(facts)
    for number in range(1, nodes + 1):
        planned = _topology.plan_node(f"n{number}", facts[f"n{number}"], picture, SERVICES)
        peers = {entry["key"]: entry["value"]["uplink"] for entry in planned["maps"]["peers"]}
        assert planned["peers"] == nodes - 1
        assert [prefix for prefix, uplink in peers.items() if not uplink] == [f"198.18.0.{10 + number}/32"]
        assert len(peers) == 1 + 2 * (nodes - 1)
        assert f"10.244.{number}.0/24" not in peers


@given(st.sets(st.integers(1, 100_000), max_size=110))
def test_every_interface_is_where_the_datapath_looks_for_it(ifindexes: set[int]) -> None:
    try:
        placed = _topology.place_devices(ifindexes)
    except OverlayError:
        crowded = max(sum(1 for other in ifindexes if (other ^ one) % 8192 < 4) for one in ifindexes)
        assert crowded > 4
        return
    assert {ifindex for _, ifindex in placed} == ifindexes
    assert len({place for place, _ in placed}) == len(ifindexes)
    assert all((place ^ ifindex) % 8192 < 4 for place, ifindex in placed)


def test_more_interfaces_than_places_are_refused() -> None:
    assert len(_topology.place_devices([8, 8 + 8192, 8 + 2 * 8192, 8 + 3 * 8192])) == 4
    with pytest.raises(OverlayError, match=r"ifindex 32776.*4 others"):
        _topology.place_devices([8 + number * 8192 for number in range(5)])


def test_the_picture_hands_on_a_few_workloads_of_each_node() -> None:
    facts = cluster(2)
    facts["n1"]["workloads"] = [workload(f"10.244.1.{last}", "cali1", 2) for last in range(10, 15)]
    nodes = picture_of(facts)["nodes"]
    assert nodes["n1"]["workloads"] == ["10.244.1.10", "10.244.1.11", "10.244.1.12"]
    assert nodes["n2"]["workloads"] == [one["address"] for one in facts["n2"]["workloads"]]
