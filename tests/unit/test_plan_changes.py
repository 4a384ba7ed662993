# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan tells its changes object by object, and the diff for people follows from them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.ebpf.overlay.plugins.module_utils._core.plan import Change, Item, Plan, compare

states = st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from("12"))


def items(state: dict[str, str]) -> list[Item]:
    return [Item("thing", name, text, f"{name}: ") for name, text in sorted(state.items())]


def lines(state: dict[str, str]) -> str:
    return "".join(f"{item.label}{item.text}\n" for item in items(state))


@given(states, states)
def test_diff_of_two_states_is_both_states_in_their_order(before: dict[str, str], after: dict[str, str]) -> None:
    plan = Plan(changes=compare(items(before), items(after)))
    assert plan.diff == {"before": lines(before), "after": lines(after)}


@given(states, states)
def test_changes_are_all_objects_of_both_states(before: dict[str, str], after: dict[str, str]) -> None:
    changes = compare(items(before), items(after))
    assert {change.object: (change.before, change.after) for change in changes} == {
        name: (before.get(name), after.get(name)) for name in {*before, *after}
    }
    assert {change.object for change in changes if change.differs} == {
        name for name in {*before, *after} if before.get(name) != after.get(name)
    }


def test_two_objects_of_one_name_are_two_changes() -> None:
    """What a run that was killed left: two links of one program on one hook."""
    old, new = Item("link", "one", "program 1"), Item("link", "one", "program 2")
    assert compare([old, new], [new]) == (
        Change("link", "one", "program 1", "program 2"),
        Change("link", "one", "program 2", None),
    )


@given(states, states)
def test_states_in_other_orders_lose_no_line(before: dict[str, str], after: dict[str, str]) -> None:
    """A file that somebody wrote keeps its own order of lines."""
    plan = Plan(changes=compare(reversed(items(before)), items(after)))
    assert sorted(plan.before.splitlines()) == lines(before).splitlines()
    assert plan.after == lines(after)
