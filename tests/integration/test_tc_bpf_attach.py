# SPDX-License-Identifier: GPL-3.0-or-later
"""``tc_bpf_attach`` on real hooks: namespaces of its own, veths, tiny programs. Needs root."""

from __future__ import annotations

from typing import Any

import pytest
from integration.tc_checks import TCX_ATTACH, foreign_state, parts, refused, tcx_of
from integration.tc_sandbox import PINS, Sandbox, at, returns

pytest_plugins = ["integration.tc_fixtures"]


# -- clsact -----------------------------------------------------------------------------------------------------------


def test_attach_is_idempotent_and_visible_in_tc(node: Sandbox) -> None:
    wanted = [at("eth0", "one"), at("cali*", "two", direction="egress", priority=9, handle=3)]
    result = node.both(*wanted, mechanism="clsact")
    assert result["changed"]
    assert [
        (entry["interface"], entry["direction"], entry["priority"], entry["handle"]) for entry in result["attachments"]
    ] == [
        ("eth0", "ingress", 60000, 1),
        ("cali1", "egress", 9, 3),
        ("cali2", "egress", 9, 3),
    ]
    (line,) = node.filters("eth0")
    assert "protocol all pref 60000 " in line
    assert "handle 0x1 ebpf.overlay:one direct-action" in line
    assert f"id {result['attachments'][0]['program_id']} " in line
    assert f"tag {result['attachments'][0]['tag']} " in line
    assert len(node.filters("cali2", "egress")) == 1

    before = node.state()
    again = node.both(*wanted, mechanism="clsact")
    assert not again["changed"]
    assert again["diff"]["before"] == again["diff"]["after"] == result["diff"]["after"]
    assert not any(entry["qdisc_created"] for entry in again["attachments"])
    assert node.state() == before


def test_a_new_program_replaces_the_old_one_in_its_slot(node: Sandbox) -> None:
    node.attach(at("eth0", "one"), mechanism="clsact")
    new = node.load("one", returns(-1, padding=3))
    result = node.both(at("eth0", "one"), mechanism="clsact")
    assert result["changed"]
    assert result["attachments"][0]["program_id"] == new
    (line,) = node.filters("eth0")
    assert f"id {new} " in line
    assert not node.attach(at("eth0", "one"), mechanism="clsact")["changed"]


def test_the_same_code_loaded_again_is_another_program(node: Sandbox) -> None:
    """Same tag, other id: its maps would be others too."""
    node.attach(at("eth0", "one"), mechanism="clsact")
    new = node.load("one", returns(-1))
    assert node.both(at("eth0", "one"), mechanism="clsact")["changed"]
    assert f"id {new} " in node.filters("eth0")[0]


def test_a_changed_priority_leaves_no_old_filter_running_cilium_36172(node: Sandbox) -> None:
    node.attach(at("eth0", "one", priority=5), mechanism="clsact")
    result = node.both(at("eth0", "one", priority=7, handle=2), mechanism="clsact")
    assert [(entry["priority"], entry["handle"]) for entry in result["removed"]] == [(5, 1)]
    (line,) = node.filters("eth0")
    assert "pref 7" in line
    assert "handle 0x2" in line


def test_runs_do_not_stack_filters_calico_8897(node: Sandbox) -> None:
    for number in range(3):
        node.load("one", returns(-1, padding=number + 2))
        node.attach(at("eth0", "one"), mechanism="clsact")
    assert len(node.filters("eth0")) == 1


def test_neighbours_stay_untouched_tracee_1828(node: Sandbox) -> None:
    """Removing a clsact qdisc takes everybody's programs with it: ebpf-manager #67."""
    foreign_state(node)
    node.sh("tc qdisc add dev cali1 clsact")
    before = node.state()
    node.both(
        at("eth0", "one"),
        at("eth0", "two", priority=10),
        at("eth0", "two", direction="egress"),
        at("cali*", "one"),
        mechanism="clsact",
    )
    node.load("one", returns(-1, padding=4))
    node.both(at("eth0", "one", priority=50), at("eth0", "two", priority=3), at("cali*", "one"), mechanism="clsact")
    result = node.both(purge=True)
    assert len(result["removed"]) == 5
    after = node.state()
    assert after.replace(after[after.index("/run") :], "") == before.replace(before[before.index("/run") :], "")
    assert "qdisc clsact ffff: dev cali1" in after, "foreign, though empty"
    assert "dev cali2" not in after


@pytest.mark.parametrize("taken", [{"priority": 1, "handle": 0x77}, {"priority": 20}], ids=["handle", "kind"])
def test_a_place_taken_by_somebody_else_is_refused_cilium_28433(node: Sandbox, taken: dict[str, Any]) -> None:
    """Same priority and handle as somebody else: datadog-agent #13692."""
    foreign_state(node)
    error = refused(node, at("cali1", "one"), at("eth0", "one", **taken), mechanism="clsact")
    assert "eth0" in error["target"]
    assert "somebody else" in error["reason"]


def test_owners_keep_out_of_each_others_way(node: Sandbox) -> None:
    node.attach(at("eth0", "one"), owner="acme", mechanism="clsact")
    node.attach(at("eth0", "one", handle=2), at("cali1", "two"), mechanism="clsact")
    mine = node.filters("eth0")
    assert len(mine) == 2
    result = node.both(purge=True, owner="acme")
    assert [entry["interface"] for entry in result["removed"]] == ["eth0"]
    assert [line for line in mine if "acme" not in line] == node.filters("eth0")
    assert "qdisc clsact" in node.sh("tc qdisc show dev eth0"), "still in use"
    node.both(purge=True)
    assert "clsact" not in node.sh("tc qdisc show")
    assert "/run/ebpf-overlay" not in node.state()


def test_purge_removes_what_the_list_does_not_name(node: Sandbox) -> None:
    node.attach(at("eth0", "one"), at("eth0", "two", direction="egress"), at("cali*", "one"), mechanism="clsact")
    result = node.both(at("cali1", "one"), purge=True, mechanism="clsact")
    assert [(entry["interface"], entry["direction"]) for entry in result["removed"]] == [
        ("cali2", "ingress"),
        ("eth0", "egress"),
        ("eth0", "ingress"),
    ]
    assert node.sh("tc qdisc show").count("clsact") == 1


def test_absent_removes_wherever_it_runs_and_needs_no_pin(node: Sandbox) -> None:
    node.attach(at("eth0", "one", priority=30), at("eth0", "two"), mechanism="clsact")
    node.sh(f"rm {PINS}/one")
    result = node.both(at("eth0", "one"), at("cali*", "one"), at("eth9", "one"), state="absent", mechanism="clsact")
    assert [entry["program"] for entry in result["removed"]] == ["one"]
    (line,) = node.filters("eth0")
    assert "two" in line
    assert not node.both(at("eth0", "one"), state="absent", mechanism="clsact")["changed"]
    node.both(at("eth0", "two"), state="absent", mechanism="clsact")
    assert "clsact" not in node.sh("tc qdisc show")


def test_a_first_dry_run_predicts_the_interfaces_before_the_program_exists(node: Sandbox) -> None:
    node.sh(f"rm {PINS}/one")
    dry = node.attach(at("eth0", "one"), at("cali*", "one"), check=True, mechanism="clsact")
    assert dry["changed"]
    assert any("No program is pinned" in warning for warning in dry["warnings"])
    real = node.attach(at("eth0", "one"), at("cali*", "one"), mechanism="clsact")
    assert "No program is pinned" in parts(real)["reason"]
    assert "clsact" not in node.sh("tc qdisc show")
    node.load("one")
    real = node.attach(at("eth0", "one"), at("cali*", "one"), mechanism="clsact")
    assert [entry["interface"] for entry in real["attachments"]] == [entry["interface"] for entry in dry["attachments"]]


def test_a_foreign_ingress_qdisc_serves_ingress_and_rules_out_egress(node: Sandbox) -> None:
    """ingress and clsact exclude each other: containernetworking/plugins #894."""
    node.sh(
        "tc qdisc add dev eth0 handle ffff: ingress; "
        "tc filter add dev eth0 ingress prio 8 protocol all u32 match u32 0 0 classid 1:1"
    )
    node.both(at("eth0", "one"), mechanism="clsact")
    assert len(node.filters("eth0")) == 2
    error = refused(node, at("eth0", "one", direction="egress"), mechanism="clsact")
    assert "ingress qdisc" in error["reason"]
    assert not node.both(at("eth0", "one"), mechanism="clsact", purge=True)["changed"], (
        "no second sight of it at egress"
    )
    node.both(purge=True)
    assert "qdisc ingress" in node.sh("tc qdisc show dev eth0")
    assert len(node.filters("eth0")) == 1


def test_a_qdisc_that_somebody_deleted_comes_back_and_is_told(node: Sandbox) -> None:
    """Felix does so on cali* interfaces when it attaches through TCX or netkit."""
    node.attach(at("eth0", "one"), mechanism="clsact")
    node.sh("tc qdisc del dev eth0 clsact")
    result = node.both(at("eth0", "one"), mechanism="clsact")
    assert result["attachments"][0]["qdisc_created"]
    assert any("eth0" in warning and "somebody removed it" in warning for warning in result["warnings"])
    node.both(purge=True)
    assert "clsact" not in node.sh("tc qdisc show")


def test_an_interface_that_comes_back_is_not_taken_for_the_old_one(node: Sandbox) -> None:
    """veth churn, calico #11012 and #12202: a record of a qdisc does not outlive its interface."""
    node.sh("ip link add cali9 type veth peer name q9")
    node.attach(at("cali9", "one"), mechanism="clsact")
    node.sh("ip link del cali9; ip link add cali9 type veth peer name q9; tc qdisc add dev cali9 clsact")
    node.both(at("cali9", "one"), mechanism="clsact")
    node.both(purge=True)
    assert "dev cali9" in node.sh("tc qdisc show"), "this one is somebody else's"
    assert "/run/ebpf-overlay" not in node.state()
    node.sh("ip link del cali9")


# -- TCX --------------------------------------------------------------------------------------------------------------


def test_tcx_attach_update_and_remove(node: Sandbox) -> None:
    wanted = [at("eth0", "one"), at("eth1.1", "one"), at("eth11", "one"), at("eth0", "two", direction="egress")]
    result = node.both(*wanted, mechanism="tcx")
    assert {entry["mechanism"] for entry in result["attachments"]} == {"tcx"}
    assert "clsact" not in node.sh("tc qdisc show")
    pins = node.sh("find /sys/fs/bpf/ebpf-overlay -type f").split()
    assert len(pins) == len(set(pins)) == 4
    assert not any("." in pin[len("/sys/fs/bpf") :] for pin in pins)
    assert not node.both(*wanted, mechanism="tcx")["changed"]
    assert not node.both(*wanted)["changed"], "auto keeps what runs through TCX"

    link = tcx_of(node, "eth0")
    new = node.load("one", returns(-1, padding=5))
    node.both(*wanted, mechanism="tcx")
    assert f"({new}, " in tcx_of(node, "eth0")
    assert tcx_of(node, "eth0").split(", ")[1:] == link.split(", ")[1:], "the same link"

    node.both(at("eth0", "one"), state="absent")
    assert len(node.sh("find /sys/fs/bpf/ebpf-overlay -type f").split()) == 3
    node.both(purge=True)
    assert "ebpf-overlay" not in node.state()


def test_tcx_links_of_others_stay_in_front_of_ours(node: Sandbox) -> None:
    node.load("theirs", returns(0, padding=7))
    node.python(TCX_ATTACH, "/sys/fs/bpf/foreign/link", "eth0", "46", f"{PINS}/theirs")
    before = tcx_of(node, "eth0")
    result = node.both(at("eth0", "one"), at("cali1", "one"))
    assert [entry["mechanism"] for entry in result["attachments"]] == ["tcx", "tcx"]
    programs = tcx_of(node, "eth0")
    assert programs.index(f"({result['attachments'][0]['program_id']}, ") > programs.index(
        before[before.index("(") : -1]
    )
    error = refused(node, at("eth0", "theirs"), mechanism="tcx")
    assert "somebody else" in error["reason"]
    node.both(purge=True)
    assert tcx_of(node, "eth0") == before


@pytest.mark.parametrize(("old", "new"), [("clsact", "tcx"), ("tcx", "clsact")])
def test_migration_leaves_nothing_behind(node: Sandbox, old: str, new: str) -> None:
    node.attach(at("eth0", "one"), at("cali*", "one"), mechanism=old)
    result = node.both(at("eth0", "one"), at("cali*", "one"), mechanism=new)
    assert {entry["mechanism"] for entry in result["removed"]} == {old}
    assert ("clsact" in node.sh("tc qdisc show")) == (new == "clsact")
    assert ("ebpf-overlay/links" in node.state()) == (new == "tcx")
    assert not node.both(at("eth0", "one"), at("cali*", "one"), mechanism=new)["changed"]


def test_a_link_that_lost_its_interface_leaves_no_pin(node: Sandbox) -> None:
    node.sh("ip link add cali8 type veth peer name q8")
    node.attach(at("cali*", "one"), mechanism="tcx")
    node.sh("ip link del cali8")
    assert node.both(at("cali*", "one"), mechanism="tcx")["changed"]
    assert len(node.sh("find /sys/fs/bpf/ebpf-overlay -type f").split()) == 2
    assert not node.both(at("cali*", "one"), mechanism="tcx")["changed"]
