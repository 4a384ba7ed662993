# SPDX-License-Identifier: GPL-3.0-or-later
"""From the facts of all nodes to the maps of one."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.ebpf.overlay.plugins.module_utils import _topology
from ansible_collections.ebpf.overlay.plugins.module_utils._codec import Codec, encode_entries, in_blocks
from ansible_collections.ebpf.overlay.plugins.module_utils._errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._layout import SCHEMAS

SERVICES = [{"protocol": "tcp", "port": 8080}]
NOW = 1_800_000_000
CONTROLLER = _topology.Controller(("f" * 32, "boot-f"), {"n1": "198.18.0.11"})


def interface(name: str, ifindex: int, *addresses: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "ifindex": ifindex, "mtu": 1500, "mac": "02:00:00:00:00:01", "kind": "veth", "loopback": False,
        "up": True, "addresses": list(addresses), **more,
    }  # fmt: skip


def route(prefix: str, interface: str, gateway: str | None = None, metric: int = 0) -> dict[str, Any]:
    return {"prefix": prefix, "interface": interface, "gateway": gateway, "metric": metric}


def node(number: int, nodes: int = 3, uplinks: tuple[str, ...] = ()) -> dict[str, Any]:
    """The facts of a node as in the lab: one uplink, one workload, a route per other node."""
    links = [interface("ens47f1", 2, f"198.18.0.{10 + number}/24"), interface("cali1", 5)]
    routes = [
        route("0.0.0.0/0", "ens47f1", "198.18.0.1"),
        route("198.18.0.0/24", "ens47f1"),
        route(f"10.244.{number}.11", "cali1"),
    ]
    routes += [
        route(f"10.244.{other}.0/24", "ens47f1", f"198.18.0.{10 + other}")
        for other in range(1, nodes + 1)
        if other != number
    ]
    return {
        "interfaces": links[:1],
        "routes": routes,
        "workloads": _topology.find_workloads(links, routes, {f"10.244.{number}.11": "02:00:00:00:00:aa"}, ["cali*"]),
        "uplinks": _topology.find_uplinks(links, routes, uplinks, ["cali*"]),
        "uplinks_by_route": not uplinks,
        "addresses": [f"198.18.0.{10 + number}"],
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


def test_workloads_come_from_host_routes_to_matching_interfaces() -> None:
    links = [interface("cali1", 5), interface("cali2", 6), interface("docker0", 7), interface("ens1", 2)]
    routes = [
        route("10.0.0.5", "cali1"),
        route("fd00::5", "cali1"),
        route("10.0.0.6", "docker0"),  # another kind of interface
        route("10.0.1.0/24", "cali2"),  # no host route
        route("10.0.0.7", "cali2", "10.0.0.1"),  # not on link
        route("10.0.0.8", "cali9"),  # an interface that is gone
    ]
    found = _topology.find_workloads(links, routes, {"10.0.0.5": "aa:bb:cc:00:00:01"}, ["cali*"])
    assert [(w["address"], w["ifindex"], w["mac"]) for w in found] == [
        ("10.0.0.5", 5, "aa:bb:cc:00:00:01"),
        ("fd00::5", 5, None),
    ]


def test_uplinks_are_those_of_the_default_routes_or_the_given_ones() -> None:
    links = [interface("eth0", 2, "192.0.2.1/24"), interface("eth1", 3, "198.51.100.1/24"), interface("cali1", 5)]
    routes = [route("0.0.0.0/0", "eth0", "192.0.2.254"), route("::/0", "eth0", "fe80::1")]
    (uplink,) = _topology.find_uplinks(links, routes, [], ["cali*"])
    assert (uplink["name"], uplink["gateways"]) == ("eth0", ["192.0.2.254", "fe80::1"])
    assert [u["name"] for u in _topology.find_uplinks(links, routes, ["eth*"], ["cali*"])] == ["eth0", "eth1"]
    assert _topology.find_uplinks(links, routes, ["*"], ["cali*"])[-1]["name"] != "cali1"


def test_an_uplink_that_does_not_exist_is_refused_and_a_glob_without_match_is_not() -> None:
    links = [interface("eth0", 2, "192.0.2.1/24")]
    with pytest.raises(OverlayError, match="find the uplinks: eth7"):
        _topology.find_uplinks(links, [], ["eth7"], ["cali*"])
    assert _topology.find_uplinks(links, [], ["ens*"], ["cali*"]) == []


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


@pytest.mark.parametrize(
    ("service", "words"),
    [
        ({"protocol": "udp", "port": 53}, r"overlay_services\[0\]\.protocol.*'udp'"),
        ({"protocol": "tcp", "port": 0}, r"overlay_services\[0\]\.port.*0 is no port"),
        ({"protocol": "tcp", "port": "web"}, r"overlay_services\[0\]\.port.*'web'"),
        ({"protocol": "tcp"}, r"overlay_services\[0\]\.port.*None"),
    ],
)
def test_a_service_that_cannot_be_accelerated_is_refused(service: dict[str, Any], words: str) -> None:
    with pytest.raises(OverlayError, match=words):
        _topology.service_entries([service])


def test_services_are_sorted_and_listed_once() -> None:
    services: list[dict[str, Any]] = [{"port": "9090"}, {"port": 80}, {"protocol": "TCP", "port": 9090}]
    assert _topology.service_entries(services) == [{"key": 80, "value": 1}, {"key": 9090, "value": 1}]


networks = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.integers(0, 32)), st.tuples(st.ip_addresses(v=6), st.integers(0, 128))
).map(lambda pair: str(ipaddress.ip_network(f"{pair[0]}/{pair[1]}", strict=False)))


@given(st.lists(st.tuples(networks, st.integers(0, 3)), max_size=30), st.ip_addresses())
def test_a_route_is_found_as_a_linear_search_finds_it(prefixes: list[tuple[str, int]], address: Any) -> None:
    routes = [route(prefix, f"if{number}", None, metric) for number, (prefix, metric) in enumerate(prefixes)]
    matching = [r for r in routes if address in ipaddress.ip_network(r["prefix"])]
    best = min(matching, key=lambda r: (-ipaddress.ip_network(r["prefix"]).prefixlen, r["metric"]), default=None)
    assert _topology.RouteTable(routes).find(str(address)) is best


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
