# SPDX-License-Identifier: GPL-3.0-or-later
"""Drift is told object by object, with what should be there, what is, and whose that is."""

from __future__ import annotations

from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.drift import find_drift

PINS = "/sys/fs/bpf/ebpf-overlay"


def entry(name: str, owner: str | None = None, priority: int = 1, handle: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "mechanism": "clsact", "kind": "bpf", "priority": priority, "handle": handle, "name": name, "owner": owner,
        "program_id": 7, "link_id": None, "hidden_by": None, "may_be_hidden_by": [], **more,
    }  # fmt: skip


def hook(interface: str, *ingress: dict[str, Any]) -> dict[str, Any]:
    return {"name": interface, "ingress": list(ingress), "egress": []}


def difference(module: str, before: str, after: str, target: str = "") -> dict[str, Any]:
    return {"module": module, "target": target, "reason": "differs", "diff": {"before": before, "after": after}}


def test_nothing_differs() -> None:
    assert find_drift([], [], [hook("eth0", entry("ebpf.overlay:from_uplink", "ebpf.overlay"))]) == []


def test_filter_that_is_gone_is_named_with_what_it_was() -> None:
    program = "ebpf.overlay:from_workload program 5 tag ab direct-action"
    line = f"cali1 ingress priority 1 handle 0x1 protocol 0x0003 {program}\n"
    (item,) = find_drift([difference("tc_bpf_attach", "cali1 qdisc clsact\n", f"{line}cali1 qdisc clsact\n")], [], [])
    assert item == {
        "kind": "missing",
        "object": "filter on cali1 ingress, priority 1, handle 0x1",
        "wanted": program,
        "found": None,
        "owner": None,
    }


def test_owner_of_what_sits_in_a_filters_place_is_named() -> None:
    refused = {"module": "tc_bpf_attach", "target": "", "reason": "Cannot attach", "diff": None}
    wanted = [{"interface": "cali1", "direction": "ingress", "program": f"{PINS}/from_workload"}]
    (item,) = find_drift([refused], wanted, [hook("cali1", entry("cilium:from_container", "cilium"))])
    assert (item["kind"], item["owner"]) == ("missing", "cilium")
    assert item["found"] == "bpf filter priority 1 handle 0x1 cilium:from_container program 7"


def test_other_program_in_our_filter_is_a_change() -> None:
    before = "eth0 ingress priority 1 handle 0x1 protocol 0x0003 ebpf.overlay:from_uplink program 5 direct-action\n"
    (item,) = find_drift([difference("tc_bpf_attach", before, before.replace("program 5", "program 6"))], [], [])
    assert item["kind"] == "changed"
    assert ("program 6" in item["wanted"], "program 5" in item["found"]) == (True, True)


def test_map_entries_are_named_by_map_and_key() -> None:
    before = "services: 2 entries\n22 -> 1\n8080 -> 3\n"
    after = "services: 2 entries\n8080 -> 1\n9090 -> 1\n… and 7 more; in all 8 added, 1 changed, 0 removed\n"
    items = find_drift([difference("bpf_map_sync", before, after, f"{PINS}/services")], [], [])
    assert {(item["object"], item["kind"], item["wanted"], item["found"]) for item in items} == {
        ("map services, key 8080", "changed", "1", "3"),
        ("map services, key 9090", "missing", "1", None),
        ("map services, key 22", "extra", None, "1"),
        ("map services", "missing", "… and 7 more; in all 8 added, 1 changed, 0 removed", None),
    }


def test_pins_are_named_by_their_paths() -> None:
    after = "map flows: lru_hash\nprogram from_uplink, tag ab\n"
    items = find_drift([difference("bpf_object", "program from_uplink, tag cd\n", after, PINS)], [], [])
    assert [(item["object"], item["kind"]) for item in items] == [
        (f"pin {PINS}/flows", "missing"),
        (f"pin {PINS}/from_uplink", "changed"),
    ]


def test_mode_and_packages() -> None:
    found = find_drift(
        [
            difference("overlay_mode", "mode off\n", "mode on\n"),
            difference("overlay_packages", "python3-bpfcc absent\n", "python3-bpfcc installed\n"),
        ],
        [],
        [],
    )
    assert [(item["object"], item["wanted"], item["found"]) for item in found] == [
        ("mode", "mode on", "mode off"),
        ("package python3-bpfcc", "installed", "absent"),
    ]


def test_mode_of_another_generation_has_no_text_of_its_own() -> None:
    (item,) = find_drift([difference("overlay_mode", "mode on\n", "mode on\n")], [], [])
    assert (item["kind"], item["object"]) == ("changed", "mode")


def test_what_cannot_be_compared_says_why() -> None:
    broken = {"module": "bpf_object", "target": PINS, "reason": "Cannot load", "diff": None}
    assert find_drift([broken], [], []) == [
        {"kind": "unknown", "object": PINS, "wanted": None, "found": "Cannot load", "owner": None}
    ]


def test_filters_before_ours_are_named_with_their_owner() -> None:
    first = entry("antrea:classify", "antrea", handle=9)
    ours = entry(
        "ebpf.overlay:from_uplink", "ebpf.overlay", hidden_by="bpf filter priority 1 handle 0x9 antrea:classify"
    )
    (item,) = find_drift([], [], [hook("eth0", first, ours)])
    assert (item["kind"], item["owner"], item["object"]) == (
        "hidden",
        "antrea",
        "ebpf.overlay:from_uplink on eth0 ingress",
    )
    softer = {**ours, "hidden_by": None, "may_be_hidden_by": [ours["hidden_by"]]}
    (item,) = find_drift([], [], [hook("eth0", first, softer)])
    assert item["kind"] == "ahead"


def test_sysctls_are_named_with_both_values() -> None:
    liberal, kept = "net.netfilter.nf_conntrack_tcp_be_liberal", "/etc/sysctl.d/60-ebpf-overlay.conf"
    before = f"{liberal} = 0\nformer {liberal} = 0\n"
    after = f"{liberal} = 1\n{kept}: {liberal} = 1\nformer {liberal} = 0\n"
    found = find_drift([difference("overlay_conntrack", before, after)], [], [])
    assert [(item["kind"], item["object"], item["wanted"], item["found"]) for item in found] == [
        ("changed", liberal, "1", "0"),
        ("missing", f"{kept}: {liberal}", "1", None),
    ]
