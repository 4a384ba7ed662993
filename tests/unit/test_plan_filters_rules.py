# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter plan, one rule in each test."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from unit.filter_model import INTERFACES, PROGRAMS, Kernel

from ansible_collections.ebpf.overlay.plugins.module_utils._attachments import Attachment, Wish
from ansible_collections.ebpf.overlay.plugins.module_utils._errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._plan_filters import plan_filters
from ansible_collections.ebpf.overlay.plugins.module_utils._tc_state import (
    EGRESS,
    INGRESS,
    Filter,
    Link,
    Observed,
    Program,
    Qdisc,
)


def seen(**more: Any) -> Observed:
    return replace(Observed(interfaces=dict(INTERFACES), programs=PROGRAMS), **more)


def wish_for(*entries: tuple[Any, ...], **more: Any) -> Wish:
    return replace(Wish(tuple(Attachment(*entry) for entry in entries)), **more)


CLSACT_ON_ETH0 = {13: Qdisc(13, "clsact")}


def kinds(operations: tuple[Any, ...]) -> list[str]:
    return [type(op).__name__ for op in operations]


def test_first_attachment_notes_the_qdisc_before_it_makes_it() -> None:
    plan = plan_filters(wish_for(("eth0", INGRESS, "/pins/a")), seen())
    assert kinds(plan.operations) == ["RecordQdisc", "AddClsact", "AddFilter"]
    assert plan.result["attachments"][0]["qdisc_created"] is True


def test_a_missing_pin_predicts_the_same_interfaces_and_stands_against_a_real_run() -> None:
    wish = wish_for(("cali*", INGRESS, "/pins/new"), ("eth0", INGRESS, "/pins/a"))
    plan = plan_filters(wish, seen(no_filters="pyroute2 is missing."))
    assert [entry["interface"] for entry in plan.result["attachments"]] == ["cali1", "eth0"]
    assert kinds(plan.operations).count("AddFilter") == 2
    assert len(plan.unmet) == 2
    assert "/pins/new" in plan.unmet[0]


@pytest.mark.parametrize("mechanism", ["clsact", "tcx"])
def test_a_program_that_will_be_built_anew_changes_its_filters(mechanism: str) -> None:
    """What is pinned now is not what an upgrade attaches; only a dry run meets such a program."""
    wish = wish_for(("eth0", INGRESS, "/pins/a"), ("eth0", EGRESS, "/pins/b"), mechanism=mechanism)
    kernel = Kernel(wish)
    for operation in plan_filters(wish, kernel.look()).operations:
        kernel.apply(operation)
    assert not plan_filters(wish, kernel.look()).operations
    plan = plan_filters(replace(wish, rebuilt=(Program("/pins//a", None, "new"),)), kernel.look())
    assert kinds(plan.operations) == ["ReplaceFilter" if mechanism == "clsact" else "UpdateLink"]
    assert [(entry["program_id"], entry["tag"]) for entry in plan.result["attachments"]] == [
        (None, "new"), (21, "tag21"),
    ]  # fmt: skip
    assert plan.before != plan.after
    assert plan.unmet == ("The program for /pins/a is still to be built.",)


def test_what_is_missing_does_not_matter_when_nothing_is_to_be_done() -> None:
    assert plan_filters(wish_for(purge=True), seen(no_filters="x", no_links="y")).unmet == ()


def test_moving_adds_before_it_deletes() -> None:
    old = Filter(13, INGRESS, 5, 1, name="ebpf.overlay:a", program_id=20, tag="tag20", direct_action=True)
    plan = plan_filters(wish_for(("eth0", INGRESS, "/pins/a", 7)), seen(qdiscs=CLSACT_ON_ETH0, filters=(old,)))
    assert kinds(plan.operations) == ["AddFilter", "DeleteFilter"]
    assert (plan.operations[1].priority, plan.operations[1].handle) == (5, 1)


def test_programs_that_swap_their_places_stay_attached() -> None:
    a = Filter(13, INGRESS, 1, 1, name="ebpf.overlay:a", program_id=20, tag="tag20", direct_action=True)
    b = replace(a, priority=2, name="ebpf.overlay:b", program_id=21, tag="tag21")
    plan = plan_filters(
        wish_for(("eth0", INGRESS, "/pins/a", 2), ("eth0", INGRESS, "/pins/b", 1)),
        seen(qdiscs=CLSACT_ON_ETH0, filters=(a, b)),
    )
    assert kinds(plan.operations) == ["AddFilter", "ReplaceFilter", "ReplaceFilter", "DeleteFilter"]


@pytest.mark.parametrize(
    "wrong",
    [{"program_id": 9}, {"tag": "other"}, {"direct_action": False}, {"name": "ebpf.overlay:b"}, {"has_actions": True}],
)
def test_every_part_of_the_identity_counts(wrong: dict[str, Any]) -> None:
    right = Filter(13, INGRESS, 1, 1, name="ebpf.overlay:a", program_id=20, tag="tag20", direct_action=True)
    wish = wish_for(("eth0", INGRESS, "/pins/a"))
    assert plan_filters(wish, seen(qdiscs=CLSACT_ON_ETH0, filters=(right,))).operations == ()
    plan = plan_filters(wish, seen(qdiscs=CLSACT_ON_ETH0, filters=(replace(right, **wrong),)))
    assert kinds(plan.operations) == ["ReplaceFilter"]


@pytest.mark.parametrize(
    "foreign",
    [
        Filter(13, INGRESS, 1, 1, name="acme:a", program_id=5),
        Filter(13, INGRESS, 1, 1, name="a", program_id=5),
        Filter(13, INGRESS, 1, 0x800, kind="u32"),
        Filter(13, INGRESS, 1, 9, protocol=0x800, name="acme:a", program_id=5),
        Filter(13, INGRESS, 1, 0, kind="flower"),
    ],
)
def test_a_place_that_somebody_else_has_is_refused(foreign: Filter) -> None:
    with pytest.raises(OverlayError, match="somebody else"):
        plan_filters(wish_for(("eth0", INGRESS, "/pins/a")), seen(qdiscs=CLSACT_ON_ETH0, filters=(foreign,)))


def test_two_attachments_of_one_place_or_one_program_in_two_places_are_refused() -> None:
    for other in (("eth0", INGRESS, "/pins/b"), ("eth*", INGRESS, "/pins/a", 2), ("eth0", INGRESS, "/other/a")):
        with pytest.raises(OverlayError, match="another entry"):
            plan_filters(wish_for(("eth0", INGRESS, "/pins/a"), other), seen())


def test_an_interface_that_does_not_exist_is_an_error_and_a_glob_without_match_a_warning() -> None:
    with pytest.raises(OverlayError) as caught:
        plan_filters(wish_for(("eth9", INGRESS, "/pins/a")), seen())
    assert caught.value.parts()["errno"] == "ENODEV"
    plan = plan_filters(wish_for(("tap*", INGRESS, "/pins/a")), seen())
    assert plan.operations == ()
    assert "tap*" in plan.warnings[0]
    assert plan_filters(wish_for(("eth9", INGRESS, "/pins/a"), present=False), seen()).operations == ()


def test_the_reason_for_the_mechanism_is_told() -> None:
    def chosen(observed: Observed, direction: str = INGRESS, **more: Any) -> tuple[str, str]:
        entry = plan_filters(wish_for(("eth0", direction, "/pins/a"), **more), observed).result["attachments"][0]
        return entry["mechanism"], entry["mechanism_reason"]

    ingress = {13: Qdisc(13, "ingress")}
    foreign = (Link(13, INGRESS, 5, 99),)
    ours = (Link(13, INGRESS, 5, 20, "/links/x", "a"),)
    assert chosen(seen(), mechanism="clsact") == ("clsact", "asked for")
    assert chosen(seen()) == ("clsact", "this kernel has no TCX")
    assert chosen(seen(tcx=True))[0] == "clsact"
    assert chosen(seen(tcx=True, qdiscs=ingress))[0] == "clsact"
    assert chosen(seen(tcx=True, qdiscs=ingress), EGRESS)[0] == "tcx"
    assert "somebody else" in chosen(seen(tcx=True, links=foreign))[1]
    assert "already" in chosen(seen(tcx=True, links=ours))[1]
    with pytest.raises(OverlayError, match=r"6\.6"):
        chosen(seen(), mechanism="tcx")
    with pytest.raises(OverlayError, match="ingress qdisc"):
        chosen(seen(qdiscs=ingress), EGRESS)
    with pytest.raises(OverlayError, match="block 7"):
        chosen(seen(qdiscs={13: Qdisc(13, "clsact", 7)}))


def test_a_qdisc_that_somebody_removed_is_made_again_and_told() -> None:
    plan = plan_filters(wish_for(("eth0", INGRESS, "/pins/a")), seen(records=frozenset({(13, "eth0")})))
    assert kinds(plan.operations) == ["AddClsact", "AddFilter"]
    assert "somebody removed it" in plan.warnings[0]


@pytest.mark.parametrize(
    ("more", "part"),
    [
        ({"owner": "a:b"}, "owner"),
        ({"owner": ""}, "owner"),
        ({"attachments": (Attachment("eth0", INGRESS, "/pins/a", 0),)}, "priority 0"),
        ({"attachments": (Attachment("eth0", INGRESS, "/pins/a", 65536),)}, "priority 65536"),
        ({"attachments": (Attachment("eth0", INGRESS, "/pins/a", 1, 0),)}, "handle 0"),
        ({"attachments": (Attachment("eth0", INGRESS, "/pins/"),)}, "base name"),
    ],
)
def test_values_that_no_kernel_takes_are_refused(more: dict[str, Any], part: str) -> None:
    with pytest.raises(OverlayError, match=part):
        Wish(**more).check()
