# SPDX-License-Identifier: GPL-3.0-or-later
"""What probes mean: which connections the overlay did not carry, and what is said of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.ebpf.overlay.plugins.filter import cluster
from ansible_collections.ebpf.overlay.plugins.plugin_utils._probe_verdict import far_targets, judge

PEERS, UPLINKS = ["198.18.0.0/24", "fd00:198:18::/64"], ["ens47f1"]


def flow(port: int, **more: Any) -> dict[str, Any]:
    ends = {"workload": "10.244.1.10", "workload_port": 8080, "remote": "198.18.0.12", "remote_port": port}
    return {**ends, **more}


def connection(port: int, **more: Any) -> dict[str, Any]:
    found = {"flow": flow(port), "keepalives": 1, "answered": 1, "retransmissions": 0, "closed": False, **more}
    found["flow"].update(found.pop("ends", {}))
    return found


def seen(port: int, **more: Any) -> dict[str, Any]:
    return flow(port, **{"admitted": True, "interface": 7, "link": "", "to_workload": 1, "to_uplink": 1, **more})


def verdict(*pairs: tuple[dict[str, Any], dict[str, Any]], **counters: dict[str, int]) -> dict[str, Any]:
    made = {"connections": [one for one, _flow in pairs]}
    after = {"flows": [flow for _one, flow in pairs], "counters": counters.get("after", {})}
    return judge(made, after, {"counters": counters.get("before", {})}, PEERS, UPLINKS)


WELL = {"failed": [], "left_out": [], "again": False}
WAITED = {"to_workload": 0, "to_uplink": 0}


def test_a_connection_that_took_the_fast_path_both_ways_is_well() -> None:
    assert verdict((connection(1), seen(1))) == WELL
    assert verdict() == WELL
    assert judge({"skipped": True}, {"skipped": True}, {}, [], []) == WELL


@pytest.mark.parametrize(
    ("made", "known", "words", "again"),
    [
        ({}, WAITED, "0 packets took it to the workload, 0 to the uplink", True),
        ({}, {"to_uplink": 0}, "1 packets took it to the workload, 0 to the uplink", True),
        ({}, {"to_workload": 0}, "0 packets took it to the workload, 1 to the uplink", True),
        ({"keepalives": 3, "answered": 2}, {}, "1 of 3 keepalives were not answered", True),
        ({"retransmissions": 2}, {}, "2 segments were sent again", False),
        ({}, {"admitted": False, "interface": 0, **WAITED}, "its handshake was not seen going in and coming", True),
        ({}, {"admitted": False, "link": "ens47f1"}, "its handshake was not seen", True),
    ],
)
def test_any_other_is_refused(made: dict[str, Any], known: dict[str, Any], words: str, again: bool) -> None:
    told = verdict(
        (connection(1, **made), seen(1, **known)),
        before={"uplink.unproven": 3, "uplink.ttl": 4},
        after={"uplink.unproven": 5, "uplink.ttl": 4, "workload.heartbeat": 7, "uplink.to_workload": 9},
    )
    assert told["left_out"] == []
    assert told["again"] == again
    assert told["failed"] == [
        f"Cannot carry a connection by the fast path: 10.244.1.10:8080 with 198.18.0.12:1. Reason: {told_of(told)}. "
        "Meanwhile the node counted workload.heartbeat 7, uplink.unproven 2."
    ]
    assert words in told["failed"][0]


def told_of(told: dict[str, Any]) -> str:
    return str(told["failed"][0].partition("Reason: ")[2].partition(". Meanwhile")[0])


def test_of_flows_that_take_turns_one_is_enough() -> None:
    waited = (connection(2), seen(2, **WAITED))
    assert verdict((connection(1), seen(1)), waited) == WELL
    assert verdict(waited, (connection(1), seen(1))) == WELL
    assert verdict((connection(1), seen(1, interface=8)), waited)["failed"]  # another workload's
    assert verdict((connection(1), seen(1)), (connection(2, answered=0), seen(2, **WAITED)))["failed"]
    assert verdict((connection(1), seen(1)), (connection(2), seen(2, to_uplink=0)))["failed"]
    assert verdict((connection(1), seen(1)), (connection(2), seen(2, admitted=False, **WAITED)))["failed"]


@pytest.mark.parametrize(
    ("made", "known", "words"),
    [
        ({"closed": True}, WAITED, "10.244.1.10:8080 with 198.18.0.12:1 was closed by the other end"),
        ({"ends": {"remote": "203.0.113.7"}}, {"remote": "203.0.113.7", **WAITED}, "is not with a peer"),
        ({"ends": {"remote": "fd00::1"}}, {"remote": "fd00::1", **WAITED}, "8080 with [fd00::1]:1 is not with a peer"),
        ({}, {"admitted": False, "link": "tunl0", **WAITED}, "goes by way of tunl0, which is no uplink"),
    ],
)
def test_what_cannot_take_the_fast_path_is_named(made: dict[str, Any], known: dict[str, Any], words: str) -> None:
    told = verdict((connection(1, **made), seen(1, **known)))
    assert (told["failed"], told["again"]) == ([], False)
    assert words in told["left_out"][0]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)), max_size=5))
def test_no_workload_passes_without_a_connection_that_took_both_ways(
    flows: list[tuple[bool, int, int, int]],
) -> None:
    pairs = [
        (connection(port), seen(port, admitted=admitted, to_workload=there, to_uplink=back, interface=interface))
        for port, (admitted, there, back, interface) in enumerate(flows)
    ]
    carried = {interface for admitted, there, back, interface in flows if admitted and there and back}
    all_carried = {interface for _admitted, _there, _back, interface in flows} <= carried
    if not verdict(*pairs)["failed"]:
        assert all_carried


def test_targets_of_other_nodes_take_turns() -> None:
    nodes = {"n1": {"workloads": ["10.244.1.10"]}, "n2": {"workloads": ["10.244.2.10", "10.244.2.11"]}, "n3": {}}
    found = [(one["address"], one["port"]) for one in far_targets(nodes, ["n2", "n3", "n1"], [80, 81, 82, 83])]
    assert found == [
        ("10.244.2.10", 80), ("10.244.1.10", 80), ("10.244.2.10", 81),
        ("10.244.1.10", 81), ("10.244.2.10", 82), ("10.244.1.10", 82),
    ]  # fmt: skip


def test_workloads_that_the_fast_path_cannot_reach_are_not_probed() -> None:
    free = {"interface": "cali1", "never_admitted": "", "may_be_taken": "", "never_by_peer": "the qdisc tbf"}
    workloads = [
        {**free, "address": "10.244.1.10", "never_admitted": "the netdev chain inet t c"},
        {**free, "address": "10.244.1.11", "may_be_taken": "the u32 filter of priority 1"},
        {**free, "address": "10.244.1.12"},
    ]
    services = [{"port": "8080-8090"}, {"port": 9}]
    targets = cluster.probe_targets(workloads, services)
    assert {target["address"] for target in targets} == {"10.244.1.12"}
    assert [target["port"] for target in targets] == [8080, 8081, 8082, 9]
    assert cluster.probe_sources(workloads) == [{"address": "10.244.1.12", "interface": "cali1"}]
