# SPDX-License-Identifier: GPL-3.0-or-later
"""Observed hooks + wanted attachments -> the operations between them. Pure: no kernel, no clock, no files.

What the order of the operations guarantees on every hook: a program that is wanted and already there is attached at
every moment (it is added at its new place before it goes from the old one; the one exception is told at ``_leave``),
and nothing that belongs to somebody else is ever named.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.plan import Item, Plan, compare
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.traffic import (
    CLSACT,
    DIRECTIONS,
    PROTOCOL_ALL,
    TCX,
    Filter,
    Hook,
    Link,
    filter_name,
    link_pin_name,
    program_of,
)

from . import operations as do
from .draft import Draft
from .mechanism import obstacle
from .state import Observed, Program
from .wish import Wanted, Wish, resolve

LONGEST_NAME = 255  # NAME_MAX


def plan_filters(wish: Wish, seen: Observed) -> Plan:
    """The plan that leads from ``seen`` to ``wish``.

    Raises :class:`OverlayError` for a wish that cannot be met whatever runs before: an interface that does not exist, a
    slot that somebody else has, attachments that exclude each other, a mechanism that cannot work there.
    """
    seen = _once_rebuilt(wish, seen)
    draft = _Planner(wish, seen)
    wanted, warnings = resolve(wish, seen, draft.filters) if wish.present else ([], [])
    draft.clear_leftovers()
    for item in wanted:
        draft.attach(item)
    draft.detach({(*item.hook, item.program.name): item for item in wanted})
    draft.release_qdiscs({item.ifindex for item in wanted if item.mechanism == CLSACT})
    warnings += draft.overtaken(wanted)
    for name, ifindex in sorted({(item.interface, item.ifindex) for item in wanted if item.mechanism == CLSACT}):
        if ifindex not in seen.qdiscs and (ifindex, name) in seen.records:
            warnings.append(
                f"The clsact qdisc of {name} that is recorded as ours is gone, and our filters with it: somebody "
                "removed it, or an earlier run was interrupted. It is made again."
            )
    return Plan(
        operations=tuple(draft.operations),
        changes=compare([*draft.before, *draft.leftovers], draft.items()),
        unmet=tuple(_unmet(draft.operations, wanted, seen)),
        warnings=tuple(warnings),
        result={
            "attachments": [_returned(item, item.ifindex in draft.made) for item in wanted],
            "removed": sorted(draft.removed, key=lambda entry: [str(value) for value in entry.values()]),
        },
    )


def _once_rebuilt(wish: Wish, seen: Observed) -> Observed:
    """What will be pinned when this plan is applied, in place of what is pinned now."""
    rebuilt = {os.path.normpath(program.pin): program for program in wish.rebuilt}
    new = {pin: replace(found, pin=pin) for pin in seen.programs if (found := rebuilt.get(os.path.normpath(pin)))}
    return replace(seen, programs={**seen.programs, **new})


def _unmet(operations: list[Any], wanted: list[Wanted], seen: Observed) -> Iterator[str]:
    """Only what these operations need: a run that has nothing to do needs nothing."""
    for pin in sorted({item.program.pin for item in wanted if item.program.id is None}):
        yield seen.no_pins.get(pin) or f"The program for {pin} is still to be built."
    if seen.no_filters and any(
        isinstance(item, (do.FilterOperation, do.AddClsact, do.DeleteClsact)) for item in operations
    ):
        yield seen.no_filters
    if seen.no_links and any(isinstance(item, do.CreateLink) for item in operations):
        yield seen.no_links


def _returned(item: Wanted, qdisc_created: bool) -> dict[str, Any]:
    clsact = item.mechanism == CLSACT
    return {
        "interface": item.interface,
        "direction": item.direction,
        "program": item.program.pin,
        "program_id": item.program.id,
        "tag": item.program.tag or None,
        "map_ids": list(item.program.map_ids),
        "priority": item.priority if clsact else None,
        "handle": item.handle if clsact else None,
        "mechanism": item.mechanism,
        "mechanism_reason": item.reason,
        "qdisc_created": clsact and qdisc_created,
    }


class _Planner(Draft):
    """The steps of a plan, in their order."""

    # -- attach -----------------------------------------------------------------------------------------------------

    def attach(self, item: Wanted) -> None:
        if item.mechanism == TCX:
            self._attach_link(item)
        else:
            self._attach_filter(item)

    def _attach_filter(self, item: Wanted) -> None:
        interface, ifindex, direction = item.interface, item.ifindex, item.direction
        here = self.filters.setdefault(item.hook, [])
        self._refuse_taken_slot(item, here)
        for wrong in [other for other in here if _same_list(other, item) and not _of_our_kind(other)]:
            self._delete_filter(wrong)
        if ifindex not in self.seen.qdiscs and ifindex not in self.made:
            if (ifindex, interface) not in self.seen.records:
                self.operations.append(do.RecordQdisc(interface, ifindex))
            self.operations.append(do.AddClsact(interface, ifindex, item.required))
            self.made.add(ifindex)
        name = filter_name(self.wish.owner, item.program.name)
        slot = (item.priority, item.handle)
        program = item.program
        new = Filter(ifindex, direction, *slot, name=name, program_id=program.id, tag=program.tag, direct_action=True)
        occupant = next((other for other in here if other.chain == 0 and (other.priority, other.handle) == slot), None)
        if occupant is None:
            self.operations.append(do.AddFilter(interface, ifindex, direction, *slot, name, program, item.required))
            here.insert(0, new)  # cls_bpf_change: list_add_rcu, at the head of its priority
            return
        if program.id is not None and _identity(occupant) == _identity(new):
            return
        self._rescue(occupant, new, item)
        if occupant.name != name:
            self._note_removed(item.hook, program_of(occupant.name), CLSACT, *slot)
        self.operations.append(do.ReplaceFilter(interface, ifindex, direction, *slot, name, program, item.required))
        here[here.index(occupant)] = new

    def _rescue(self, occupant: Filter, new: Filter, item: Wanted) -> None:
        """Before a replacement takes the place of another program of ours that stays wanted on this hook and is
        attached nowhere else, attach that one beside it for the time being (programs that swap their places)."""
        here = self.filters[item.hook]
        stays = (item.hook, program_of(occupant.name)) in self.named and self.wish.present
        if (
            not stays
            or sum(other.name == occupant.name for other in here if _of_our_kind(other)) > 1
            or occupant.name == new.name
        ):
            return
        pins = {os.path.basename(entry.program): entry.program for entry in self.wish.attachments}
        pin = pins[program_of(occupant.name)]
        program = self.seen.programs.get(pin, Program(pin))
        taken = {other.handle for other in here if _same_list(other, item)} | {item.handle}
        handle = next(number for number in range(1, len(taken) + 2) if number not in taken)
        self.operations.append(
            do.AddFilter(item.interface, *item.hook, item.priority, handle, occupant.name, program, item.required)
        )
        here.append(replace(occupant, handle=handle, program_id=program.id, tag=program.tag))

    def _refuse_taken_slot(self, item: Wanted, here: list[Filter]) -> None:
        if reason := self._taken(item, here):
            raise OverlayError(
                "attach a filter",
                item.target,
                reason,
                "Choose another priority (for the overlay: overlay_priority) or handle; tc_bpf_info lists what is "
                "there. Nothing was changed.",
            )

    def _taken(self, item: Wanted, here: list[Filter]) -> str:
        """A priority holds filters of one kind and protocol only, a handle one filter: what is foreign stays."""
        for other in here:
            if not _same_list(other, item) or self.wish.owns(other):
                continue
            if other.handle == item.handle or not _of_our_kind(other):
                what = f"a {other.kind} filter" + (f" named {other.name}" if other.name else "")
                return (
                    f"{what} of somebody else has this place (protocol {other.protocol:#06x}, handle {other.handle:#x})"
                )
        return ""

    def _attach_link(self, item: Wanted) -> None:
        here, program = self.links.setdefault(item.hook, []), item.program
        twin = next((other for other in here if other.program_id == program.id and other.program != program.name), None)
        if twin:
            whose = f"as {filter_name(self.wish.owner, twin.program)}" if twin.pin else "by somebody else"
            raise OverlayError(
                "attach a TCX link",
                item.target,
                f"this very program (id {program.id}) is attached there already, {whose}",
                "The kernel takes a program once per hook: detach it first, or load it again. Nothing was changed.",
            )
        ours = [other for other in here if other.pin and other.program == program.name]
        # A run that was killed may have left two. The one that has this program already comes first.
        ours.sort(key=lambda other: program.id is None or other.program_id != program.id)
        if ours and ours[0].program_id == program.id and self._behind(item, ours[0]):
            self._leave(item, ours.pop(0))
        last = next((other for other in ours if not self._behind(item, other)), None)
        for surplus in [other for other in ours if other != (last or ours[0])]:
            self._next_revision(item.hook)
            self._remove_link(surplus)
        common = (item.interface, *item.hook)
        if last is None:
            pin = self._free_pin(item, here)
            self.operations.append(do.CreateLink(*common, pin, program, self._next_revision(item.hook), item.required))
            last = Link(*item.hook, 0, program.id or 0, pin, program.name)
            here.append(last)
        elif program.id is None or last.program_id != program.id:
            self._next_revision(item.hook)
            self.operations.append(do.UpdateLink(*common, last.pin, program, last.program_id, item.required))
            here[here.index(last)] = replace(last, program_id=program.id or 0)
        self.settled[last.pin] = item.priority

    def _behind(self, item: Wanted, link: Link) -> list[Link]:
        """What must not run after a link of ours on its hook: somebody else's, and ours of lower priority number."""
        here = self.links[item.hook]
        return [
            other
            for other in here[here.index(link) + 1 :]
            if (not other.pin and not other.neighbour) or self.settled.get(other.pin, item.priority) < item.priority
        ]

    def _leave(self, item: Wanted, link: Link) -> None:
        """Take a link from a place where it is not last, so that its program can be attached at the tail.

        The kernel takes a program once per hook, so it cannot be at both places at once: a filter runs it in between.
        Where there can be none, packets miss the program for the time of two system calls.
        """
        here = self.filters.get(item.hook, [])
        if not (obstacle(item.hook, self.seen) or self.seen.no_filters or self._taken(item, here)):
            self._attach_filter(item)
        self._next_revision(item.hook)
        self._remove_link(link)

    def _next_revision(self, hook: Hook) -> int:
        """The hook's revision at this point of the plan; the next operation on its links leads to another."""
        revision = self.revisions.get(hook, 1)
        self.revisions[hook] = revision + 1
        return revision

    def _free_pin(self, item: Wanted, here: list[Link]) -> str:
        """One of two names: an older link of the program may still have the other."""
        place = (self.wish.namespace, item.ifindex, item.interface, item.direction, item.program.name)
        names = [link_pin_name(*place), link_pin_name(*place, second=True)]
        if len(names[1]) > LONGEST_NAME:
            raise OverlayError(
                "attach a TCX link",
                item.target,
                f"the name of its pin would take {len(names[1])} bytes, and a file system takes {LONGEST_NAME}",
                "Pin the program under a shorter name. Nothing was changed.",
            )
        pins = [os.path.join(self.wish.links, name) for name in names]
        return next(pin for pin in pins if pin not in {other.pin for other in here})

    # -- detach -----------------------------------------------------------------------------------------------------

    def detach(self, wanted: dict[tuple[int, str, str], Wanted]) -> None:
        """Whatever of ours is not in its wanted place: for the programs that the list names, or (purge) for all."""
        for hook in sorted(self.filters):
            for other in [other for other in self.filters[hook] if self.wish.owns(other)]:
                program = program_of(other.name)
                item = wanted.get((*hook, program))
                place = (item.mechanism, item.priority, item.handle) if item else None
                if place != (CLSACT, other.priority, other.handle) and (
                    self.wish.purge or (hook, program) in self.named
                ):
                    self._delete_filter(other)
        for hook in sorted(self.links):
            for link in [link for link in self.links[hook] if link.pin and link.pin not in self.settled]:
                if self.wish.purge or (hook, link.program) in self.named:
                    self._remove_link(link)

    def _remove_link(self, link: Link) -> None:
        self.operations.append(do.RemoveLink(self._name(link.ifindex), *link.hook, link.pin))
        self.links[link.hook].remove(link)
        self._note_removed(link.hook, link.program, TCX)

    def _delete_filter(self, other: Filter) -> None:
        place = (other.priority, other.handle)
        self.operations.append(do.DeleteFilter(self._name(other.ifindex), *other.hook, *place, other.protocol))
        self.filters[other.hook].remove(other)
        if other in self.seen.filters:
            self._note_removed(other.hook, program_of(other.name), CLSACT, *place)

    # -- what was made besides ----------------------------------------------------------------------------------------

    def clear_leftovers(self) -> None:
        """What runs that were killed, and interfaces that went, left behind."""
        for path in self.seen.empty_directories:
            self.operations.append(do.RemoveDirectory(path))
            self.leftovers.append(Item("leftover", path, "empty folder", f"{path} "))
        for pin in self.seen.dead_pins:
            self.operations.append(do.RemovePin(pin))
            self.leftovers.append(Item("leftover", pin, "pin of a link that lost its interface", f"{pin} "))
        for ifindex, name in sorted(self.seen.records):
            if self.names.get(ifindex) != name:
                self._forget(ifindex, name)

    def release_qdiscs(self, needed: set[int]) -> None:
        """Delete the clsact qdiscs that we made and that nobody uses any more."""
        scope = {ifindex for ifindex, _direction in self.scope}
        for ifindex, name in sorted(self.seen.records | {(ifindex, self._name(ifindex)) for ifindex in self.made}):
            if ifindex in needed or ifindex not in scope or self.names.get(ifindex) != name:
                continue
            if not self._is_clsact(ifindex):
                self._forget(ifindex, name)
            else:
                used = any(self.filters.get((ifindex, direction)) for direction in DIRECTIONS)
                if used or (ifindex not in self.seen.complete and ifindex not in self.made):
                    continue
                self.operations += [do.DeleteClsact(name, ifindex), do.ForgetQdisc(name, ifindex)]
                self.unmade.add(ifindex)

    def _forget(self, ifindex: int, name: str) -> None:
        self.operations.append(do.ForgetQdisc(name, ifindex))
        place = f"{name} (ifindex {ifindex})"
        self.leftovers.append(Item("leftover", place, "record of a clsact qdisc that is gone", f"{place} "))


def _same_list(other: Filter, item: Wanted) -> bool:
    return other.chain == 0 and other.priority == item.priority


def _of_our_kind(other: Filter) -> bool:
    return other.kind == "bpf" and other.protocol == PROTOCOL_ALL


def _identity(item: Filter) -> tuple[Any, ...]:
    """All that makes a filter the right one in its slot. A program id names one kernel object for as long as something
    holds it, so equal ids mean equal maps too; the tag is compared on its own all the same."""
    return item.name, item.program_id, item.tag, item.direct_action, item.has_actions, item.kind, item.protocol
