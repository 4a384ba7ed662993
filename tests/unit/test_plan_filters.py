# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter plan, applied to a small model of the kernel's tables."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from unit.filter_model import INTERFACES, OWNER, Kernel, situations

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.plan import Plan
from ansible_collections.ebpf.overlay.plugins.module_utils._hooks import operations as do
from ansible_collections.ebpf.overlay.plugins.module_utils._hooks.plan import plan_filters
from ansible_collections.ebpf.overlay.plugins.module_utils._hooks.wish import Wish
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.traffic import filter_name, owner_of, program_of


def planned(wish: Wish, kernel: Kernel) -> Plan | None:
    """None for a wish that is refused."""
    try:
        plan = plan_filters(wish, kernel.look())
    except OverlayError:
        event("refused")
        return None
    event(f"{min(len(plan.operations), 6)} operations")
    return plan


def bridgeless(kernel: Kernel, hook: tuple[int, str]) -> bool:
    """Whether no filter can run a program while its TCX link is moved."""
    qdisc = kernel.qdiscs.get(hook[0])
    kinds = [f for f in kernel.filters if f.hook == hook and (owner_of(f.name) != OWNER or f.kind != "bpf")]
    return bool(kinds) or (qdisc is not None and not qdisc.serves(hook[1]))


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
    kept = [key for key in wanted if kernel.attached(key[:2], key[2]) and not bridgeless(kernel, key[:2])]
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
            here = [other for other in kernel.links if other.hook == key[:2]]
            assert all(other.pin or other.neighbour for other in here[here.index(link) :]), "ours run last"
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
