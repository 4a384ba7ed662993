# SPDX-License-Identifier: GPL-3.0-or-later
"""What a map holds and what it should hold -> the writes in between. Pure; keys and values are bytes."""

from __future__ import annotations

import errno
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from heapq import nsmallest
from typing import Any, Callable, Optional, Union

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.plan import (
    DIFF_LINES,
    Change,
    Changes,
    ManyChanges,
    Plan,
)

Show = Callable[[bytes, bytes], tuple[str, str]]
"""Key and value -> both as people write them."""
Order = Optional[Callable[[bytes], Any]]
"""Key -> what people sort by."""


@dataclass(frozen=True)
class WriteEntries:
    """Add or change these; one operation for all, since 100,000 of them are common."""

    keys: tuple[bytes, ...]
    values: tuple[bytes, ...]

    def __str__(self) -> str:
        return f"write {len(self.keys)} entries"


@dataclass(frozen=True)
class DeleteEntries:
    """Remove these; a slot of an array is set to zero instead."""

    keys: tuple[bytes, ...]

    def __str__(self) -> str:
        return f"delete {len(self.keys)} entries"


Operation = Union[WriteEntries, DeleteEntries]


@dataclass(frozen=True)
class Traits:
    """What the map can hold and how it takes it.

    ``indexed``: an array or devmap: keys are the host's u32 below ``max_entries``; a slot of zeros counts as absent.
    ``evicts``: a full map throws old entries out instead of refusing new ones (LRU). ``frozen``: it takes no writes.
    """

    max_entries: int
    indexed: bool = False
    evicts: bool = False
    frozen: bool = False


# A map that is still to be made: only itself can say what it has room for.
UNKNOWN = Traits(sys.maxsize)


@dataclass(frozen=True)
class Delta:
    """Keys of ``desired`` that are new, those with another value, and keys to remove."""

    observed: Mapping[bytes, bytes]
    desired: Mapping[bytes, bytes]
    added: list[bytes]
    changed: list[bytes]
    gone: list[bytes]

    @property
    def size(self) -> int:
        return len(self.observed) + len(self.added) - len(self.gone)


def plan_map(
    target: str,
    observed: Mapping[bytes, bytes],
    desired: Mapping[bytes, bytes],
    traits: Traits,
    show: Show,
    *,
    purge: bool = False,
    unwanted: Collection[bytes] = (),
    unmet: tuple[str, ...] = (),
    order: Order = None,
) -> Plan:
    """Make ``desired`` true, remove the keys ``unwanted``, and with ``purge`` everything that is not desired.

    ``observed``: what the map holds, without an array's slots of zeros. ``target`` names the map in errors and in the
    diff. Raises OverlayError where the map cannot hold the result.
    """
    gone = {key for key in unwanted if key in observed}
    if traits.indexed:
        _check_indexes(target, desired, traits, show)
        zeros = [key for key, value in desired.items() if not any(value)]
        if zeros:
            gone.update(key for key in zeros if key in observed)
            desired = {key: value for key, value in desired.items() if any(value)}
    added, changed = [], []
    if observed == desired:  # most runs end here, and what was read can compare itself without a table of its own
        observed = desired
    else:
        observed = dict(observed.items())
        added = [key for key in desired if key not in observed] if observed else list(desired)
        if len(added) < len(desired):
            changed = [key for key, value in desired.items() if observed.get(key, value) != value]
        if purge:
            gone.update(key for key in observed if key not in desired)
    delta = Delta(observed, desired, added, changed, sorted(gone))
    warnings = _check_room(target, delta, traits)
    if traits.frozen and (added or changed or gone):
        raise OverlayError(
            "write to a map",
            target,
            OSError(errno.EPERM, ""),
            "The map is frozen, for as long as it lives: load the program anew, with a fresh map. Nothing was changed.",
        )
    return Plan(
        operations=_operations(delta, traits),
        changes=_changes(target, delta, show, order),
        unmet=unmet,
        warnings=warnings,
        result={"added": len(added), "changed_entries": len(changed), "removed": len(gone), "size": delta.size},
    )


def _check_indexes(target: str, desired: Mapping[bytes, bytes], traits: Traits, show: Show) -> None:
    for key, value in desired.items():
        index = int.from_bytes(key, sys.byteorder)
        if index >= traits.max_entries:
            raise OverlayError(
                "fill a map",
                f"{target}, entry {' -> '.join(show(key, value))}",
                f"index {index} is beyond the {traits.max_entries} slots of the map",
                "Correct the key, or load the program with a larger map; nothing was changed.",
            )


def _check_room(target: str, delta: Delta, traits: Traits) -> tuple[str, ...]:
    needed = len(delta.desired) if traits.evicts else delta.size
    if not traits.indexed and delta.added and needed > traits.max_entries:
        raise OverlayError(
            "fill a map",
            target,
            f"it would hold {needed} entries and has room for {traits.max_entries} (max_entries)",
            "List fewer entries, let purge remove what is not listed, or load the program with a larger map; "
            "nothing was changed.",
        )
    if traits.evicts and delta.size > traits.max_entries:
        return (f"{target} has room for {traits.max_entries} entries: the kernel evicts some that are not listed.",)
    return ()


def _operations(delta: Delta, traits: Traits) -> tuple[Operation, ...]:
    """Changes, additions, removals; a map without room for all additions takes turns, so that it is never empty."""

    def write(keys: list[bytes]) -> None:
        if keys:
            operations.append(WriteEntries(tuple(keys), tuple(map(delta.desired.__getitem__, keys))))

    operations: list[Operation] = []
    added, gone = delta.added, delta.gone
    room = len(added) if traits.indexed or traits.evicts else max(traits.max_entries - len(delta.observed), 0)
    turn = max(traits.max_entries // 8, 1)
    write(delta.changed + added[:room])
    added = added[room:]
    while gone:
        # Additions first used up the room that there was; from here on each turn makes room for the next.
        count = min(turn, len(added)) or len(gone)
        operations.append(DeleteEntries(tuple(gone[:count])))
        gone = gone[count:]
        write(added[:count])
        added = added[count:]
    return tuple(operations)


def _changes(target: str, delta: Delta, show: Show, order: Order) -> Changes:
    added, changed, removed = len(delta.added), len(delta.changed), len(delta.gone)
    if not added + changed + removed:
        return ()
    counts = f"{len(delta.observed)} entries", f"{delta.size} entries"
    heading = Change("map", f"map {target}", *counts, label=f"{target}: ")
    return ManyChanges(heading, _Each(target, delta, show, order), added, changed, removed)


@dataclass(frozen=True)
class _Each:
    """Every entry of a plan. Whoever reads further than the diff does pays for the order of all."""

    target: str
    delta: Delta
    show: Show
    order: Order

    def __call__(self) -> Iterator[Change]:
        keys = [*self.delta.added, *self.delta.changed, *self.delta.gone]
        yield from map(self._change, nsmallest(DIFF_LINES, keys, key=self.order))
        yield from map(self._change, sorted(keys, key=self.order)[DIFF_LINES:])

    def _change(self, key: bytes) -> Change:
        sides = self.delta.observed, self.delta.desired
        was, becomes = (self.show(key, side[key]) if key in side else None for side in sides)
        shown = (becomes or was or ("", ""))[0]
        before, after = was[1] if was else None, becomes[1] if becomes else None
        return Change("map entry", f"map {self.target}, key {shown}", before, after, f"{shown} -> ")
