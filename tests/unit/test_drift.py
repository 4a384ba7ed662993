# SPDX-License-Identifier: GPL-3.0-or-later
"""Drift is told object by object, with what should be there, what is, and whose that is."""

from __future__ import annotations

import struct
from dataclasses import asdict
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.plan import DIFF_LINES, Change, Plan
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import conntrack, mode
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.drift import find_drift
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.packages import plan_packages
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.traffic import place_of
from ansible_collections.ebpf.overlay.plugins.module_utils._maps.plan import UNKNOWN, plan_map

PINS = "/sys/fs/bpf/ebpf-overlay"


def entry(name: str, owner: str | None = None, priority: int = 1, handle: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "mechanism": "clsact", "kind": "bpf", "priority": priority, "handle": handle, "name": name, "owner": owner,
        "program_id": 7, "link_id": None, "hidden_by": None, "may_be_hidden_by": [], **more,
    }  # fmt: skip


def hook(interface: str, *ingress: dict[str, Any]) -> dict[str, Any]:
    return {"name": interface, "ingress": list(ingress), "egress": []}


def difference(module: str, changes: Any, target: str = "") -> dict[str, Any]:
    """As a generation's own code tells what a plan would change."""
    told = [asdict(change) for change in changes if change.differs]
    return {
        "module": module,
        "target": target,
        "reason": "differs",
        "diff": Plan(changes=changes).diff,
        "changes": told,
    }


def filter_change(interface: str, before: str | None, after: str | None) -> tuple[Change, ...]:
    return (Change("filter", place_of(interface, "ingress", 1, 1), before, after, f"{interface} ingress …"),)


def services(observed: dict[int, int], desired: dict[int, int]) -> Plan:
    before, after = (
        {struct.pack("=I", key): bytes([value]) for key, value in entries.items()} for entries in (observed, desired)
    )
    number = struct.Struct("=I").unpack
    return plan_map(
        "services",
        before,
        after,
        UNKNOWN,
        lambda key, value: (str(*number(key)), str(value[0])),
        purge=True,
        order=number,
    )


def test_nothing_differs() -> None:
    assert find_drift([], [], [hook("eth0", entry("ebpf.overlay:from_uplink", "ebpf.overlay"))]) == []


def test_filter_that_is_gone_is_named_with_what_it_was() -> None:
    program = "ebpf.overlay:from_workload program 5 tag ab direct-action"
    qdisc = Change("qdisc", "qdisc clsact on cali1", "clsact", "clsact")
    (item,) = find_drift([difference("tc_bpf_attach", (*filter_change("cali1", None, program), qdisc))], [], [])
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
    before = "ebpf.overlay:from_uplink program 5 direct-action"
    changed = filter_change("eth0", before, before.replace("program 5", "program 6"))
    (item,) = find_drift([difference("tc_bpf_attach", changed)], [], [])
    assert item["kind"] == "changed"
    assert ("program 6" in item["wanted"], "program 5" in item["found"]) == (True, True)


def test_map_entries_are_named_by_map_and_key() -> None:
    planned = services({22: 1, 8080: 3}, {8080: 1, 9090: 1})
    assert planned.before == "services: 2 entries\n22 -> 1\n8080 -> 3\n"
    assert planned.after == "services: 2 entries\n8080 -> 1\n9090 -> 1\n"
    items = find_drift([difference("bpf_map_sync", planned.changes, f"{PINS}/services")], [], [])
    assert {(item["object"], item["kind"], item["wanted"], item["found"]) for item in items} == {
        ("map services, key 8080", "changed", "1", "3"),
        ("map services, key 9090", "missing", "1", None),
        ("map services, key 22", "extra", None, "1"),
    }


def test_drift_is_complete_where_the_diff_is_bounded() -> None:
    planned = services({}, dict.fromkeys(range(3 * DIFF_LINES), 1))
    assert planned.after.count(" -> ") == DIFF_LINES
    items = find_drift([difference("bpf_map_sync", planned.changes, f"{PINS}/services")], [], [])
    assert [item["object"] for item in items] == [f"map services, key {key}" for key in range(3 * DIFF_LINES)]


def test_generation_of_an_earlier_release_tells_its_differences_as_text() -> None:
    text = {"before": "services: 2 entries\n22 -> 1\n80 -> 1\n", "after": "services: 2 entries\n80 -> 1\n90 -> 1\n"}
    told = {"module": "bpf_map_sync", "target": f"{PINS}/services", "reason": "differs", "diff": text}
    assert find_drift([told], [], []) == [
        {"kind": "changed", "object": f"{PINS}/services", "wanted": "90 -> 1", "found": "22 -> 1", "owner": None}
    ]


def test_pins_are_named_by_their_paths() -> None:
    changes = (
        Change("map", f"pin {PINS}/flows", None, "map flows: lru_hash"),
        Change("program", f"pin {PINS}/from_uplink", "program from_uplink, tag cd", "program from_uplink, tag ab"),
    )
    items = find_drift([difference("bpf_object", changes, PINS)], [], [])
    assert [(item["object"], item["kind"]) for item in items] == [
        (f"pin {PINS}/flows", "missing"),
        (f"pin {PINS}/from_uplink", "changed"),
    ]


def plan_mode(control: mode.Control, generation: int | None = None) -> Plan:
    return mode.plan_mode(mode.Wanted("on", generation=generation), mode.Observed(control, now=0), PINS)


def test_mode_and_packages() -> None:
    found = find_drift(
        [
            difference("overlay_mode", plan_mode(mode.Control()).changes),
            difference("overlay_packages", plan_packages(["python3-bpfcc"], set()).changes),
        ],
        [],
        [],
    )
    assert [(item["object"], item["wanted"], item["found"]) for item in found] == [
        ("mode", "mode on", "mode off"),
        ("package python3-bpfcc", "installed", "absent"),
    ]


def test_mode_of_another_generation_has_no_text_of_its_own() -> None:
    planned = plan_mode(mode.Control("on", generation=1), generation=2)
    assert planned.operations
    assert planned.before == planned.after == "mode on\n"
    (item,) = find_drift([difference("overlay_mode", planned.changes)], [], [])
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
    liberal, kept = conntrack.LIBERAL, conntrack.FILE
    seen = conntrack.Observed({liberal: 0}, record={liberal: 0})
    planned = conntrack.plan_present(seen, manage=True)
    found = find_drift([difference("overlay_conntrack", planned.changes)], [], [])
    assert [(item["kind"], item["object"], item["wanted"], item["found"]) for item in found] == [
        ("changed", liberal, "1", "0"),
        ("missing", f"{kept}: {liberal}", "1", None),
    ]
