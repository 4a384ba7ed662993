# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter plan, applied to a small model of the kernel's tables."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from ansible_collections.ebpf.overlay.plugins.module_utils import _filter_operations as do
from ansible_collections.ebpf.overlay.plugins.module_utils._attachments import Attachment, Wish
from ansible_collections.ebpf.overlay.plugins.module_utils._errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._plan import Plan
from ansible_collections.ebpf.overlay.plugins.module_utils._plan_filters import plan_filters
from ansible_collections.ebpf.overlay.plugins.module_utils._tc_state import (
    EGRESS,
    INGRESS,
    Filter,
    Hook,
    Link,
    Observed,
    Program,
    Qdisc,
    escape,
    filter_name,
    link_pin_name,
    owner_of,
    program_of,
    program_of_link_pin,
    unescape,
)

OWNER = "ebpf.overlay"
INTERFACES = {"cali1": 11, "eth0": 13}
PROGRAMS = {f"/pins/{name}": Program(f"/pins/{name}", number, f"tag{number}") for number, name in enumerate("abc", 20)}


@dataclass
class Kernel:
    """The kernel's tables and their rules: what it refuses raises AssertionError, so does touching what is foreign."""

    wish: Wish
    qdiscs: dict[int, Qdisc] = field(default_factory=dict)
    filters: list[Filter] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    revisions: dict[Hook, int] = field(default_factory=dict)
    records: set[tuple[int, str]] = field(default_factory=set)
    dead_pins: set[str] = field(default_factory=set)
    empty_directories: set[str] = field(default_factory=set)
    interfaces: dict[str, int] = field(default_factory=lambda: dict(INTERFACES))
    tcx: bool = True
    next_link: int = 1000

    def look(self) -> Observed:
        heads = []
        for item in self.filters:
            head = Filter(item.ifindex, item.direction, item.priority, 0, item.protocol, item.chain, item.kind)
            if head not in heads:
                heads.append(head)
        return Observed(
            interfaces=dict(self.interfaces),
            qdiscs=dict(self.qdiscs),
            filters=tuple(heads + self.filters),
            links=tuple(self.links) if self.tcx else (),
            complete=frozenset(self.qdiscs),
            tcx=self.tcx,
            revisions=dict(self.revisions),
            records=frozenset(self.records),
            dead_pins=tuple(sorted(self.dead_pins)),
            empty_directories=tuple(sorted(self.empty_directories)),
            programs=PROGRAMS,
        )

    def slot(self, op: Any) -> list[Filter]:
        return [
            f
            for f in self.filters
            if f.hook == op.hook and f.chain == 0 and (f.priority, f.handle) == (op.priority, op.handle)
        ]

    def apply(self, op: Any) -> None:
        if isinstance(op, do.RecordQdisc):
            self.records.add((op.ifindex, op.interface))
        elif isinstance(op, do.ForgetQdisc):
            assert (op.ifindex, op.interface) in self.records
            self.records.discard((op.ifindex, op.interface))
        elif isinstance(op, do.AddClsact):
            assert op.ifindex not in self.qdiscs, "EEXIST"
            assert (op.ifindex, op.interface) in self.records, "a kill now would leave a qdisc that nobody removes"
            self.qdiscs[op.ifindex] = Qdisc(op.ifindex, "clsact")
        elif isinstance(op, do.DeleteClsact):
            assert (op.ifindex, op.interface) in self.records, "not ours"
            assert not [f for f in self.filters if f.ifindex == op.ifindex], "somebody uses it"
            del self.qdiscs[op.ifindex]
        elif isinstance(op, (do.AddFilter, do.ReplaceFilter)):
            assert op.ifindex in self.qdiscs, "EINVAL: no qdisc"
            assert self.qdiscs[op.ifindex].serves(op.direction)
            same = [f for f in self.filters if f.hook == op.hook and f.chain == 0 and f.priority == op.priority]
            assert all((f.kind, f.protocol) == ("bpf", 3) for f in same), "EINVAL: the priority holds another kind"
            new = Filter(
                *op.hook,
                op.priority,
                op.handle,
                name=op.name,
                program_id=op.program.id,
                tag=op.program.tag,
                direct_action=True,
            )
            if isinstance(op, do.AddFilter):
                assert not self.slot(op), "EEXIST"
                self.filters.insert(0, new)
            else:
                (old,) = self.slot(op)
                assert owner_of(old.name) == self.wish.owner, "foreign"
                self.filters[self.filters.index(old)] = new
        elif isinstance(op, do.DeleteFilter):
            (old,) = self.slot(op)
            assert old.protocol == op.protocol
            assert owner_of(old.name) == self.wish.owner, "foreign"
            self.filters.remove(old)
        else:
            self.apply_to_links(op)

    def apply_to_links(self, op: Any) -> None:
        if isinstance(op, do.RemovePin):
            self.dead_pins.remove(op.pin)
        elif isinstance(op, do.RemoveDirectory):
            self.empty_directories.remove(op.path)
        elif isinstance(op, do.CreateLink):
            assert self.tcx
            assert op.revision == self.revisions.get(op.hook, 1), "ESTALE"
            assert op.program.id not in [link.program_id for link in self.links if link.hook == op.hook], "EEXIST"
            assert op.pin not in [link.pin for link in self.links] + list(self.dead_pins), "EEXIST"
            self.next_link += 1
            self.links.insert(
                0, Link(*op.hook, self.next_link, op.program.id or 0, op.pin, program_of_link_pin(op.pin))
            )
            self.revisions[op.hook] = self.revisions.get(op.hook, 1) + 1
        else:
            (old,) = [link for link in self.links if link.pin == op.pin]
            if isinstance(op, do.UpdateLink):
                assert old.program_id == op.expected_program_id, "EPERM"
                self.links[self.links.index(old)] = replace(old, program_id=op.program.id or 0)
            else:
                self.links.remove(old)
            self.revisions[op.hook] = self.revisions.get(op.hook, 1) + 1

    def attached(self, hook: Hook, program: str) -> bool:
        """For all packets; a filter for one protocol only cannot be changed into one for all without taking it off."""
        named = [
            f
            for f in self.filters
            if f.hook == hook and f.protocol == 3 and f.name == filter_name(self.wish.owner, program)
        ]
        return bool(named) or any(link.hook == hook and link.pin and link.program == program for link in self.links)

    def foreign(self) -> tuple[Any, ...]:
        return (
            [f for f in self.filters if owner_of(f.name) != self.wish.owner or f.chain],
            [link for link in self.links if not link.pin],
            {i: q for i, q in self.qdiscs.items() if i not in {index for index, _name in self.records}},
        )


@st.composite
def kernels(draw: Any, wish: Wish) -> Kernel:
    """Nothing, ours, half ours, stale, foreign, broken."""
    kernel = Kernel(wish, tcx=draw(st.booleans()))
    for name, ifindex in INTERFACES.items():
        kind = draw(st.sampled_from([None, "clsact", "clsact", "ingress"]))
        if kind:
            kernel.qdiscs[ifindex] = Qdisc(ifindex, kind)
        if draw(st.booleans()) and kind != "ingress":
            kernel.records.add((ifindex, name))
        for direction in (INGRESS, EGRESS):
            hook = (ifindex, direction)
            if kind and kernel.qdiscs[ifindex].serves(direction):
                for priority in (1, 2):
                    list_kind, protocol = draw(st.sampled_from([("bpf", 3)] * 5 + [("bpf", 0x800), ("u32", 3)]))
                    for handle in draw(st.sets(st.sampled_from([1, 2]))):
                        name_ = draw(
                            st.sampled_from([f"{OWNER}:a", f"{OWNER}:b", f"{OWNER}:c", "acme:a", "x.o:[a]", ""])
                        )
                        program = draw(st.sampled_from([20, 21, 22, 77]))
                        kernel.filters.append(
                            Filter(
                                *hook,
                                priority,
                                handle,
                                protocol,
                                0,
                                list_kind,
                                name_ if list_kind == "bpf" else "",
                                program,
                                f"tag{program}",
                                draw(st.booleans()),
                            )
                        )
            if kernel.tcx:
                kernel.revisions[hook] = draw(st.integers(1, 9))
                programs = iter(draw(st.sampled_from([(20, 21), (21, 20), (77, 20), (22, 77), (77, 78)])))
                for program in draw(st.sets(st.sampled_from(["a", "b", "foreign"]), max_size=2)):
                    kernel.next_link += 1
                    pin = os.path.join(wish.links, link_pin_name(wish.namespace, ifindex, name, direction, program))
                    ours = () if program == "foreign" else (pin, program)
                    kernel.links.append(Link(*hook, kernel.next_link, next(programs), *ours))
    if draw(st.booleans()):
        kernel.records.add((99, "gone"))
    if kernel.tcx and draw(st.booleans()):
        kernel.dead_pins.add(os.path.join(wish.links, "dead"))
    if draw(st.booleans()):
        kernel.empty_directories.add("/run/ebpf-overlay")
    return kernel


attachments = st.builds(
    Attachment,
    st.sampled_from(["eth0", "cali1", "cali*", "nothing*"]),
    st.sampled_from([INGRESS, EGRESS]),
    st.sampled_from(sorted(PROGRAMS)),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2]),
)
wishes = st.builds(
    Wish,
    st.lists(attachments, max_size=4).map(tuple),
    st.just(OWNER),
    st.booleans(),
    st.sampled_from(["auto", "clsact", "tcx"]),
    st.sampled_from([True, True, True, False]),
)
situations = wishes.flatmap(lambda wish: st.tuples(st.just(wish), kernels(wish)))


def planned(wish: Wish, kernel: Kernel) -> Plan | None:
    """None for a wish that is refused."""
    try:
        plan = plan_filters(wish, kernel.look())
    except OverlayError:
        event("refused")
        return None
    event(f"{min(len(plan.operations), 6)} operations")
    return plan


@settings(
    max_examples=int(os.environ.get("OVERLAY_EXAMPLES", "200")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(situations)
def test_applying_a_plan_reaches_the_wish_and_touches_nothing_foreign(situation: tuple[Wish, Kernel]) -> None:
    wish, kernel = situation
    plan = planned(wish, kernel)
    if plan is None:
        return
    foreign = kernel.foreign()
    wanted = {
        (INTERFACES[entry["interface"]], entry["direction"], os.path.basename(entry["program"])): entry
        for entry in plan.result["attachments"]
    }
    kept = [key for key in wanted if kernel.attached(key[:2], key[2])]
    for op in plan.operations:
        kernel.apply(op)
        for key in kept:
            assert kernel.attached(key[:2], key[2]), f"{key} is off its hook after {op}"
    made = {op.ifindex for op in plan.operations if isinstance(op, do.AddClsact)}
    filters, links, qdiscs = kernel.foreign()
    assert (filters, links) == foreign[:2]
    assert {i: q for i, q in qdiscs.items() if i not in made} == foreign[2]

    for key, entry in wanted.items():
        ours = [f for f in kernel.filters if f.hook == key[:2] and f.name == filter_name(OWNER, key[2])]
        linked = [link for link in kernel.links if link.hook == key[:2] and link.pin and link.program == key[2]]
        if entry["mechanism"] == "clsact":
            (right,) = ours
            assert (right.priority, right.handle, right.program_id) == (
                entry["priority"],
                entry["handle"],
                entry["program_id"],
            )
            assert right.direct_action
            assert not linked
        else:
            (link,) = linked
            assert link.program_id == entry["program_id"]
            assert not ours
    if wish.purge or not wish.present:
        named = {
            (INTERFACES[n], a.direction, os.path.basename(a.program))
            for a in wish.attachments
            for n in a.matches(INTERFACES)
        }
        for f in kernel.filters:
            if wish.owns(f):
                key = (*f.hook, program_of(f.name))
                assert key in wanted if wish.purge else key not in named
    assert not kernel.dead_pins
    assert (99, "gone") not in kernel.records

    again = plan_filters(wish, kernel.look())
    assert again.operations == ()
    assert again.before == again.after == plan.after
    assert again.result["removed"] == []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(situations, st.data())
def test_a_run_killed_anywhere_is_finished_by_the_next_one(situation: tuple[Wish, Kernel], data: Any) -> None:
    wish, kernel = situation
    plan = planned(wish, kernel)
    if plan is None:
        return
    for op in plan.operations[: data.draw(st.integers(0, len(plan.operations)))]:
        kernel.apply(op)
    for op in plan_filters(wish, kernel.look()).operations:
        kernel.apply(op)
    final = plan_filters(wish, kernel.look())
    assert final.operations == ()
    assert final.after == plan.after


@given(st.text(min_size=1), st.text(min_size=1))
def test_pin_names_have_no_dots_and_never_collide(one: str, other: str) -> None:
    try:
        os.fsencode(one + other)
    except UnicodeEncodeError:
        return
    assert "." not in escape(one)
    assert "-" not in escape(one)
    assert unescape(escape(one)) == one
    assert (escape(one) == escape(other)) == (one == other)


def test_interface_names_with_dots_do_not_collide() -> None:
    names = {link_pin_name("c1", 7, name, INGRESS, "prog.a") for name in ("eth1.1", "eth11", "eth1_2e1", "eth1-1")}
    assert len(names) == 4
    assert {program_of_link_pin(name) for name in names} == {"prog.a"}


# -- one rule each --------------------------------------------------------------------------------------------------


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
