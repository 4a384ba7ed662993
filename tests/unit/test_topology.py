# SPDX-License-Identifier: GPL-3.0-or-later
"""From the facts of all nodes to the maps of one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import topology
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import uplinks as _uplinks
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.layout import SCHEMAS
from ansible_collections.ebpf.overlay.plugins.module_utils._maps.codec import Codec, encode_entries, in_blocks

SERVICES = [{"protocol": "tcp", "port": 8080}]
NOW = 1_800_000_000
CONTROLLER = topology.Controller(("f" * 32, "boot-f"), {"n1": "198.18.0.11"})


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
    free = dict.fromkeys(("never_by_peer", "may_be_taken", "never_admitted", "unfit", "excluded"), "")
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
        "format": topology.FORMAT,
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
    return topology.build_picture(facts, facts if fresh is None else fresh, NOW, max_age, CONTROLLER)


def plan(name: str, facts: dict[str, Any], picture: dict[str, Any] | None = None, peers: Any = ()) -> dict[str, Any]:
    return topology.plan_node(name, facts[name], picture or picture_of(facts), SERVICES, peers)


def planned_peers(name: str, facts: dict[str, Any], picture: dict[str, Any]) -> dict[str, Any]:
    entries = plan(name, facts, picture)["maps"]["peers"]
    return {entry["key"]: entry["value"] for entry in entries}


def test_peers_are_the_other_nodes_and_the_prefixes_of_their_workloads() -> None:
    facts = cluster()
    facts["n3"]["workload_prefixes"] = ["10.244.3.0/26", "fd44::/122"]
    assert planned_peers("n1", facts, picture_of(facts)) == {
        "198.18.0.11/32": 0,  # its own: never a peer
        "198.18.0.12/32": 1,
        "198.18.0.13/32": 1,
        "10.244.2.0/24": 1,
        "10.244.3.0/24": 1,  # holds the block that the node itself names
        "fd44::/122": 1,
    }


def test_what_one_node_knows_of_another_all_others_learn() -> None:
    """The next hop of a node in another rack is a switch."""
    facts = cluster()
    facts["n1"]["routes"] = facts["n1"]["routes"][:2]
    assert {"10.244.2.0/24", "10.244.3.0/24"} <= set(planned_peers("n1", facts, picture_of(facts)))


def test_the_users_peers_replace_the_nodes() -> None:
    facts = cluster()
    found = plan("n1", facts, peers="any")
    assert {entry["key"]: entry["value"] for entry in found["maps"]["peers"]} == {
        "0.0.0.0/0": 1, "::/0": 1, "198.18.0.11/32": 0,
    }  # fmt: skip
    assert found["uplinks"] == ["ens47f1"]
    with pytest.raises(OverlayError, match=r"overlay_peers\[0\]"):
        plan("n1", facts, peers=["everybody"])


def test_a_default_route_by_way_of_a_node_makes_nobody_a_peer() -> None:
    facts = cluster()
    facts["n1"]["routes"][0] = route("0.0.0.0/0", "ens47f1", "198.18.0.12")
    facts["n1"]["known_peers"] = ["0.0.0.0/0", "10.244.9.0/24"]  # as release 1.0.0 had it
    facts["n3"] = None
    peers = planned_peers("n1", facts, picture_of(facts))
    assert "10.244.9.0/24" in peers
    assert not [prefix for prefix in peers if prefix.endswith("/0")]


def test_watchers_are_attached_first_and_the_reply_side_ahead_of_the_uplink() -> None:
    found = plan("n1", cluster())
    assert [
        (one["interface"], one["direction"], one["program"].rpartition("/")[2]) for one in found["attachments"]
    ] == [
        ("cali1", "egress", "to_workload"),
        ("ens47f1", "egress", "to_uplink"),
        ("cali1", "ingress", "from_workload"),
        ("ens47f1", "ingress", "from_uplink"),
    ]
    assert sorted(entry["value"] for entry in found["maps"]["devices"]) == [2, 5]


def test_an_uplink_that_only_leads_to_peers_is_found_by_route_unless_the_user_chose() -> None:
    facts = cluster(2)
    facts["n1"]["interfaces"] += [interface("vxlan.calico", 9, "10.244.1.0/32"), interface("ens8", 8)]
    facts["n1"]["routes"] += [
        route("10.244.2.0/26", "vxlan.calico", "10.244.2.0"),
        route("198.18.0.12", "ens8"),
        route("192.0.2.0/24", "ens7"),
    ]
    facts["n2"]["own_addresses"].append("10.244.2.0")
    assert plan("n1", facts)["uplinks"] == ["ens47f1", "ens8", "vxlan.calico"]
    facts["n1"]["uplinks_by_route"] = False
    assert plan("n1", facts)["uplinks"] == ["ens47f1"]


def test_links_and_workloads_that_stay_in_the_kernels_path_are_named() -> None:
    facts = cluster(2)
    assert plan("n1", facts)["notes"] == []
    facts["n1"]["interfaces"] += [interface("tunl0", 9, link_type="ipip"), interface("tun7", 10, link_type="none")]
    facts["n1"]["routes"] += [
        route("10.244.2.0/24", "tunl0", "198.18.0.12"),
        route("172.16.0.0/24", "tun7", "172.16.9.9"),
    ]
    facts["n1"]["workloads"] += [
        workload("10.244.1.12", "cali2", 6, never_by_peer="the qdisc tbf"),
        workload("10.244.1.13", "cali3", 7, never_admitted="the netdev chain netdev t in"),
    ]
    found = plan("n1", facts)
    assert len(found["notes"]) == 3
    for words in ("link tunl0", "10.244.1.12: it would skip the qdisc tbf", "10.244.1.13: the fast one would skip"):
        assert any(words in note for note in found["notes"]), words
    assert {entry["key"]: entry["value"]["flags"] for entry in found["maps"]["ifindex_map"]} == {
        "10.244.1.11": 0,
        "10.244.1.12": 1,
    }
    assert {one["interface"] for one in found["attachments"]} == {"cali1", "cali2", "ens47f1"}


def test_a_node_without_uplink_or_whose_peers_have_no_workloads_says_so() -> None:
    facts = cluster(2)
    for name in facts:
        facts[name]["routes"] = facts[name]["routes"][:2]
    (note,) = plan("n1", facts)["notes"]
    assert "overlay_peers" in note
    assert plan("n1", facts, peers=["10.0.0.0/8"])["notes"] == []
    facts["n1"] |= {"uplinks": [], "uplinks_by_route": False}
    assert [note for note in plan("n1", facts)["notes"] if "no uplink was found" in note]


def test_every_planned_entry_fits_its_schema() -> None:
    facts = cluster()
    planned = topology.plan_node("n2", facts["n2"], picture_of(facts), SERVICES)
    for name, entries in planned["maps"].items():
        key, value = SCHEMAS[name]
        assert len(encode_entries(in_blocks(entries), Codec(key, "key"), Codec(value, "value"))) == len(entries), name


def test_two_nodes_with_one_address_are_refused_by_name() -> None:
    facts = {"n1": node(1), "other": {**node(2), "uplinks": node(1)["uplinks"]}}
    with pytest.raises(OverlayError, match=r"n1 and other.*198\.18\.0\.11"):
        picture_of(facts)


def test_an_address_that_both_have_but_neither_is_known_by_is_nobodys() -> None:
    """A moving one that was seen on both, an anycast address, the same bridge for containers on all nodes."""
    facts = cluster(2)
    for name in facts:
        facts[name]["addresses"] += ["198.18.0.100", "172.17.0.1"]
        facts[name]["own_addresses"].append("172.17.0.1")
    picture = picture_of(facts)
    assert picture["nodes"]["n2"]["addresses"] == ["198.18.0.12"]
    assert planned_peers("n1", facts, picture)["172.17.0.1/32"] == 0
    # The address by which a node is dialled is its own, wherever it is: here on the loopback.
    facts["n1"]["uplinks"][0]["primary"] = []
    facts["n1"]["own_addresses"] = []
    assert picture_of(facts)["nodes"]["n1"]["addresses"] == ["198.18.0.11"]


def test_a_workload_that_two_nodes_have_is_refused_by_name() -> None:
    facts = cluster(3)
    facts["n3"]["workloads"].append(workload("10.244.1.11", "cali9", 9))
    with pytest.raises(OverlayError, match=r"n1 and n3.*both have a workload with the address 10\.244\.1\.11"):
        picture_of(facts)
    # What a cache knows of a node's workloads goes into nobody's maps, and may have moved since.
    assert sorted(picture_of(facts, fresh=("n1", "n2"))["nodes"]) == ["n1", "n2", "n3"]


def test_a_moving_address_changes_no_map() -> None:
    facts = cluster(2)
    before = {name: plan(name, facts) for name in facts}
    facts["n2"]["addresses"].append("198.18.0.100")
    assert {name: plan(name, facts) for name in facts} == before


def test_facts_of_another_release_are_missing_ones() -> None:
    facts: dict[str, Any] = {**cluster(2), "n3": {}}
    del facts["n2"]["format"]
    picture = picture_of(facts)
    assert sorted(picture["nodes"]) == ["n1"]
    assert set(picture["missing"].values()) == {"facts are those of another release of the collection"}


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
        facts[name]["known_peers"] = [prefix for prefix, kind in before[name].items() if kind == 1]
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
        node_facts["known_peers"] = [prefix for prefix, kind in before[name].items() if kind == 1]
        assert set(before[name]) - set(planned_peers(name, left, picture_of(left))) == theirs


@given(st.integers(2, 12))
def test_every_node_knows_every_other_and_never_itself(nodes: int) -> None:
    facts = cluster(nodes)
    picture = picture_of(facts)
    for number in range(1, nodes + 1):
        planned = plan(f"n{number}", facts, picture)
        peers = {entry["key"]: entry["value"] for entry in planned["maps"]["peers"]}
        assert planned["peers"] == nodes - 1
        assert [prefix for prefix, kind in peers.items() if not kind] == [f"198.18.0.{10 + number}/32"]
        assert len(peers) == 1 + 2 * (nodes - 1)
        assert f"10.244.{number}.0/24" not in peers


def check_places(ifindexes: set[int], places: list[tuple[int, int]]) -> None:
    assert {ifindex for __, ifindex in places} == ifindexes
    assert len({place for place, __ in places}) == len(places)
    assert all(place in topology.candidates(ifindex) for place, ifindex in places)


def test_the_picture_hands_on_a_few_workloads_of_each_node() -> None:
    facts = cluster(2)
    facts["n1"]["workloads"] = [workload(f"10.244.1.{last}", "cali1", 2) for last in range(10, 15)]
    nodes = picture_of(facts)["nodes"]
    assert nodes["n1"]["workloads"] == ["10.244.1.10", "10.244.1.11", "10.244.1.12"]
    assert nodes["n2"]["workloads"] == [one["address"] for one in facts["n2"]["workloads"]]


@given(st.randoms(use_true_random=False), st.integers(1, 1000))
def test_every_interface_is_where_the_datapath_looks_for_it(random: Any, count: int) -> None:
    ifindexes = set(random.sample(range(1, 200_001), count))
    places, unplaced = topology.place_devices(ifindexes)
    assert unplaced == []
    check_places(ifindexes, places)


@given(st.integers(1, 200), st.integers(0, 199_000))
def test_indexes_in_rows_have_their_places(step: int, offset: int) -> None:
    """Anywhere in 1…200,000. Rows with a few wider steps (such as 509) do not: what is left over is named."""
    first = 1 + offset % (200_000 - 999 * step)
    ifindexes = set(range(first, first + 1000 * step, step))
    places, unplaced = topology.place_devices(ifindexes)
    assert unplaced == []
    check_places(ifindexes, places)


def test_candidates_are_those_of_the_c_source() -> None:
    """By the numbers: the same in types.h, or no packet is redirected."""
    assert list(topology.candidates(1))[:3] == [4285, 2271, 257]
    assert list(topology.candidates(4_000_000_000))[15] == 1927
    assert all(0 <= place < 8192 for place in topology.candidates(0xFFFFFFFF))


def test_an_interface_whose_places_are_all_taken_is_named_and_the_others_have_theirs() -> None:
    last = 1 << 20
    first_choice: dict[int, int] = {}
    for ifindex in range(1, last):
        first_choice.setdefault(next(topology.candidates(ifindex)), ifindex)
        if len(first_choice) == 8192:
            break
    others = {first_choice[place] for place in topology.candidates(last)}
    places, unplaced = topology.place_devices({*others, last})
    assert unplaced == [last]
    check_places(others, places)
    facts = cluster(2)
    facts["n1"]["workloads"] = [workload(f"10.244.1.{n}", f"cali{n}", n) for n in (*others, last)]
    for one in facts["n1"]["workloads"]:
        one["address"] = "10.244.1.11" if one["ifindex"] == last else f"fd00::{one['ifindex']:x}"
    found = plan("n1", facts)
    assert [note for note in found["notes"] if f"cali{last} stays in the kernel's path" in note]
    assert f"cali{last}" not in {one["interface"] for one in found["attachments"]}
    assert "10.244.1.11" not in {entry["key"] for entry in found["maps"]["ifindex_map"]}
