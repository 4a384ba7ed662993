# SPDX-License-Identifier: GPL-3.0-or-later
"""Which links are uplinks, why others are not, and by which addresses a machine is known."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import uplinks as _uplinks
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import ip

Found = dict[str, Any]
CHAIN = [{"interface": "eth*", "direction": "ingress", "chain": "netdev t in"}]


def link(name: str = "eth0", *addresses: str, **more: Any) -> Found:
    found = {
        "name": name, "ifindex": 2, "mtu": 1500, "mac": "02:00:00:00:00:01", "kind": "", "loopback": False, "up": True,
        "addresses": list(addresses), "primary": [address.split("/")[0] for address in addresses[:1]],
        "link_type": "ether", "external": False, "master": "", "member_of": "", **more,
    }  # fmt: skip
    return {"unfit": _uplinks.why_unfit(found, ["cali*"]), **found}


def route(prefix: str, interface: str | None, gateway: str | None = None, metric: int = 0, **more: Any) -> Found:
    return {"prefix": prefix, "interface": interface, "gateway": gateway, "metric": metric, "source": None, **more}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, ""),
        ({"kind": "vxlan"}, ""),
        ({"kind": "bridge"}, ""),
        ({"master": "vrf1", "member_of": "vrf"}, ""),
        ({"kind": "tun", "link_type": "none"}, "no Ethernet header (link type none)"),
        ({"kind": "ipip", "link_type": "ipip"}, "no Ethernet header (link type ipip)"),
        ({"kind": "wireguard", "link_type": "none"}, "no Ethernet header"),
        ({"kind": "vxlan", "external": True}, "external"),
        ({"kind": "vrf"}, "members of the VRF"),
        ({"master": "br0", "member_of": "bridge"}, "it is a port of br0"),
        ({"master": "bond0", "member_of": "bond"}, "it is a port of bond0"),
        ({"loopback": True, "link_type": "loopback"}, "loopback"),
        ({"name": "cali1"}, "workload"),
    ],
)
def test_links_on_which_the_datapath_cannot_work_say_why(more: Found, words: str) -> None:
    told = link(**more)["unfit"]
    assert words in told
    assert bool(words) == bool(told)


def test_a_link_with_a_netdev_chain_ahead_of_the_stack_is_none() -> None:
    assert "netdev t in" in _uplinks.why_unfit(link("eth0"), [], CHAIN)
    assert not _uplinks.why_unfit(link("ens1"), [], CHAIN)
    assert "netdev t in" in _uplinks.why_unfit(link("eth0"), [], [{**CHAIN[0], "direction": "egress"}])


def test_uplinks_are_those_of_all_default_routes_by_all_next_hops() -> None:
    links = [link("eth1", "198.51.100.1/24"), link("eth0", "192.0.2.1/24"), link("eth2", "203.0.113.1/24"), link("no")]
    routes = [
        route("0.0.0.0/0", "eth0", "192.0.2.254"),
        route("0.0.0.0/0", "eth1", "198.51.100.254"),  # another next hop of the same route
        route("0.0.0.0/0", "eth2", "203.0.113.254", metric=100),
        route("::/0", "eth0", "fe80::1"),
        route("10.0.0.0/8", "no", "192.0.2.7"),
        route("::/0", None),
    ]
    found, left_out = _uplinks.find_uplinks(links, routes, [])
    assert [one["name"] for one in found] == ["eth0", "eth1", "eth2"]
    assert found[0]["gateways"] == ["192.0.2.254", "fe80::1"]
    assert left_out == []


def test_links_left_out_are_named_where_a_route_leads_by_them() -> None:
    links = [
        link("wg0", link_type="none"),
        link("tunl0", link_type="ipip"),
        link("tap0"),
        link("tun7", link_type="none"),
    ]
    routes = [
        route("0.0.0.0/0", "wg0"),
        route("10.1.2.0/26", "tunl0", "192.0.2.2"),
        route("192.168.7.0/24", "tun7"),  # the neighbourhood of that link alone
    ]
    found, left_out = _uplinks.find_uplinks(links, routes, [])
    assert found == []
    assert [one["name"] for one in left_out] == ["tunl0", "wg0"]
    assert "link type ipip" in left_out[0]["reason"]


def test_the_users_uplinks_are_the_only_ones() -> None:
    links = [link("cali1"), link("eth0"), link("eth1"), link("eth2", master="bond0", member_of="bond"), link("lo0")]
    routes = [route("0.0.0.0/0", "lo0", "192.0.2.254")]
    found, left_out = _uplinks.find_uplinks(links, routes, ["eth*"])
    assert ([one["name"] for one in found], left_out) == (["eth0", "eth1"], [])
    found, left_out = _uplinks.find_uplinks(links, routes, ["eth1", "eth2"])
    assert [one["name"] for one in found] == ["eth1"]
    assert [one["name"] for one in left_out] == ["eth2"]


def test_an_uplink_that_does_not_exist_is_refused_and_a_glob_without_match_is_not() -> None:
    with pytest.raises(OverlayError, match="find the uplinks: eth7"):
        _uplinks.find_uplinks([link("eth0")], [], ["eth7"])
    assert _uplinks.find_uplinks([link("eth0")], [], ["ens*"]) == ([], [])


def test_the_ways_to_others_include_all_next_hops_and_tunnels() -> None:
    routes = [
        route("0.0.0.0/0", "eth0", "192.0.2.254"),
        route("192.0.2.0/24", "eth0"),
        route("10.1.2.0/26", "vxlan.calico", "10.1.2.0"),
        route("10.1.3.0/26", "eth1", "198.51.100.3"),
        route("10.1.3.0/26", "eth2", "203.0.113.3"),
        route("10.1.3.0/26", "eth3", "203.0.113.4", metric=50),
        route("10.1.4.0/26", None),
    ]
    assert set(_uplinks.ways_to(routes, ["192.0.2.2", "10.1.2.0/26"])) == {"eth0", "vxlan.calico"}
    assert set(_uplinks.ways_to(routes, ["10.1.3.0/26"])) == {"eth1", "eth2"}
    assert set(_uplinks.ways_to(routes[1:], ["192.0.2.2", "10.9.0.0/16"])) == {"eth0"}


def test_each_table_to_which_a_rule_leads_is_looked_up_by_itself() -> None:
    routes = [
        route("0.0.0.0/0", "eth0", "192.0.2.254"),
        route("10.1.2.0/24", "eth0", "192.0.2.2"),
        route("10.1.0.0/16", "eth1", "198.51.100.1", table="100"),
        route("10.1.2.0/24", "eth2", "203.0.113.1", metric=5, table="100"),
        route("10.9.0.0/16", "eth3", "203.0.113.1", table="7"),
    ]
    assert set(_uplinks.ways_to(routes, ["10.1.2.3"])) == {"eth0", "eth2"}
    assert set(_uplinks.ways_to(routes, ["10.1.3.3"])) == {"eth0", "eth1"}
    found, _left_out = _uplinks.find_uplinks([link("eth4")], [route("0.0.0.0/0", "eth4", table="100")], [])
    assert [one["name"] for one in found] == ["eth4"]


def test_the_tables_of_vrfs_count_where_the_rule_for_them_is() -> None:
    """As iproute2 6.1 prints it with -N: types and tables as numbers."""
    routed = [
        {"type": "1", "dst": "default", "gateway": "192.0.2.254", "dev": "eth0", "table": "254"},
        {"type": "1", "dst": "default", "gateway": "198.51.100.254", "dev": "eth1", "table": "10", "metric": 5},
        {"type": "1", "dst": "default", "gateway": "203.0.113.254", "dev": "eth2", "table": "11"},
        {"type": "7", "dst": "default", "table": "10", "metric": 4278198272},
        {"type": "2", "dst": "198.51.100.1", "dev": "eth1", "table": "10", "prefsrc": "198.51.100.1"},
    ]
    links = [{"ifname": "blue", "linkinfo": {"info_kind": "vrf", "info_data": {"table": 10}}}, {"ifname": "eth1"}]

    def printed(*rules: Found) -> list[tuple[Any, ...]]:
        def run(command: list[str]) -> tuple[int, str, str]:
            asked = " ".join(command[4:] if command[3] == "-N" else command[3:])
            told = {"-4 rule show": [{"priority": 0, "src": "all", "table": "255"}, *rules], "link show": links}
            told["-4 route show table all"] = routed
            told["-4 route show table 254"] = routed[:1]
            return 0, json.dumps(told.get(asked, [])), ""

        return [(one["prefix"], one["interface"], one["table"]) for one in ip.routes(run)]

    assert printed() == [("0.0.0.0/0", "eth0", None)]
    assert printed({"priority": 1000, "src": "all", "l3mdev": None}) == [
        ("0.0.0.0/0", "eth0", None), ("0.0.0.0/0", "eth1", "10"), ("0.0.0.0/0", None, "10"),
    ]  # fmt: skip


def test_a_prefix_is_reached_by_the_route_to_all_of_it_and_those_to_its_parts() -> None:
    routes = [
        route("10.0.0.0/8", "eth0", "192.0.2.254"),
        route("10.1.0.0/16", "eth1", "192.0.2.254"),
        route("10.1.0.0/26", "eth2", "192.0.2.254"),
        route("10.1.255.255/32", "eth3", "192.0.2.254"),
        route("10.2.0.0/32", "eth4", "192.0.2.254"),
    ]
    assert set(_uplinks.ways_to(routes, ["10.1.0.0/20"])) == {"eth1", "eth2"}
    assert set(_uplinks.ways_to(routes, ["10.1.0.0/16"])) == {"eth1", "eth2", "eth3"}
    assert set(_uplinks.ways_to(routes, ["10.1.0.0/15"])) == {"eth0", "eth1", "eth2", "eth3"}


def address(local: str, length: int, **more: Any) -> Found:
    return {"family": "inet6" if ":" in local else "inet", "local": local, "prefixlen": length, **more}


BOTH = ("inet", "inet6")


@pytest.mark.parametrize(
    ("listed", "primary"),
    [
        ([], []),
        ([address("192.0.2.1", 24)], ["192.0.2.1"]),
        ([address("192.0.2.1", 32)], ["192.0.2.1"]),
        ([address("192.0.2.1", 24), address("192.0.2.9", 32), address("192.0.2.7", 24, secondary=True)], ["192.0.2.1"]),
        ([address("192.0.2.9", 32), address("192.0.2.1", 24)], ["192.0.2.1"]),
        # The newest first, as the kernel lists them.
        ([address("fd00::9", 128), address("fd00::7", 64), address("fd00::1", 64)], ["fd00::1"]),
        ([address("fd00::5", 64, temporary=True), address("fd00::6", 64, deprecated=True)], []),
        ([address("192.0.2.1", 24), address("fd00::1", 64)], ["192.0.2.1", "fd00::1"]),
        # Without a route to its neighbourhood, as moving ones may be added, and as network managers add all.
        ([address("192.0.2.9", 24, noprefixroute=True), address("192.0.2.1", 24)], ["192.0.2.1"]),
        ([address("192.0.2.9", 32), address("192.0.2.1", 24, noprefixroute=True)], ["192.0.2.1"]),
        ([address("fd00::7", 64, noprefixroute=True), address("fd00::1", 64, noprefixroute=True)], ["fd00::1"]),
    ],
)
def test_the_address_of_a_machine_is_the_one_that_stays(listed: list[Found], primary: list[str]) -> None:
    assert ip.primary_addresses(listed, BOTH) == primary


@pytest.mark.parametrize(
    ("routed", "primary"),
    [
        ([], ["192.0.2.1"]),
        ([route("198.51.100.9", "vip"), route("fd00::9", "vip"), route("fe80::/64", "vip")], ["192.0.2.1"]),
        ([route("0.0.0.0/0", "vip", "198.51.100.254")], ["192.0.2.1", "198.51.100.9"]),
        ([route("198.51.100.254", "vip")], ["192.0.2.1", "198.51.100.9"]),
        ([route("::/0", "vip", "fe80::1")], ["192.0.2.1", "fd00::9"]),
        ([route("fd00:1::/64", "eth0", "fe80::1"), route("10.0.0.0/8", None)], ["192.0.2.1"]),
    ],
)
def test_a_moving_address_that_is_alone_on_its_interface_is_nobodys(routed: list[Found], primary: list[str]) -> None:
    """What is alone there and no route leads by is no machine's own; otherwise it is, as clouds hand out /32."""
    there = [
        {"ifname": "eth0", "ifindex": 2, "mtu": 1500, "addr_info": [address("192.0.2.1", 24, scope="global")]},
        {"ifname": "vip", "ifindex": 3, "mtu": 1500, "addr_info": [
            address("198.51.100.9", 32, scope="global"), address("fd00::9", 128, scope="global")]},
        {"ifname": "vip2", "ifindex": 4, "mtu": 1500, "addr_info": [
            address("203.0.113.9", 24, scope="global", noprefixroute=True)]},
    ]  # fmt: skip
    routed = [route("192.0.2.0/24", "eth0"), *routed]
    found = ip.interfaces(lambda _command: (0, json.dumps(there), ""), routed)
    assert [one for interface in found for one in interface["primary"]] == primary


def test_what_moves_or_is_the_same_everywhere_is_nobodys_address() -> None:
    links = [
        link("lo", "192.0.2.200/32", loopback=True, link_type="loopback"),
        link("kube-ipvs0", "10.96.0.1/32", kind="dummy"),
        link("vrrp.51", "192.0.2.100/32", kind="macvlan"),
        link("eth0", "192.0.2.1/24"),
        link("vxlan.calico", "10.1.1.0/32", kind="vxlan"),
    ]
    routes = [route("0.0.0.0/0", "eth0", "192.0.2.254")]
    assert _uplinks.own_addresses(links, routes) == ["10.1.1.0", "192.0.2.1"]
    # A node whose routes to everywhere come from an address on its loopback is known by that.
    routes = [route("0.0.0.0/0", "eth0", "192.0.2.254", source="192.0.2.200")]
    assert _uplinks.own_addresses(links, routes) == ["10.1.1.0", "192.0.2.1", "192.0.2.200"]
    # So is one whose routing daemon names it, but not an address that moves and has a table of its own.
    routed = [route("0.0.0.0/0", "eth0"), route("10.1.2.0/26", "eth0", "fe80::1", source="192.0.2.200")]
    assert "192.0.2.200" in _uplinks.own_addresses(links, routed)
    routed = [{**one, "table": "100"} for one in routed] + [route("198.51.100.0/24", "eth0", source="192.0.2.200")]
    assert "192.0.2.200" not in _uplinks.own_addresses(links, routed)
    # A container's uplink.
    assert "192.0.2.100" in _uplinks.own_addresses(links, [route("0.0.0.0/0", "vrrp.51", "192.0.2.254")])


networks = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.integers(0, 32)), st.tuples(st.ip_addresses(v=6), st.integers(0, 128))
).map(lambda pair: str(ipaddress.ip_network(f"{pair[0]}/{pair[1]}", strict=False)))


@given(st.lists(st.tuples(networks, st.integers(0, 3)), max_size=30), st.ip_addresses())
def test_a_route_is_found_as_a_linear_search_finds_it(prefixes: list[tuple[str, int]], address: Any) -> None:
    routes = [route(prefix, f"if{number}", None, metric) for number, (prefix, metric) in enumerate(prefixes)]
    matching = [one for one in routes if address in ipaddress.ip_network(one["prefix"])]
    best = min(((-ipaddress.ip_network(one["prefix"]).prefixlen, one["metric"]) for one in matching), default=None)
    wanted = [one for one in matching if (-ipaddress.ip_network(one["prefix"]).prefixlen, one["metric"]) == best]
    assert _uplinks.RouteTables(routes).find(str(address)) == wanted
