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
    }


def cluster(nodes: int = 3) -> dict[str, Any]:
    return {f"n{number}": node(number, nodes) for number in range(1, nodes + 1)}


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
    planned = _topology.plan_node("n1", facts["n1"], _topology.build_picture(facts), SERVICES)
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
    planned = _topology.plan_node("n1", facts["n1"], _topology.build_picture(facts), SERVICES)
    assert [attachment["interface"] for attachment in planned["attachments"]] == ["cali1", "ens47f1"]
    assert [entry["value"] for entry in planned["maps"]["devices"]] == [2, 5]


def test_an_uplink_that_only_leads_to_peers_is_found_by_route_unless_the_user_chose() -> None:
    facts = cluster(2)
    facts["n1"]["interfaces"].append(interface("ens9", 9, "203.0.113.1/24"))
    facts["n1"]["routes"].append(route("198.18.0.12", "ens9"))
    picture = _topology.build_picture(facts)
    assert _topology.plan_node("n1", facts["n1"], picture, SERVICES)["uplinks"] == ["ens47f1", "ens9"]
    facts["n1"]["uplinks_by_route"] = False
    planned = _topology.plan_node("n1", facts["n1"], picture, SERVICES)
    assert planned["uplinks"] == ["ens47f1"]
    assert "198.18.0.12/32" not in {entry["key"] for entry in planned["maps"]["peers"]}


def test_every_planned_entry_fits_its_schema() -> None:
    facts = cluster()
    planned = _topology.plan_node("n2", facts["n2"], _topology.build_picture(facts), SERVICES)
    for name, entries in planned["maps"].items():
        key, value = SCHEMAS[name]
        assert len(encode_entries(in_blocks(entries), Codec(key, "key"), Codec(value, "value"))) == len(entries), name


def test_two_nodes_with_one_address_are_refused_by_name() -> None:
    facts = {"n1": node(1), "n1-again": node(1)}
    with pytest.raises(OverlayError, match=r"n1 and n1-again.*198\.18\.0\.11"):
        _topology.build_picture(facts)


def test_nodes_without_facts_are_named() -> None:
    picture = _topology.build_picture({"n1": node(1), "n2": None})
    assert _topology.missing(["n1", "n3", "n2"], picture) == ["n2", "n3"]


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
    picture = _topology.build_picture(facts)
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
