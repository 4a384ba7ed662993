# SPDX-License-Identifier: GPL-3.0-or-later
"""The status of a fleet: the document, its table and its page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.ebpf.overlay.plugins.plugin_utils._status.document import (
    fleet_status,
    share_text,
    status_table,
)
from ansible_collections.ebpf.overlay.plugins.plugin_utils._status.page import page

WHEN = "2026-01-15T10:21:07+00:00"
DRIFT = {"kind": "extra", "object": "map peers", "wanted": None, "found": "1", "owner": None}
ROUTES = [{"prefix": "0.0.0.0/0", "interface": "eth0", "gateway": "198.18.0.254", "metric": 0, "source": None}]
VOID = {"meta", "link", "img", "br", "hr", "input"}


def told(number: int, **changes: Any) -> dict[str, Any]:
    """What the tasks register on a node that has the overlay, and a flow to the next one."""
    free = {"never_by_peer": "", "may_be_taken": "", "never_admitted": ""}
    workload = {"address": f"10.244.{number}.11", "interface": f"cali{number}", **free, **changes.get("workload", {})}
    drift = changes.get("drift", [])
    entry = {
        "mechanism": "clsact", "name": "ebpf.overlay:from_uplink", "owner": "ebpf.overlay", "priority": 1, "handle": 1,
        "hidden_by": None,
    }  # fmt: skip
    counts = changes.get("counts", {"uplink.to_workload": 75, "uplink.unknown_flow": 25, "uplink.not_tcp": 900})
    facts = {
        "workloads": [workload],
        "control": {"mode": "on"},
        "uplinks": [{"name": "eth0"}],
        "uplinks_by_route": True,
        "links_left_out": changes.get("links_left_out", []),
        "interfaces": [{"name": "eth0", "unfit": ""}, {"name": "tun9", "unfit": "its packets have no Ethernet header"}],
        "routes": changes.get("routes", ROUTES),
        "known_peers": changes.get("known_peers", ["198.18.0.9/32", "10.244.9.0/24"]),
        "addresses": [f"198.18.0.{number}"],
    }
    pairs = [{"workload": workload["address"], "remote": f"10.244.{number + 1}.11", "flows": 3}]
    return {
        "node_looked": {"ansible_facts": {"overlay": facts}},
        "node_attached": {"interfaces": [{"name": "eth0", "ingress": [entry], "egress": []}]},
        "node_stats": {
            "exists": True,
            "entries": [{"key": key, "value": {"packets": n, "bytes": 100 * n}} for key, n in counts.items()],
        },
        "node_flows": {"flows": 3, "pairs": pairs},
        "node_generation": {
            "number": 1,
            "digest": "5f3b103b75d4",
            "pending": 0,
            "drift": drift,
            "generations": [{"number": 1}],
        },
    }


def fleet(**nodes: dict[str, Any]) -> dict[str, Any]:
    return fleet_status(list(nodes), nodes, WHEN)


def test_what_stays_in_the_kernels_path_is_told_by_name() -> None:
    left_out = [{"name": "tunl0", "reason": "its packets have no Ethernet header (link type ipip)"}]
    found = fleet(a=told(1, workload={"never_by_peer": "the qdisc tbf"}, links_left_out=left_out), b=told(2))
    assert found["nodes"][0]["notes"] == [
        "link tunl0 is no uplink: its packets have no Ethernet header (link type ipip)",
        "no redirect_peer for 10.244.1.11: it would skip the qdisc tbf",
    ]
    assert found["nodes"][1]["notes"] == []
    assert page(found).count('<p class="note">link tunl0 is no uplink') == 1
    assert status_table(found)[3:-2] == [f"a: {note}" for note in found["nodes"][0]["notes"]]


def test_uplinks_and_why_links_left_out_and_peers_are_told() -> None:
    routes = [*ROUTES, {**ROUTES[0], "prefix": "10.244.9.0/26", "interface": "tun9", "gateway": "198.18.0.9"}]
    found = fleet(a=told(1), b=told(2), c=told(3, routes=routes))
    assert found["nodes"][0]["wiring"]["uplinks"] == [
        {"name": "eth0", "why": ["default route", "routes to peers"], "addresses": 1, "prefixes": 1}
    ]
    assert found["nodes"][2]["notes"] == ["link tun9 is no uplink: its packets have no Ethernet header"]
    assert status_table(found)[-2:] == [
        "uplink eth0 (default route, routes to peers); peers: 1 address and 1 prefix: a, b",
        "uplink eth0 (default route, routes to peers); left out tun9 (its packets have no Ethernet header); "
        "peers: 1 address and 1 prefix: c",
    ]
    assert "default route, routes to peers: 1 address and 1 prefix" in " ".join(read(found).text)


def test_a_node_with_the_overlay_says_what_it_lacks_and_one_without_does_not() -> None:
    lacking = told(1, known_peers=["198.18.0.9/32"])
    (note,) = fleet(a=lacking)["nodes"][0]["notes"]
    assert "only addresses" in note
    lacking["node_generation"]["number"] = 0
    found = fleet(a=lacking)
    assert found["nodes"][0]["notes"] == []
    assert status_table(found)[-1] == "uplink eth0 (default route, routes to peers): a"


def test_connections_that_were_not_admitted_are_told_by_the_last_step_that_was_seen() -> None:
    steps = {"uplink.syn_in": 40, "uplink.syn_out": 60, "workload.answer_in": 30, "workload.answer_out": 30}
    steps.update({"uplink.ack_in": 29, "uplink.admitted": 29, "workload.syn_in": 10, "workload.syn_out": 10})
    steps.update({"uplink.answer_in": 10, "uplink.answer_out": 8, "workload.ack_in": 8, "workload.admitted": 8})
    found = fleet(a=told(1, counts={**steps, "uplink.not_peer": 70, "uplink.same_node": 3}), b=told(2))
    told_of = found["nodes"][0]["connections"]
    assert [told_of[key] for key in ("begun", "admitted", "share")] == [50, 37, 0.74]
    assert {one["step"]: one["connections"] for one in told_of["ended"]} == {
        "syn_out": 10, "answer_in": 2, "answer_out": 1,
    }  # fmt: skip
    assert told_of["not_eligible"] == {"not_peer": 70, "same_node": 3}
    assert found["totals"]["connections"] == {"begun": 50, "admitted": 37, "share": 0.74}
    assert found["nodes"][1]["connections"]["share"] is None
    lines = [line for line in status_table(found) if line.startswith("a:")]
    assert [words in line for words, line in zip(("10 were not", "2 were not", "1 were not", "70 SYNs"), lines)] == [
        True
    ] * 4
    assert len(lines) == 4, "fewer than the others: both ends on one node"
    assert "3 SYNs" in " ".join(read(found).text)
    steps["uplink.admitted"] = steps["uplink.ack_in"] = steps["workload.answer_out"] = steps["workload.answer_in"] = 40
    assert [line for line in status_table(fleet(a=told(1, counts=steps))) if line.startswith("a:")] == []


def test_an_uplink_by_route_is_known_by_its_program() -> None:
    node = told(1)
    node["node_attached"]["interfaces"][0]["name"] = "vxlan.calico"
    assert fleet(a=node)["nodes"][0]["uplinks"] == ["eth0", "vxlan.calico"]


class Reader(HTMLParser):
    """Checks that every element is closed, and keeps the text and what could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.loads: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.loads += [
            (name, value) for name, value in attrs if name in ("src", "href", "xlink:href", "data", "action")
        ]
        assert tag not in ("script", "link", "img", "iframe", "object", "embed")
        assert not [name for name, _value in attrs if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(document: dict[str, Any]) -> Reader:
    text = page(document)
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    assert reader.loads == []
    assert "url(" not in text
    assert "@import" not in text
    return reader


def test_node_with_the_overlay() -> None:
    (node,) = fleet(n1=told(1))["nodes"]
    assert node["state"] == "overlaid"
    assert node["traffic"] == {
        "fast": {"packets": 75, "bytes": 7500},
        "kernel": {"packets": 25, "bytes": 2500},
        "other": {"packets": 900, "bytes": 90000},
        "share": 0.75,
    }
    assert node["attachments"][0]["program"] == "from_uplink"


def test_links_lead_to_the_node_of_the_other_end() -> None:
    links = fleet(n1=told(1), n2=told(2))["links"]
    assert links == [
        {"node": "n1", "remote": "n2", "flows": 3},
        {"node": "n2", "remote": "elsewhere", "flows": 3},
    ]


def test_unreachable_node_is_shown_as_such_and_nothing_old_of_it() -> None:
    silent = {
        "node_looked": {"unreachable": True, "msg": "Connection timed out"},
        "ansible_facts": {"overlay": {"workloads": [{"address": "10.244.1.11"}]}},
    }
    document = fleet(n1=silent, n2=told(2))
    node = document["nodes"][0]
    assert (node["state"], node["reason"], node["workloads"]) == ("unreachable", "Connection timed out", [])
    assert document["totals"]["unreachable"] == 1
    assert "n1    unreachable" in "\n".join(status_table(document))
    assert "Connection timed out" in "".join(read(document).text)


def test_node_that_became_unreachable_half_way() -> None:
    lost = {**told(1), "node_generation": {"unreachable": True, "msg": "lost"}}
    assert fleet(n1=lost)["nodes"][0]["state"] == "unreachable"


def test_node_whose_status_could_not_be_read() -> None:
    broken = {**told(1), "node_trouble": "Compare the node: it failed", "node_generation": {"failed": True}}
    node = fleet(n1=broken)["nodes"][0]
    assert (node["state"], node["reason"], node["generation"]) == ("failed", "Compare the node: it failed", None)


def test_node_without_a_single_answer_is_not_called_bare() -> None:
    assert fleet(n1={})["nodes"][0]["state"] == "failed"


def test_node_that_never_saw_the_overlay() -> None:
    bare = told(1)
    bare["node_looked"]["ansible_facts"]["overlay"]["control"] = None
    bare["node_attached"]["interfaces"] = []
    bare["node_stats"] = {"exists": False, "entries": []}
    bare["node_flows"] = {"flows": 0, "pairs": []}
    bare["node_generation"] = {"number": 0, "digest": "", "pending": 0, "drift": []}
    document = fleet(n1=bare)
    assert document["nodes"][0]["state"] == "bare"
    assert document["nodes"][0]["traffic"] is None
    assert "not loaded" in status_table(document)[1]
    read(document)


def test_foreign_filter_ahead_is_told_but_no_drift() -> None:
    ahead = {"kind": "ahead", "object": "ours on eth0", "wanted": "runs first", "found": "theirs", "owner": "cilium"}
    document = fleet(n1=told(1, drift=[ahead]))
    assert document["nodes"][0]["state"] == "overlaid"
    assert status_table(document)[-2] == "n1: ours on eth0: theirs (owner: cilium)"


def test_table_is_bounded_where_a_whole_map_is_gone() -> None:
    gone = [
        {"kind": "missing", "object": f"map m, key {key}", "wanted": "1", "found": None, "owner": None}
        for key in range(250)
    ]
    document = fleet(n1=told(1, drift=gone))
    assert len(document["nodes"][0]["drift"]) == 250
    lines = status_table(document)
    assert sum("map m, key" in line for line in lines) == 100
    assert "n1: and 150 more objects that differ, all in the JSON" in lines


def test_drift_is_in_table_and_page() -> None:
    missing = {"kind": "missing", "object": "map services, key 8080", "wanted": "1", "found": None, "owner": None}
    document = fleet(n1=told(1, drift=[missing]))
    assert document["nodes"][0]["state"] == "drifted"
    assert status_table(document)[-2] == "n1: map services, key 8080: should be 1; there is nothing"
    assert "map services, key 8080" in "".join(read(document).text)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 6, 7, 12, 13, 60])
def test_page_for_any_number_of_nodes(count: int) -> None:
    document = fleet(**{f"n{number}": told(number) for number in range(1, count + 1)})
    reader = read(document)
    text = "".join(reader.text)
    assert len(re.findall(r"<g class=\"node ", page(document))) == count
    for number in range(1, count + 1):
        assert f"n{number}" in text
    assert ("There is no node" in text) == (count == 0)


def test_long_drift_is_cut_and_says_so() -> None:
    text = "".join(read(fleet(n1=told(1, drift=[{**DRIFT, "object": f"map {number}"} for number in range(40)]))).text)
    assert "and 28 more" in text


def test_name_of_a_node_that_is_a_script_is_shown_and_not_run() -> None:
    name = "<script>alert(1)</script>"
    for count in (0, 12):  # the picture writes names in two ways
        document = fleet(
            **{name: told(1, drift=[{**DRIFT, "owner": name}]), **{f"n{n}": told(n) for n in range(count)}}
        )
        assert name in "".join(read(document).text)
        assert "<script" not in page(document)
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page(document)


HOSTILE = st.text(st.sampled_from("<>&\"'/=abc \u202e"), min_size=1, max_size=30)


@settings(max_examples=50, deadline=None)
@given(name=HOSTILE, text=HOSTILE, many=st.booleans())
def test_everything_that_is_shown_is_escaped(name: str, text: str, many: bool) -> None:
    item = {"kind": "extra", "object": text, "wanted": text, "found": text, "owner": text}
    node = told(1, drift=[item])
    node["node_looked"]["ansible_facts"]["overlay"]["workloads"][0]["interface"] = text
    node["node_looked"]["ansible_facts"]["overlay"]["control"]["mode"] = text
    node["node_generation"]["digest"] = text
    nodes = {name: node, "n2": told(2), "lost": {"node_looked": {"unreachable": True, "msg": text}}}
    if many:
        nodes.update({f"{name}{number}": node for number in range(12)})
    shown = "".join(read(fleet_status(list(nodes), nodes, WHEN)).text)
    assert name in shown
    assert text in shown


@pytest.mark.parametrize(
    ("share", "text"), [(None, "-"), (0.0, "0 %"), (0.0004, "< 1 %"), (0.5, "50 %"), (0.9996, "> 99 %"), (1.0, "100 %")]
)
def test_share_is_never_rounded_to_all_or_nothing(share: float | None, text: str) -> None:
    assert share_text({"share": share}) == text


def test_flows_on_both_ends_make_one_line() -> None:
    back = told(2)
    back["node_flows"]["pairs"][0]["remote"] = "198.18.0.1"
    text = page(fleet(n1=told(1), n2=back))
    assert text.count('class="flow both"') == 2  # one in the legend
    assert "n1 redirects 3 open flows with n2; n2 redirects 3 open flows with n1" in text
