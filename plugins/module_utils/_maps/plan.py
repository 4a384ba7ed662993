# SPDX-License-Identifier: GPL-3.0-or-later
"""What a map holds and what it should hold -> the writes in between. Pure; keys and values are bytes."""

from __future__ import annotations

import errno
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from heapq import nsmallest
from typing import Any, Callable, Union

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.plan import Plan

DIFF_LINES = 100


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
    show: Callable[[bytes, bytes], str],
    *,
    purge: bool = False,
    unwanted: Collection[bytes] = (),
    unmet: tuple[str, ...] = (),
    order: Callable[[bytes], Any] | None = None,
) -> Plan:
    """Make ``desired`` true, remove the keys ``unwanted``, and with ``purge`` everything that is not desired.

    ``observed``: what the map holds, without an array's slots of zeros. ``target`` names the map in errors and in the
    diff; ``show`` turns an entry into one line, ``order`` a key into what people sort by. Raises OverlayError where the
    map cannot hold the result.
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
    before, after = _diff(target, delta, show, order)
    return Plan(
        operations=_operations(delta, traits),
        before=before,
        after=after,
        unmet=unmet,
        warnings=warnings,
        result={"added": len(added), "changed_entries": len(changed), "removed": len(gone), "size": delta.size},
    )


def _check_indexes(
    target: str, desired: Mapping[bytes, bytes], traits: Traits, show: Callable[[bytes, bytes], str]
) -> None:
    for key, value in desired.items():
        index = int.from_bytes(key, sys.byteorder)
        if index >= traits.max_entries:
            raise OverlayError(
                "fill a map",
                f"{target}, entry {show(key, value)}",
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


def _diff(
    target: str, delta: Delta, show: Callable[[bytes, bytes], str], order: Callable[[bytes], Any] | None
) -> tuple[str, str]:
    total = len(delta.added) + len(delta.changed) + len(delta.gone)
    if not total:
        return "", ""
    before, after = [f"{target}: {len(delta.observed)} entries"], [f"{target}: {delta.size} entries"]
    for key in nsmallest(DIFF_LINES, [*delta.added, *delta.changed, *delta.gone], key=order):
        if key in delta.observed:
            before.append(show(key, delta.observed[key]))
        if key in delta.desired:
            after.append(show(key, delta.desired[key]))
    if total > DIFF_LINES:
        counts = f"{len(delta.added)} added, {len(delta.changed)} changed, {len(delta.gone)} removed"
        after.append(f"… and {total - DIFF_LINES} more; in all {counts}")
    return "\n".join(before) + "\n", "\n".join(after) + "\n"
