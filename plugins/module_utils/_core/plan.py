# SPDX-License-Identifier: GPL-3.0-or-later
"""What every plan has in common. Pure: no kernel, no clock, no files."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Callable, Union

DIFF_LINES = 100


@dataclass(frozen=True)
class Item:
    """One object in one state.

    ``kind``: what it is (filter, map, sysctl). ``object``: its name for people, which tells it from all others.
    ``text``: what is told of it. ``label``: what stands before the text in a line of a diff.
    """

    kind: str
    object: str
    text: str
    label: str = ""


@dataclass(frozen=True)
class Change:
    """One object before and after a plan: ``text`` of :class:`Item`, None where the object is not there.

    Both are equal where the plan leaves the object as it is: a diff shows it, a report leaves it out.
    """

    kind: str
    object: str
    before: str | None
    after: str | None
    label: str = ""

    @property
    def differs(self) -> bool:
        return self.before != self.after


@dataclass(frozen=True)
class ManyChanges:
    """Changes that are made as they are read. The diff shows ``heading`` and the first of them, a report all.

    ``make``: all of them, in order. ``added``, ``changed``, ``removed``: how many they are.
    """

    heading: Change
    make: Callable[[], Iterator[Change]]
    added: int
    changed: int
    removed: int

    def __iter__(self) -> Iterator[Change]:
        return self.make()

    def __len__(self) -> int:
        return self.added + self.changed + self.removed


Changes = Union[Collection[Change], ManyChanges]


@dataclass(frozen=True)
class Plan:
    """An ordered list of operations that leads from the observed state to the desired one.

    ``operations``: frozen dataclasses, in the order in which they must be applied; empty: nothing is to be done.
    ``changes``: the objects concerned, before and after. For programs; people read the diff that follows from them.
    ``unmet``: what must hold before the operations can be applied and does not, each a full sentence with advice.
    A real run stops at it before its first change; a dry run warns, since an earlier task may be about to provide it.
    ``warnings``: full sentences that never stop a run.
    ``result``: return values that follow from the plan alone, so that a dry run and a real run return the same.
    """

    operations: tuple[Any, ...] = ()
    changes: Changes = ()
    unmet: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def before(self) -> str:
        return self.diff["before"]

    @property
    def after(self) -> str:
        return self.diff["after"]

    @property
    def diff(self) -> dict[str, str]:
        """The state before and after in text, one line per object, for people (``--diff``)."""
        shown, rest = list(self.changes), ""
        if isinstance(self.changes, ManyChanges):
            shown, rest = _bounded(self.changes)
        before = [f"{change.label}{change.before}\n" for change in shown if change.before is not None]
        after = [f"{change.label}{change.after}\n" for change in shown if change.after is not None]
        return {"before": "".join(before), "after": "".join(after) + rest}


def _bounded(many: ManyChanges) -> tuple[list[Change], str]:
    """The changes that the diff shows, and the line about the others."""
    more = len(many) - DIFF_LINES
    counts = f"{many.added} added, {many.changed} changed, {many.removed} removed"
    rest = f"… and {more} more; in all {counts}\n" if more > 0 else ""
    return [many.heading, *islice(many, DIFF_LINES)], rest


def compare(before: Iterable[Item], after: Iterable[Item]) -> tuple[Change, ...]:
    """Two states -> their objects, in the order of ``after``; one that is gone stands where it stood in ``before``."""
    was, becomes = _by_object(before), _by_object(after)
    order = list(was)
    found: dict[tuple[str, int], Change] = {}
    at = 0
    for key, item in becomes.items():
        while key in was and at < len(order) and (order[at] in found or order[at] not in becomes):
            found.setdefault(order[at], _change(was[order[at]], None))
            at += 1
        found[key] = _change(was.get(key), item)
    for key in order[at:]:
        found.setdefault(key, _change(was[key], None))
    return tuple(found.values())


def _by_object(items: Iterable[Item]) -> dict[tuple[str, int], Item]:
    """By name, and a number where somebody made two of that name."""
    found: dict[tuple[str, int], Item] = {}
    counts: dict[str, int] = {}
    for item in items:
        counts[item.object] = number = counts.get(item.object, 0) + 1
        found[item.object, number] = item
    return found


def _change(before: Item | None, after: Item | None) -> Change:
    item = after or before
    if item is None:
        raise AssertionError("an object is there before or after")
    return Change(item.kind, item.object, before.text if before else None, after.text if after else None, item.label)
