# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter plan, one rule in each test."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from unit.filter_model import INTERFACES, PROGRAMS, Kernel

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._hooks.plan import plan_filters
from ansible_collections.ebpf.overlay.plugins.module_utils._hooks.state import Observed, Program
from ansible_collections.ebpf.overlay.plugins.module_utils._hooks.wish import Attachment, Wish
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.traffic import (
    EGRESS,
    INGRESS,
    Filter,
    Link,
    Qdisc,
    link_pin_name,
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


def test_a_filter_runs_behind_all_others_unless_somebody_says_otherwise() -> None:
    """The kernel itself gives priorities up to 49152 (tcf_auto_prio)."""
    (entry,) = plan_filters(wish_for(("eth0", INGRESS, "/pins/a")), seen()).result["attachments"]
    assert (entry["priority"], entry["handle"]) == (60000, 1)


def right_filter(**more: Any) -> Filter:
    right = Filter(13, INGRESS, 60000, 1, name="ebpf.overlay:a", program_id=20, tag="tag20", direct_action=True)
    return replace(right, **more)


@pytest.mark.parametrize("left", ["a", "b"])
def test_a_filter_for_another_protocol_that_goes_first_keeps_no_handle(left: str) -> None:
    """Else a run that goes on after a kill would choose another handle than the one that was killed."""
    wish = wish_for(("eth0", INGRESS, "/pins/a"))
    other = right_filter(name=f"ebpf.overlay:{left}", protocol=0x0800)
    plan = plan_filters(wish, seen(qdiscs=CLSACT_ON_ETH0, filters=(other,)))
    assert kinds(plan.operations) == ["DeleteFilter", "AddFilter"]
    assert plan.result["attachments"][0]["handle"] == 1


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
        wish_for(("eth0", INGRESS, "/pins/a", 2, 1), ("eth0", INGRESS, "/pins/b", 1, 1)),
        seen(qdiscs=CLSACT_ON_ETH0, filters=(a, b)),
    )
    assert kinds(plan.operations) == ["AddFilter", "ReplaceFilter", "ReplaceFilter", "DeleteFilter"]
    plan = plan_filters(
        wish_for(("eth0", INGRESS, "/pins/a", 2), ("eth0", INGRESS, "/pins/b", 1)),
        seen(qdiscs=CLSACT_ON_ETH0, filters=(a, b)),
    )
    assert kinds(plan.operations) == ["AddFilter", "AddFilter", "DeleteFilter", "DeleteFilter"]


@pytest.mark.parametrize(
    "wrong",
    [{"program_id": 9}, {"tag": "other"}, {"direct_action": False}, {"name": "ebpf.overlay:b"}, {"has_actions": True}],
)
def test_every_part_of_the_identity_counts(wrong: dict[str, Any]) -> None:
    right = right_filter()
    wish = wish_for(("eth0", INGRESS, "/pins/a", 60000, 1))
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
        plan_filters(wish_for(("eth0", INGRESS, "/pins/a", 1, 1)), seen(qdiscs=CLSACT_ON_ETH0, filters=(foreign,)))


def test_a_handle_that_somebody_else_has_is_left_to_them() -> None:
    theirs = Filter(13, INGRESS, 60000, 1, name="acme:a", program_id=5)
    wish = wish_for(("eth0", INGRESS, "/pins/a"))
    plan = plan_filters(wish, seen(qdiscs=CLSACT_ON_ETH0, filters=(theirs,)))
    assert [(type(op).__name__, op.handle) for op in plan.operations] == [("AddFilter", 2)]
    ours = right_filter(handle=2)
    for filters in ((ours, theirs), (ours,)):  # it stays there when the other has left
        assert plan_filters(wish, seen(qdiscs=CLSACT_ON_ETH0, filters=filters)).operations == ()


def test_foreign_filters_change_neither_plan_nor_place() -> None:
    wish = wish_for(("eth0", INGRESS, "/pins/a"))
    theirs = tuple(Filter(13, INGRESS, number, 1, name="acme:a", program_id=5) for number in (1, 50, 49152))
    alone = plan_filters(wish, seen(qdiscs=CLSACT_ON_ETH0))
    among = plan_filters(wish, seen(qdiscs=CLSACT_ON_ETH0, filters=theirs))
    assert (alone.operations, alone.result, alone.warnings) == (among.operations, among.result, among.warnings)


@pytest.mark.parametrize("place", [{"priority": 60001}, {"handle": 2}])
def test_a_filter_behind_ours_is_told(place: dict[str, Any]) -> None:
    """Within a priority the kernel puts the newest first, so a handle says nothing."""
    theirs = Filter(13, INGRESS, 60000, 9, name="acme:a", program_id=5)
    wish = wish_for(("eth0", INGRESS, "/pins/a"))
    (told,) = plan_filters(
        wish, seen(qdiscs=CLSACT_ON_ETH0, filters=(right_filter(), replace(theirs, **place)))
    ).warnings
    assert "run behind ours" in told
    assert "acme:a" in told
    assert plan_filters(wish, seen(qdiscs=CLSACT_ON_ETH0, filters=(theirs, right_filter()))).warnings == ()
    harmless = seen(
        qdiscs=CLSACT_ON_ETH0, filters=(right_filter(), replace(theirs, **place, direct_action=True)),
        codes={5: frozenset({-1})},
    )  # fmt: skip
    assert plan_filters(wish, harmless).warnings == ()


def linked(number: int, program: str = "a", **more: Any) -> Link:
    return Link(13, INGRESS, number, {"a": 20, "b": 21}[program], f"/links/{number}", program, **more)


THEIRS = Link(13, INGRESS, 90, 99)
NEIGHBOURS = Link(13, INGRESS, 91, 98, neighbour=True)


def test_a_link_behind_which_somebody_else_attached_goes_to_the_tail() -> None:
    """The kernel takes a program once per hook, so a filter runs it while its link is moved."""
    wish = wish_for(("eth0", INGRESS, "/pins/a"))
    plan = plan_filters(wish, seen(tcx=True, links=(linked(1), THEIRS), revisions={(13, INGRESS): 7}))
    assert kinds(plan.operations) == [
        "RecordQdisc", "AddClsact", "AddFilter", "RemoveLink", "CreateLink", "DeleteFilter", "DeleteClsact",
        "ForgetQdisc",
    ]  # fmt: skip
    assert plan.operations[4].revision == 8
    assert "before 1 of somebody else" in plan.before
    assert "somebody else" not in plan.after
    for links in ((THEIRS, linked(1)), (linked(1), NEIGHBOURS), (linked(1), linked(2, "b"))):
        assert plan_filters(wish, seen(tcx=True, links=links)).operations == ()


def test_a_new_program_of_a_link_that_is_not_last_is_attached_before_the_old_one_goes() -> None:
    wish = wish_for(("eth0", INGRESS, "/pins/a"))
    old = replace(linked(1), program_id=7)
    plan = plan_filters(wish, seen(tcx=True, links=(old, THEIRS)))
    assert kinds(plan.operations) == ["CreateLink", "RemoveLink"]
    assert plan.operations[0].pin != old.pin


def test_two_links_that_a_killed_run_left_make_room_for_one_at_the_tail() -> None:
    """Both names of pins are taken, and neither link is last."""
    wish = wish_for(("eth0", INGRESS, "/pins/a"))
    names = [link_pin_name("0", 13, "eth0", INGRESS, "a", second) for second in (False, True)]
    left = [Link(13, INGRESS, number, number, f"{wish.links}/{name}", "a") for number, name in enumerate(names, 7)]
    plan = plan_filters(wish, seen(tcx=True, links=(*left, THEIRS)))
    assert kinds(plan.operations) == ["RemoveLink", "CreateLink", "RemoveLink"]
    assert [op.pin for op in plan.operations] == [left[1].pin, left[1].pin, left[0].pin]


def test_links_move_in_the_order_of_their_priorities() -> None:
    wish = wish_for(("eth0", INGRESS, "/pins/a", 1), ("eth0", INGRESS, "/pins/b", 2))
    links = (linked(1), THEIRS, linked(2, "b"))
    kernel = Kernel(wish, links=list(links))
    for operation in plan_filters(wish, kernel.look()).operations:
        kernel.apply(operation)
    assert [link.program or link.id for link in kernel.links] == [90, "a", "b"]


@pytest.mark.parametrize("unable", [{"qdiscs": {13: Qdisc(13, "clsact", 7)}}, {"no_filters": "no pyroute2"}])
def test_where_no_filter_can_stand_in_a_link_is_moved_without(unable: dict[str, Any]) -> None:
    wish = wish_for(("eth0", INGRESS, "/pins/a"), mechanism="tcx")
    plan = plan_filters(wish, seen(tcx=True, links=(linked(1), THEIRS), **unable))
    assert kinds(plan.operations) == ["RemoveLink", "CreateLink"]
    assert plan.unmet == ()


def test_the_move_from_release_1_0_0_attaches_before_it_detaches() -> None:
    """From priority 1 to the last one, to TCX, and back."""
    old = right_filter(priority=1)
    records = frozenset({(13, "eth0")})
    there = {"qdiscs": CLSACT_ON_ETH0, "filters": (old,), "records": records, "complete": frozenset({13})}
    wish = wish_for(("eth0", INGRESS, "/pins/a"))
    assert kinds(plan_filters(wish, seen(**there)).operations) == ["AddFilter", "DeleteFilter"]
    plan = plan_filters(wish, seen(tcx=True, **there))
    assert kinds(plan.operations) == ["CreateLink", "DeleteFilter", "DeleteClsact", "ForgetQdisc"]
    back = plan_filters(replace(wish, mechanism="clsact"), seen(tcx=True, links=(linked(1),)))
    assert kinds(back.operations) == ["RecordQdisc", "AddClsact", "AddFilter", "RemoveLink"]


def test_two_attachments_of_one_place_or_one_program_in_two_places_are_refused() -> None:
    for other in (("eth0", INGRESS, "/pins/b", 5, 1), ("eth*", INGRESS, "/pins/a", 2), ("eth0", INGRESS, "/other/a")):
        with pytest.raises(OverlayError, match="another entry"):
            plan_filters(wish_for(("eth0", INGRESS, "/pins/a", 5, 1), other), seen())


def test_programs_of_one_priority_get_handles_of_their_own() -> None:
    plan = plan_filters(wish_for(("eth0", INGRESS, "/pins/a"), ("eth0", INGRESS, "/pins/b")), seen())
    assert [entry["handle"] for entry in plan.result["attachments"]] == [1, 2]


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
    taker = Filter(13, INGRESS, 1, 1, name="acme:a", program_id=5, direct_action=True)
    assert chosen(seen(), mechanism="clsact") == ("clsact", "asked for")
    assert chosen(seen()) == ("clsact", "this kernel has no TCX")
    assert chosen(seen(tcx=True))[0] == "tcx"
    assert chosen(seen(tcx=True, qdiscs=ingress))[0] == "tcx"
    assert "ingress qdisc" in chosen(seen(tcx=True, qdiscs=ingress), EGRESS)[1]
    assert chosen(seen(tcx=True, links=(THEIRS,)))[0] == "tcx"
    there = seen(tcx=True, qdiscs=CLSACT_ON_ETH0, filters=(taker,), links=(linked(1),))
    assert chosen(there)[0] == "clsact"
    assert "acme:a" in chosen(there)[1]
    assert chosen(there, EGRESS)[0] == "tcx", "the other hook"
    assert chosen(there, mechanism="tcx") == ("tcx", "asked for")
    assert chosen(replace(there, codes={5: frozenset({-1, 3})}))[0] == "tcx"
    assert chosen(replace(there, codes={5: frozenset({-1, 2})}))[0] == "clsact"
    for harmless in ({"kind": "u32", "continues": True}, {"chain": 5}, {"handle": 0}, {"name": "ebpf.overlay:x"}):
        assert chosen(replace(there, filters=(replace(taker, **harmless),)))[0] == "tcx", harmless
    assert chosen(replace(there, filters=(replace(taker, kind="u32"),)))[0] == "clsact"
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
