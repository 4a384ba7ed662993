# SPDX-License-Identifier: GPL-3.0-or-later
"""Workloads by their routes, and what somebody else has on their interfaces."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import exclusions, workloads

FREE = {"never_by_peer": "", "may_be_taken": "", "never_admitted": ""}


def link(name: str, ifindex: int, *addresses: str) -> dict[str, Any]:
    return {"name": name, "ifindex": ifindex, "mtu": 1500, "addresses": list(addresses), "link_type": "ether"}


def route(prefix: str, interface: str | None, gateway: str | None = None, metric: int = 0) -> dict[str, Any]:
    return {"prefix": prefix, "interface": interface, "gateway": gateway, "metric": metric}


def test_workloads_come_from_host_routes_to_matching_interfaces() -> None:
    links = [link("cali1", 5), link("cali2", 6), link("docker0", 7), link("ens1", 2)]
    routes = [
        route("10.0.0.5", "cali1"),
        route("fd00::5", "cali1"),
        route("10.0.0.6", "docker0"),  # another kind of interface
        route("10.0.1.0/24", "cali2"),  # no host route
        route("10.0.0.7", "cali2", "10.0.0.1"),  # not on link
        route("10.0.0.8", "cali9"),  # an interface that is gone
        route("10.0.0.9", None),  # refused
    ]
    found = workloads.find_workloads(links, routes, {"10.0.0.5": "aa:bb:cc:00:00:01"}, ["cali*"])
    assert [(w["address"], w["ifindex"], w["mac"]) for w in found] == [
        ("10.0.0.5", 5, "aa:bb:cc:00:00:01"),
        ("fd00::5", 5, None),
    ]


def test_an_address_of_the_node_is_no_workload() -> None:
    """The CNI plugin ptp gives the host's side the gateway's address."""
    links = [link("veth1", 5, "10.0.0.1/32"), link("eth0", 2, "192.0.2.1/24")]
    routes = [route("10.0.0.5", "veth1"), route("10.0.0.1", "veth1"), route("192.0.2.1", "veth1")]
    assert [one["address"] for one in workloads.find_workloads(links, routes, {}, ["veth*"])] == ["10.0.0.5"]


def test_of_two_routes_to_a_workload_the_better_one_counts() -> None:
    links = [link("cali1", 5), link("cali2", 6)]
    for routes in ([route("10.0.0.5", "cali1", metric=5), route("10.0.0.5", "cali2")],) * 2:
        (found,) = workloads.find_workloads(links, routes, {}, ["cali*"])
        assert found["interface"] == "cali2"
        routes.reverse()


def test_a_workload_without_ethernet_is_unfit_and_never_qualifies() -> None:
    links = [link("cali1", 5), {**link("cali2", 6), "link_type": "none"}]
    one, other = workloads.find_workloads(
        links, [route("10.0.0.5", "cali1"), route("10.0.0.6", "cali2")], {}, ["cali*"]
    )
    assert (one["unfit"], other["unfit"]) == ("", "its packets have no Ethernet header (link type none)")
    assert workloads.qualifies({**one, **FREE})
    assert not workloads.qualifies({**other, **FREE})
    assert not workloads.qualifies({**one, **FREE, "excluded": "cali1"})
    assert not workloads.qualifies({**one, **FREE, "never_admitted": "the netdev chain t"})
    assert workloads.told([{**other, **FREE}]) == [f"the kernel's path for 10.0.0.6: {other['unfit']}"]


def test_a_workload_is_excluded_by_address_prefix_or_interface() -> None:
    links = [link("cali1", 5), link("cali2", 6)]
    routes = [route("10.0.0.5", "cali1"), route("fd00::5", "cali1"), route("10.0.0.6", "cali2")]

    def excluded(*entries: str) -> dict[str, str]:
        wanted = exclusions.parse_exclude(entries)
        found = workloads.find_workloads(links, routes, {}, ["cali*"], wanted)
        return {one["address"]: one["excluded"] for one in found if one["excluded"]}

    assert excluded() == {}
    both = ("10.0.0.5", "fd00::5")
    assert excluded("10.0.0.5") == dict.fromkeys(both, "10.0.0.5/32")
    assert excluded("fd00::/8") == dict.fromkeys(both, "fd00::/8")
    assert excluded(" cali2 ") == {"10.0.0.6": "cali2"}
    assert excluded("10.0.0.6", "cali*") == {**dict.fromkeys(both, "cali*"), "10.0.0.6": "10.0.0.6/32"}
    assert excluded("10.1.0.0/16", "veth*") == {}


@pytest.mark.parametrize("entry", ["", "10.0.0.300", "10.0.0.1/8", "fd00::x", "cali 1", "a/b", "calicalicalicali"])
def test_what_is_neither_a_prefix_nor_a_name_is_refused(entry: str) -> None:
    with pytest.raises(OverlayError, match=r"overlay_exclude\[1\]"):
        exclusions.parse_exclude(["cali1", entry])


def bpf(owner: str | None, *codes: int, mechanism: str = "clsact", **more: Any) -> dict[str, Any]:
    return {
        "kind": "bpf", "mechanism": mechanism, "owner": owner, "name": None, "program_name": "theirs", "priority": 7,
        "return_codes": list(codes) or None, "direct_action": True, **more,
    }  # fmt: skip


def hindrances(
    ingress: list[dict[str, Any]], egress: list[dict[str, Any]], *chains: str, qdisc: str = "noqueue"
) -> dict[str, str]:
    qdiscs = [{"kind": qdisc, "parent": "root"}, {"kind": "clsact", "parent": "ffff:fff1"}]
    interface = {"name": "cali1", "qdiscs": qdiscs, "ingress": ingress, "egress": egress}
    netdev = [{"interface": "cali1", "direction": chain, "chain": f"netdev t {chain}"} for chain in chains]
    return workloads.hindrances(interface, [*netdev, {**CHAIN, "interface": "cali2"}])


CHAIN = {"direction": "ingress", "chain": "netdev t other"}
OURS = bpf("ebpf.overlay", -1, 7)
U32 = {**bpf(None), "kind": "u32", "program_name": None}


def test_an_interface_with_nothing_but_ours_is_free() -> None:
    assert hindrances([OURS], [OURS]) == FREE
    assert hindrances([bpf(None, -1), bpf("calico", 3, -1)], []) == FREE, "they leave every packet to those behind"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (hindrances([], [], qdisc="tbf"), "the qdisc tbf"),
        (hindrances([], [U32]), "the u32 filter of priority 7"),
        (hindrances([], [bpf(None, -1)]), "the bpf filter theirs of priority 7"),
        (hindrances([], [bpf("them", -1, mechanism="tcx", name="them:look")]), "the TCX program them:look"),
    ],
)
def test_whatever_is_on_the_egress_forbids_redirect_peer(found: dict[str, str], words: str) -> None:
    assert found == {**FREE, "never_by_peer": words}


@pytest.mark.parametrize(
    "entry",
    [U32, bpf(None), bpf(None, -1, 0), bpf(None, 7, mechanism="tcx"), bpf(None, -1, 1, direct_action=False)],
)
def test_what_may_take_packets_ahead_of_ours_is_named(entry: dict[str, Any]) -> None:
    found = hindrances([entry, OURS], [])
    assert found["may_be_taken"]
    assert found == {**FREE, "may_be_taken": found["may_be_taken"]}


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_a_netdev_chain_keeps_the_workload_in_the_kernels_path(direction: str) -> None:
    assert hindrances([], [], direction) == {**FREE, "never_admitted": f"the netdev chain netdev t {direction}"}


def test_what_is_told_is_one_sentence_for_each_reason() -> None:
    shaped = [{"address": f"10.0.0.{n}", **FREE, "never_by_peer": "the qdisc tbf"} for n in range(1, 6)]
    other = {"address": "10.0.1.1", **FREE, "never_admitted": "the netdev chain t"}
    assert workloads.told([*shaped, other, {"address": "10.0.2.2", **FREE}]) == [
        "the kernel's path for 10.0.1.1: the fast one would skip the netdev chain t",
        "no redirect_peer for 10.0.0.1, 10.0.0.2, 10.0.0.3 and 2 others: it would skip the qdisc tbf",
    ]
