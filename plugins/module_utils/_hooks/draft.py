# SPDX-License-Identifier: GPL-3.0-or-later
"""A filter plan in the making: the operations so far, and the state that they lead to, object by object. Pure."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.plan import Item
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.traffic import (
    CLSACT,
    DIRECTIONS,
    TCX,
    Filter,
    Hook,
    Link,
    filter_name,
    place_of,
)

from .mechanism import takers_of
from .state import Observed
from .wish import Wanted, Wish


class Draft:
    """A plan in the making: the operations so far, and the state that they lead to."""

    def __init__(self, wish: Wish, seen: Observed) -> None:
        self.wish, self.seen = wish, seen
        self.names = {ifindex: name for name, ifindex in seen.interfaces.items()}
        self.operations: list[Any] = []
        self.removed: list[dict[str, Any]] = []
        self.made: set[int] = set()
        self.unmade: set[int] = set()
        self.filters: dict[Hook, list[Filter]] = {}
        self.links: dict[Hook, list[Link]] = {}
        self.revisions = dict(seen.revisions)
        self.settled: dict[str, int] = {}
        """Pin -> priority of the TCX links that are where this plan wants them."""
        for filter_ in _without_heads(seen.filters):
            self.filters.setdefault(filter_.hook, []).append(filter_)
        for link in seen.links:
            self.links.setdefault(link.hook, []).append(link)
        # (hook, program name) of everything that the user's list names, on interfaces that exist.
        self.named = {
            ((seen.interfaces[name], attachment.direction), os.path.basename(attachment.program))
            for attachment in wish.attachments
            for name in attachment.matches(seen.interfaces)
        }
        hooks = {hook for hook, _program in self.named}
        self.scope = (
            {(ifindex, direction) for ifindex in self.names for direction in DIRECTIONS} if wish.purge else hooks
        )
        self.before = self.items()
        self.leftovers: list[Item] = []

    def items(self) -> list[Item]:
        """The state so far: each object of ours on the hooks that this task is about."""
        items: set[Item] = set()
        for hook in self.scope:
            name, direction = self._name(hook[0]), hook[1]
            items.update(_filter(name, direction, item) for item in self.filters.get(hook, []) if self.wish.owns(item))
            links = self.links.get(hook, [])
            for number, link in enumerate(links):
                if link.pin:
                    behind = sum(not other.pin and not other.neighbour for other in links[number:])
                    items.add(_link(name, direction, filter_name(self.wish.owner, link.program), link, behind))
        recorded = {ifindex for ifindex, _interface in self.seen.records if self._is_clsact(ifindex)}
        for ifindex in {ifindex for ifindex, _direction in self.scope} & (recorded | self.made) - self.unmade:
            name = self._name(ifindex)
            items.add(Item("qdisc", f"qdisc {CLSACT} on {name}", CLSACT, f"{name} qdisc "))
        return sorted(items, key=lambda item: item.label + item.text)

    def overtaken(self, wanted: list[Wanted]) -> Iterator[str]:
        """A sentence about what may take packets and runs behind ours: what ours redirect never gets there."""
        told = []
        for item in wanted:
            here = self.filters.get(item.hook, [])
            if item.mechanism == CLSACT:
                name = filter_name(self.wish.owner, item.program.name)
                places = [(other.name, other.priority, other.handle) for other in here]
                at = places.index((name, item.priority, item.handle))
                here = [other for number, other in enumerate(here) if (other.priority, number) > (item.priority, at)]
            behind = takers_of((other for other in here if not self.wish.owns(other)), self.seen)
            told += [f"{item.interface} {item.direction} {label}" for label in behind]
        if told:
            more = f" and {len(told) - 3} more" if told[3:] else ""
            yield (
                f"Filters of somebody else run behind ours and do not see what ours take: {', '.join(told[:3])}{more}. "
                "With mechanism auto or clsact and a higher priority ours run last."
            )

    def _name(self, ifindex: int) -> str:
        return self.names.get(ifindex, f"if{ifindex}")

    def _note_removed(self, hook: Hook, program: str, mechanism: str, priority: Any = None, handle: Any = None) -> None:
        self.removed.append(
            {
                "interface": self._name(hook[0]),
                "direction": hook[1],
                "program": program,
                "priority": priority,
                "handle": handle,
                "mechanism": mechanism,
            }
        )

    def _is_clsact(self, ifindex: int) -> bool:
        qdisc = self.seen.qdiscs.get(ifindex)
        return ifindex in self.made or (qdisc is not None and qdisc.kind == CLSACT)


def _filter(interface: str, direction: str, item: Filter) -> Item:
    program = _program_text(item.program_id, item.tag)
    return Item(
        "filter",
        place_of(interface, direction, item.priority, item.handle, item.protocol),
        f"{item.name} {program}{' direct-action' if item.direct_action else ''}",
        f"{interface} {direction} priority {item.priority} handle {item.handle:#x} protocol {item.protocol:#06x} ",
    )


def _link(interface: str, direction: str, name: str, link: Link, behind: int) -> Item:
    """``behind``: how many links of somebody else run after it."""
    after = f", before {behind} of somebody else" if behind else ""
    return Item(
        "TCX link",
        f"TCX link on {interface} {direction}, {name}",
        f"{name} {_program_text(link.program_id)}{after}",
        f"{interface} {direction} {TCX} ",
    )


def _program_text(program_id: int | None, tag: str = "") -> str:
    if not program_id:
        return "program not pinned yet"
    return f"program {program_id}" + (f" tag {tag}" if tag else "")


def _without_heads(filters: Iterable[Filter]) -> list[Filter]:
    """Drop the entries that stand for a priority's list as such; one whose list is empty stays: it is somebody's."""
    filters = list(filters)
    filled = {(item.hook, item.chain, item.priority) for item in filters if item.handle}
    return [item for item in filters if item.handle or (item.hook, item.chain, item.priority) not in filled]
