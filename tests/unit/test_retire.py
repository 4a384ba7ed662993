# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes that leave for good: who they are, when that is refused, and what the report says of those that stay."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.ebpf.overlay.plugins.filter.cluster import fleet_report
from ansible_collections.ebpf.overlay.plugins.filter.retire import retired, staying
from ansible_collections.ebpf.overlay.plugins.filter.settings import roll_out_batches

NAMES = ["n1", "n2", "n3", "n4"]
Hosts = dict[str, dict[str, Any]]


def leaving(*names: str, told_by: Sequence[str] | None = None) -> Hosts:
    tellers = NAMES if told_by is None else told_by
    return {one: {"node_settings": {"overlay_retire": list(names)} if one in tellers else {}} for one in NAMES}


def test_who_leaves_is_named_by_any_host_and_told_in_the_order_of_the_nodes() -> None:
    assert retired(NAMES, leaving(), NAMES) == []
    assert retired(NAMES, leaving("n4", "n2", told_by=["n3"]), NAMES) == ["n2", "n4"]
    assert retired(NAMES, {"n1": {"node_settings": {"overlay_retire": ["n3"]}}}, NAMES) == ["n3"]  # alone


def test_who_stays_is_a_pattern_of_hosts() -> None:
    assert staying({"n1": {}, "n2": {"node_retired": ["n2", "n4"]}}, NAMES) == "overlay_nodes:!n2:!n4"
    assert staying({}, NAMES) == "overlay_nodes"


def test_who_is_done_with_is_in_no_batch() -> None:
    hosts: Hosts = {name: {"node_verdict": {"outcome": "unchanged"}, "node_retired": ["n4"]} for name in NAMES[:3]}
    hosts["n2"]["node_verdict"] = {}
    assert staying(hosts, NAMES, ["unchanged"]) == "overlay_nodes:!n4:!n1:!n3"
    assert roll_out_batches(NAMES[:3], hosts, 5) == [1]
    hosts["n2"]["node_verdict"] = {"outcome": "unchanged"}
    assert staying(hosts, NAMES, ["unchanged"]) == "overlay_nodes:!overlay_nodes"
    assert staying(hosts, NAMES) == "overlay_nodes:!n4"
    assert roll_out_batches(NAMES[:3], hosts, 5) == []


@pytest.mark.parametrize(
    ("names", "playing", "words"),
    [
        (["n9"], NAMES, ["overlay_retire: n9", "no such host is in the group", "Leave the node in the inventory"]),
        (NAMES, NAMES, ["no node would stay", "rollback.yml"]),
        (["n4"], ["n1", "n4"], ["overlay_retire: n4", "--limit leaves out n2, n3, whose maps", "without --limit"]),
        (["n4"], ["n4"], ["--limit leaves out n1, n2, n3, whose maps"]),
        (["n4"], [], ["--limit leaves out n1, n2, n3, whose maps"]),
        (["n3", "n4"], ["n1", "n2", "n3"], ["--limit leaves out n4, which would keep the overlay"]),
    ],
)
def test_what_would_leave_something_behind_is_refused(names: list[str], playing: list[str], words: list[str]) -> None:
    with pytest.raises(AnsibleFilterError) as told:
        retired(NAMES, leaving(*names), playing)
    for one in ["Cannot retire nodes", "Nothing was changed.", *words]:
        assert one in str(told.value)


def test_a_limit_is_none_of_its_business_where_nobody_leaves() -> None:
    assert retired(NAMES, leaving(), ["n1"]) == []


def test_a_limit_that_leaves_out_many_names_three() -> None:
    names = [f"n{number}" for number in range(1, 21)]
    with pytest.raises(AnsibleFilterError, match="leaves out n2, n3, n4 and 15 more, whose maps"):
        retired(names, leaving("n20"), ["n1"])


def report(outcomes: dict[str, str], missing: Sequence[str] = (), **settings: Any) -> str:
    """What is told of n4."""
    hosts: Hosts = {
        name: {
            "node_picture": json.dumps({"nodes": {}, "missing": dict.fromkeys(missing, "no facts")}),
            "node_settings": settings.get(name, {}),
            **({"node_verdict": {"outcome": outcome, "reason": "no route to host"}} if outcome else {}),
        }
        for name, outcome in outcomes.items()
    }
    return next(line for line in fleet_report(list(outcomes), hosts) if line.startswith("n4: "))


FORGOTTEN = "and the other nodes' maps do not name the node any more"


@pytest.mark.parametrize("outcome", ["retired", "left behind"])
def test_the_report_names_who_still_knows_a_node_that_left(outcome: str) -> None:
    rolled_out = {"n1": "confirmed", "n2": "unchanged", "n3": "confirmed", "n4": outcome}
    assert FORGOTTEN in report(rolled_out)
    assert "but the maps of n3 name the node still" in report({**rolled_out, "n3": ""})
    assert "but the maps of n1 name the node still" in report({**rolled_out, "n1": "foreign"})


def test_while_a_node_is_missing_all_that_keep_their_peers_still_know() -> None:
    outcomes = {"n1": "unchanged", "n2": "confirmed", "n3": "", "n4": "retired"}
    assert "but the maps of n1, n2, n3 name the node still" in report(outcomes, ["n3"])
    own = {"overlay_peers": ["10.0.0.0/8"]}  # what the user names is all that is in the map
    assert "but the maps of n2, n3 name the node still" in report(outcomes, ["n3"], n1=own)
    assert "run site.yml with overlay_retire again" in report(outcomes, ["n3"])


def test_a_node_that_was_left_behind_is_told_with_what_to_do_if_it_comes_back() -> None:
    told = report({"n1": "confirmed", "n4": "left behind"})
    assert "n4: LEFT BEHIND, it could not be reached (no route to host)" in told
    assert "rollback.yml -e overlay_rollback_to=0 --limit n4" in told
