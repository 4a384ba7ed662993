# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts of a node that is wired as clusters really are: real links, routes, qdiscs, programs and netdev chains."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from .tc_sandbox import PINS, Sandbox, returns

# Two uplinks, a tunnel for the blocks of two other nodes, and links that cannot be uplinks.
WIRING = """
set -e
ip link set lo up
sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
ip address add 198.18.0.1/24 dev eth0; ip address add 198.18.0.100/32 dev eth0
ip address add 198.18.0.101/24 dev eth0
ip address add fd00::1/64 dev eth0 nodad; ip address add fd00::77/64 dev eth0 nodad
ip address add fd00::100/128 dev eth0 nodad
ip address add 198.18.1.1/24 dev eth1
ip address add 203.0.113.9/32 dev lo
ip address add 198.51.100.9/32 dev eth3; ip address add fd00:3::9/128 dev eth3 nodad
ip address add 198.51.100.77/24 dev p0 noprefixroute
ip link add vxlan.calico type vxlan id 4096 dev eth0 dstport 4789 nolearning
ip address add 10.244.1.0/32 dev vxlan.calico
ip link add cilium_vxlan type vxlan external dstport 8472
ip tuntap add tunl0 mode tun; ip address add 10.244.1.1/32 dev tunl0
ip link add br0 type bridge; ip link set eth2 master br0; ip address add 192.0.2.1/24 dev br0
for link in eth0 eth1 eth2 eth3 p0 p1 p2 p3 p4 p5 cali1 cali2 vxlan.calico cilium_vxlan tunl0 br0; do
    ip link set $link up; done
ip nexthop add id 5 via 198.18.0.2 dev eth0; ip nexthop add id 6 via 198.18.1.2 dev eth1
ip nexthop add id 7 group 5/6
ip route add default nexthop via 198.18.0.254 dev eth0 nexthop via 198.18.1.254 dev eth1
ip route add default via 192.0.2.254 dev br0 metric 100
ip route add 10.244.2.0/26 via 10.244.2.0 dev vxlan.calico onlink
ip route add 10.244.3.0/26 via 198.18.0.3 dev tunl0 onlink
ip route add 10.244.4.0/26 nhid 7
ip route add 10.244.5.0/26 via 198.18.0.5 dev cilium_vxlan onlink
ip route add blackhole 10.244.1.0/26
ip -6 route add unreachable fd44::/122
ip route add 10.244.1.11 dev cali1; ip route add 10.244.1.12 dev cali2; ip route add 198.18.0.100 dev cali2
"""
LINKS = ("eth0", "eth1", "eth2", "eth3", "cali1", "cali2")


@pytest.fixture
def node() -> Iterator[Sandbox]:
    found = Sandbox("ovl-facts", LINKS)
    found.sh(WIRING)
    yield found
    found.close()


def gather(node: Sandbox, **params: Any) -> dict[str, Any]:
    result = node.module("overlay_facts", **params)
    assert "ansible_facts" in result, result
    found: dict[str, Any] = result["ansible_facts"]["overlay"]
    found["warnings"] = result["warnings"]
    return found


def hindrances(node: Sandbox, **params: Any) -> dict[str, dict[str, str]]:
    keys = ("never_by_peer", "may_be_taken", "never_admitted", "unfit", "excluded")
    return {one["address"]: {key: one[key] for key in keys if one[key]} for one in gather(node, **params)["workloads"]}


def test_uplinks_are_all_next_hops_and_links_left_out_have_their_reason(node: Sandbox) -> None:
    told = gather(node)
    assert [one["name"] for one in told["uplinks"]] == ["br0", "eth0", "eth1"]
    reasons = {one["name"]: one["reason"] for one in told["links_left_out"]}
    assert set(reasons) == {"tunl0", "cilium_vxlan"}
    assert "no Ethernet header" in reasons["tunl0"]
    assert "external" in reasons["cilium_vxlan"]
    unfit = {one["name"] for one in told["interfaces"] if one["unfit"]}
    assert unfit == {"tunl0", "cilium_vxlan", "eth2"}
    ways = {(one["prefix"], one["interface"], one["gateway"]) for one in told["routes"]}
    assert {("10.244.4.0/26", "eth0", "198.18.0.2"), ("10.244.4.0/26", "eth1", "198.18.1.2")} <= ways
    assert told["warnings"] == []


def test_next_hop_objects_are_followed_where_the_kernel_tells_them_by_number_only(node: Sandbox) -> None:
    before = gather(node)["routes"]
    node.sh("sysctl -qw net.ipv4.nexthop_compat_mode=0")
    assert '"nexthops"' not in node.sh("ip -json route show 10.244.4.0/26"), "the kernel told the next hops"
    assert gather(node)["routes"] == before


def test_routes_of_tables_to_which_rules_lead_count_and_those_of_others_do_not(node: Sandbox) -> None:
    before = gather(node)["routes"]
    node.sh(
        "ip rule add fwmark 5 table 100; ip rule add to 10.7.0.0/16 goto 32766"
        "; ip rule add pref 9 from 10.7.7.7 blackhole"
        "; ip -6 rule add from fd44::/64 table 100; ip route add default via 198.51.100.254 dev p0 onlink table 100"
        "; ip route add local 10.8.8.8 dev eth0 table 100"
        "; ip -6 route add default via fd00::254 dev eth0 table 100"
        "; ip route add default via 192.0.2.254 dev br0 table 200"
        "; ip route add 10.244.1.13 dev cali1 table 100; ip route add 10.244.1.12 dev cali1 table 100"
    )
    told = gather(node)
    added = [one for one in told["routes"] if one not in before]
    assert [(one["prefix"], one["interface"], one["table"]) for one in added] == [
        ("0.0.0.0/0", "p0", "100"), ("::/0", "eth0", "100"),
    ]  # fmt: skip
    assert [one for one in before if one not in told["routes"]] == []
    assert [one["name"] for one in told["uplinks"]] == ["br0", "eth0", "eth1", "p0"]
    workloads = {one["address"]: one["interface"] for one in told["workloads"]}
    assert workloads == {"10.244.1.11": "cali1", "10.244.1.12": "cali2", "10.244.1.13": "cali1"}
    assert "198.51.100.9" not in told["own_addresses"], "eth3 is led to by no route"


def test_rules_about_the_nodes_own_packets_lead_to_no_uplink(node: Sandbox) -> None:
    """An address that moves may bring a rule and a table of its own; no packet of a workload goes by them."""
    before = gather(node)
    node.sh(
        "ip rule add from 198.18.0.100 table 100; ip rule add iif lo table 101; ip -6 rule add from fd00::100 table 100"
        "; for table in 100 101; do ip route add default via 198.51.100.254 dev p0 onlink table $table; done"
        "; ip -6 route add default via fe80::254 dev eth1 onlink table 100"
    )
    after = gather(node)
    assert after["uplinks"] == before["uplinks"]
    assert after["routes"] == before["routes"]
    node.sh("ip rule add from 10.244.1.11 table 100")
    assert "p0" in [one["name"] for one in gather(node)["uplinks"]], "a workload's address"


def test_an_address_on_the_loopback_is_the_nodes_own_where_routes_to_others_begin_there(node: Sandbox) -> None:
    assert "203.0.113.9" not in gather(node)["own_addresses"]
    node.sh("ip rule add fwmark 7 table 100; ip route add default via 198.18.0.2 src 203.0.113.9 table 100")
    assert "203.0.113.9" not in gather(node)["own_addresses"], "an address that moves may have a table of its own"
    node.sh("ip route add 10.244.6.0/26 via 198.18.0.6 src 203.0.113.9")
    assert "203.0.113.9" in gather(node)["own_addresses"]


def test_addresses_of_services_that_come_and_go_change_nothing_that_a_generation_is_made_of(node: Sandbox) -> None:
    node.sh("ip address add 10.96.0.1/32 dev p2")
    keys = ("own_addresses", "uplinks", "workloads", "workload_prefixes", "links_left_out")
    before = {key: value for key, value in gather(node).items() if key in keys}
    node.sh(
        "ip address add 10.96.0.10/32 dev p2; ip -6 address add fd00:96::10/128 dev p2 nodad"
        "; ip address add 198.18.0.200/32 dev eth0"
        "; ip -6 address add fd00::abcd/64 dev eth0 nodad mngtmpaddr; ip -6 address del fd00::abcd/64 dev eth0"
    )
    after = {key: value for key, value in gather(node).items() if key in keys}
    for one in (*before["uplinks"], *after["uplinks"]):
        del one["addresses"]
    assert after == before


def test_the_workload_prefix_of_a_node_is_what_it_refuses_as_a_whole(node: Sandbox) -> None:
    told = gather(node)
    assert told["workload_prefixes"] == ["10.244.1.0/26", "fd44::/122"]
    assert [one["address"] for one in told["workloads"]] == ["10.244.1.11", "10.244.1.12"]


def test_addresses_that_move_or_stand_for_services_are_not_the_nodes_own(node: Sandbox) -> None:
    told = gather(node)
    assert told["own_addresses"] == ["10.244.1.0", "10.244.1.1", "192.0.2.1", "198.18.0.1", "198.18.1.1", "fd00::1"]
    assert {"198.18.0.100", "203.0.113.9", "198.51.100.9", "198.51.100.77", "fd00:3::9"} <= set(told["addresses"])


def test_what_is_on_the_interface_of_a_workload_is_named(node: Sandbox) -> None:
    assert hindrances(node) == {"10.244.1.11": {}, "10.244.1.12": {}}
    node.sh("tc qdisc add dev cali1 root tbf rate 10mbit burst 32k latency 50ms; tc qdisc add dev cali2 ingress")
    node.sh(
        "tc filter add dev cali2 parent ffff: protocol ip prio 5 u32 match u32 0 0 action mirred egress redirect dev p0"
    )
    found = hindrances(node)
    assert found["10.244.1.11"] == {"never_by_peer": "the qdisc tbf"}
    assert found["10.244.1.12"] == {"may_be_taken": "the u32 filter of priority 5"}


def test_a_workload_without_ethernet_never_qualifies(node: Sandbox) -> None:
    node.sh("ip tuntap add cali3 mode tun; ip link set cali3 up; ip route add 10.244.1.13 dev cali3")
    found = hindrances(node)
    assert found["10.244.1.13"]["unfit"] == "its packets have no Ethernet header (link type none)"
    assert found["10.244.1.11"] == {}


def test_workloads_that_the_user_excludes_are_told_with_the_reason(node: Sandbox) -> None:
    node.sh("ip -6 route add fd44::11 dev cali1")
    excluded = ["10.244.1.11", "cali2"]
    assert hindrances(node, exclude=excluded) == {
        "10.244.1.11": {"excluded": "10.244.1.11/32"}, "10.244.1.12": {"excluded": "cali2"},
        "fd44::11": {"excluded": "10.244.1.11/32"},
    }  # fmt: skip
    assert hindrances(node, exclude=["10.244.1.64/26", "veth*"])["10.244.1.12"] == {}
    refused = node.module("overlay_facts", exclude=["10.244.1.11/24"])
    assert "overlay_exclude[0]" in refused["msg"]
    assert "host bits" in refused["msg"]


def test_programs_of_others_count_and_our_own_do_not(node: Sandbox) -> None:
    node.load("from_workload", returns(-1))
    node.load("theirs", returns(0, padding=1))
    node.sh(
        "tc qdisc add dev cali1 clsact; tc filter add dev cali1 egress bpf direct-action object-pinned "
        + PINS
        + "/theirs"
    )
    ours = [
        {"interface": "cali2", "direction": way, "program": f"{PINS}/from_workload"} for way in ("ingress", "egress")
    ]
    attached = node.attach(*ours)
    assert attached.get("changed"), attached
    found = hindrances(node)
    assert "bpf filter" in found["10.244.1.11"]["never_by_peer"]
    assert found["10.244.1.12"] == {}


def test_netdev_chains_keep_workloads_and_uplinks_in_the_kernels_path(node: Sandbox) -> None:
    node.sh("nft add table netdev t; nft add table inet i")
    node.sh('nft "add chain netdev t in { type filter hook ingress devices = { cali1, eth1 } priority 0; }"')
    node.sh('nft "add chain netdev t out { type filter hook egress device cali2 priority 0; }"')
    node.sh('nft "add chain inet i in { type filter hook ingress device br0 priority 0; }"')
    told = gather(node)
    assert [one["name"] for one in told["uplinks"]] == ["eth0"]
    assert {one["name"] for one in told["links_left_out"]} == {"tunl0", "cilium_vxlan", "eth1", "br0"}
    found = hindrances(node)
    assert found["10.244.1.11"] == {"never_admitted": "the netdev chain netdev t in"}
    assert found["10.244.1.12"] == {"never_admitted": "the netdev chain netdev t out"}


def test_a_node_without_nft_has_no_such_chains(node: Sandbox) -> None:
    node.sh('nft add table netdev t; nft "add chain netdev t in { type filter hook ingress device cali1 priority 0; }"')
    node.sh("mount -t tmpfs tmpfs /mnt; touch /mnt/nft; mount --bind /mnt/nft $(command -v nft)")
    told = gather(node)
    assert told["warnings"] == []
    assert len(told["workloads"]) == 2


def test_chains_that_cannot_be_read_are_a_warning(node: Sandbox) -> None:
    node.sh("mount -t tmpfs tmpfs /mnt; printf '#!/bin/sh\\necho Operation not permitted >&2; exit 1' >/mnt/nft")
    node.sh("chmod +x /mnt/nft; mount --bind /mnt/nft $(command -v nft)")
    chains, helpers = gather(node)["warnings"]  # nft is asked for both
    assert "chains on single interfaces" in chains
    assert "helper" in helpers
    assert all("Operation not permitted" in warning for warning in (chains, helpers))


def test_facts_of_many_workloads_take_no_process_for_each(node: Sandbox) -> None:
    few = timed(node)
    lines = [f"link add cali{n} type veth peer name q{n}\nlink set cali{n} up\n" for n in range(100, 350)]
    node.sh("ip -batch -", "".join(lines))
    node.sh("ip -batch -", "".join(f"route add 10.244.1.{n - 90} dev cali{n}\n" for n in range(110, 340)))
    assert len(gather(node)["workloads"]) == 232
    many = timed(node)
    print(f"2 workloads: {few:.3f} s, 232 workloads: {many:.3f} s")
    assert many - few < 230 * 0.004, f"{few:.2f} s, {many:.2f} s"


def timed(node: Sandbox) -> float:
    start = time.monotonic()
    gather(node)
    return time.monotonic() - start
