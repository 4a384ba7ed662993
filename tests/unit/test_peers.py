# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may be the other end: from the routes of all nodes, or from the user's list."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import peers

ADDRESSES = {"n1": ["192.0.2.1", "fd00::1"], "n2": ["192.0.2.2", "fd00::2"], "n3": ["192.0.2.3"]}


def prefixes(routed: Sequence[tuple[str, str]] = (), **kept: list[str]) -> dict[str, list[str]]:
    return {name: found for name, found in peers.workload_prefixes(ADDRESSES, kept, list(routed)).items() if found}


def test_a_prefix_that_is_routed_by_way_of_a_node_is_of_its_workloads() -> None:
    routed = [("10.1.2.0/26", "192.0.2.2"), ("10.1.3.0/26", "192.0.2.3"), ("10.9.0.0/24", "192.0.2.254")]
    assert prefixes(routed) == {"n2": ["10.1.2.0/26"], "n3": ["10.1.3.0/26"]}


def test_a_block_that_a_node_keeps_is_of_its_workloads_though_nobody_routes_it() -> None:
    """As Calico does where the next hop is a switch of the rack."""
    assert prefixes(n2=["10.1.2.0/26", "fd10::/122"]) == {"n2": ["10.1.2.0/26", "fd10::/122"]}


def test_a_block_may_hold_addresses_of_its_own_node_only() -> None:
    """Calico gives a node's VXLAN device the first address of its block."""
    addresses = {"n1": ["192.0.2.1", "10.1.1.0"], "n2": ["192.0.2.2", "10.1.2.0"]}
    found = peers.workload_prefixes(addresses, {"n2": ["10.1.2.0/26", "192.0.2.0/26"]}, [("10.1.1.0/26", "10.1.1.0")])
    assert found == {"n1": ["10.1.1.0/26"], "n2": ["10.1.2.0/26"]}


@pytest.mark.parametrize("prefix", ["0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "10.0.0.0/8", "::/0", "2000::/3"])
def test_a_default_route_by_way_of_a_node_makes_nobody_a_peer(prefix: str) -> None:
    gateway = "fd00::2" if ":" in prefix else "192.0.2.2"
    assert prefixes([(prefix, gateway)]) == {}
    assert prefixes(n2=[prefix]) == {}


def test_what_several_nodes_refuse_is_nobodys() -> None:
    assert prefixes(n1=["172.16.0.0/16"], n2=["172.16.0.0/16"]) == {}


def test_those_within_another_are_left_out() -> None:
    listed = ["10.1.0.7/32", "10.1.0.0/24", "10.1.1.0/24", "fd00::1/128", "fd00::/64", "10.1.0.0/24"]
    assert peers.without_covered(listed) == ["10.1.0.0/24", "10.1.1.0/24", "fd00::/64"]


networks = st.one_of(
    st.tuples(st.ip_addresses(v=4, network="10.0.0.0/24"), st.integers(22, 32)),
    st.tuples(st.ip_addresses(v=6, network="fd00::/120"), st.integers(118, 128)),
).map(lambda pair: str(ipaddress.ip_network(f"{pair[0]}/{pair[1]}", strict=False)))


@given(st.lists(networks, max_size=20))
def test_leaving_out_what_is_covered_changes_no_address(listed: list[str]) -> None:
    found = peers.without_covered(listed)
    parsed = [ipaddress.ip_network(prefix) for prefix in found]
    for prefix in listed:
        network: Any = ipaddress.ip_network(prefix)
        assert sum(one.version == network.version and network.subnet_of(one) for one in parsed) == 1


def test_own_addresses_are_never_peers() -> None:
    assert peers.peer_entries(["10.1.1.1", "fd00::1"], ["10.1.1.0/24", "10.1.1.1/32", "::/0"]) == [
        {"key": "10.1.1.0/24", "value": 1},
        {"key": "10.1.1.1/32", "value": 0},
        {"key": "::/0", "value": 1},
        {"key": "fd00::1/128", "value": 0},
    ]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (None, []),
        ([], []),
        ("", []),
        ("any", ["0.0.0.0/0", "::/0"]),
        ([" Any "], ["0.0.0.0/0", "::/0"]),
        ("10.0.0.0/8, fd00::/8", ["10.0.0.0/8", "fd00::/8"]),
        ('["10.0.0.0/8", "192.0.2.7"]', ["10.0.0.0/8", "192.0.2.7/32"]),
        (["10.0.0.0/8", "10.0.0.0/8"], ["10.0.0.0/8"]),
    ],
)
def test_the_users_peers_are_a_list_or_text(wanted: Any, found: list[str]) -> None:
    assert peers.parse_peers(wanted) == found


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (["10.0.0.1/8"], r"overlay_peers\[0\].*'10\.0\.0\.1/8' is no prefix.*host bits"),
        (["10.0.0.0/8", 7], r"overlay_peers\[1\].*7 is no prefix"),
        ("nodes", r"overlay_peers\[0\].*'nodes'"),
        ('["10.0.0.0/8"', r"overlay_peers\. Reason: .*is no prefix"),
        (7, r"overlay_peers\. Reason: 7 is no prefix"),
    ],
)
def test_what_is_no_prefix_is_refused_by_name(wanted: Any, words: str) -> None:
    with pytest.raises(OverlayError, match=words):
        peers.parse_peers(wanted)


def test_an_address_is_told_from_a_prefix() -> None:
    assert [peers.is_address(one) for one in ("10.0.0.1", "10.0.0.1/32", "fd00::1", "fd00::1/128")] == [True] * 4
    assert [peers.is_address(one) for one in ("10.0.0.0/31", "::/0", "fd00::/32")] == [False] * 3


def test_addresses_outside_of_all_prefixes_are_found() -> None:
    prefixes = peers.without_covered(["10.1.2.0/24", "10.1.4.0/24", "10.1.4.128/25", "fd00::/64"])
    inside = ["10.1.2.0", "10.1.2.255", "10.1.4.200", "fd00::", "fd00::9"]
    outside = ["9.9.9.9", "10.1.3.0", "10.1.5.0", "fd00:0:0:1::", "::1"]
    assert peers.not_within([*inside, *outside], prefixes) == outside
    assert peers.not_within(inside[:1], []) == inside[:1]
