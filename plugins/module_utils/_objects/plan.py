# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans for programs, maps and their pins. Pure: no kernel, no clock, no files.

The order of operations, and why a run may be killed between any two of them, is told in ``state``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.plan import Item, Plan, compare
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.map_types import map_type

from .state import (
    BUILD,
    NEW,
    NEXT,
    Built,
    Desired,
    Layout,
    MapPin,
    Observed,
    ProgramPin,
    Record,
)

CARRY, CREATE, REPLACE, MIGRATE = "carry", "create", "replace", "migrate"


# --- operations, in the order in which a plan lists them --------------------------------------------------------------


@dataclass(frozen=True)
class MakeFolder:
    pass


@dataclass(frozen=True)
class Unpin:
    """Remove one entry of ours."""

    name: str


@dataclass(frozen=True)
class Announce:
    """Write (or replace at once) ``build-next``."""

    record: str


@dataclass(frozen=True)
class PinNew:
    """Pin the new object under its temporary name. ``kind``: program or map."""

    kind: str
    name: str


@dataclass(frozen=True)
class Publish:
    """Move the new object from its temporary name to its own, over the former one."""

    name: str


@dataclass(frozen=True)
class Commit:
    """``build-next`` becomes ``build``."""


@dataclass(frozen=True)
class RemoveFolder:
    pass


@dataclass(frozen=True)
class RemoveTree:
    """Remove the compiler's headers that a killed run left behind."""

    path: str


# --- decisions --------------------------------------------------------------------------------------------------------


def intact(observed: Observed, desired: Desired) -> bool:
    """Whether exactly the desired build is pinned: every program and every map that it made, and no other in its place.

    A program keeps its maps for life, so that ids are enough.
    """
    record = observed.records[0]
    if record is None or record.digest != desired.digest or set(record.programs) != set(desired.programs):
        return False
    programs = {name: pin.id for name in record.programs if (pin := observed.program_pin(name))}
    maps = {name: found.id for name in record.maps if (found := observed.map_pin(name))}
    return programs == record.programs and maps == record.maps


def decide_maps(observed: Observed, fresh: Mapping[str, Layout], on_map_change: str) -> dict[str, str]:
    """For every map of the new build: carry the pinned one over, create, replace, or migrate its entries.

    Raises :class:`OverlayError` when a pinned map's layout changed and the caller did not say what to do, when its
    entries cannot be copied, and when the name belongs to somebody else.
    """
    decisions = {}
    for name, layout in sorted(fresh.items()):
        if name == BUILD:
            raise OverlayError(
                "pin a map", f"{observed.folder}/{name}", "the name is used for the build record", "Rename the map."
            )
        _refuse_foreign(observed, name)
        if name not in observed.pins:
            decisions[name] = CREATE
            continue
        pinned = observed.map_pin(name)
        if pinned is None:
            decisions[name] = CREATE
        elif pinned.layout == layout:
            decisions[name] = CARRY
        else:
            decisions[name] = _decide_changed(f"{observed.folder}/{name}", pinned.layout, layout, on_map_change)
    return decisions


def _decide_changed(path: str, old: Layout, new: Layout, on_map_change: str) -> str:
    change = f"its layout changed from ({old}) to ({new})"
    if on_map_change == REPLACE:
        return REPLACE
    if on_map_change != MIGRATE:
        raise OverlayError(
            "carry a map over",
            path,
            change,
            "Set on_map_change to migrate (if only the capacity changed; keeps entries) or to replace (loses them).",
        )
    if (
        Layout(old.type, old.key_size, old.value_size, new.max_entries, old.flags) != new
        or not map_type(new.type).copyable
    ):
        raise OverlayError(
            "migrate a map", path, change, "Only a capacity can change so; on_map_change: replace loses the entries."
        )
    return MIGRATE


def _refuse_foreign(observed: Observed, name: str) -> None:
    taken = [pin for pin in (name, f"{name}{NEW}") if pin in observed.pins]
    if taken and name not in observed.ours:
        raise OverlayError(
            "pin",
            f"{observed.folder}/{taken[0]}",
            "something that no build of ours made is already pinned there",
            "Choose another pin_dir, or remove what is in the way.",
        )


# --- plans ------------------------------------------------------------------------------------------------------------


def plan_object(observed: Observed, desired: Desired) -> Plan:
    """The plan for ``bpf_object``."""
    plan = _plan_present(observed, desired) if desired.present else _plan_absent(observed)
    swept = tuple(RemoveTree(path) for path in observed.trees)
    trees = compare([Item("leftover", f"leftover {path}", f"leftover {path}") for path in observed.trees], ())
    return replace(plan, operations=swept + plan.operations, changes=(*trees, *plan.changes))


def _plan_absent(observed: Observed) -> Plan:
    leaving = [name for name in observed.pins if _belongs(observed, name)]
    # The records go last: until then a killed run can be finished.
    order = sorted(leaving, key=lambda name: (name == BUILD, name.startswith(NEXT), name))
    operations: list[Any] = [Unpin(name) for name in order]
    if observed.entries is not None and len(leaving) == len(observed.entries):
        operations.append(RemoveFolder())
    return Plan(
        operations=tuple(operations),
        changes=compare(_items(observed), ()),
        unmet=observed.unmet,
        result={"compiled": False, "digest": None, "programs": [], "maps": []},
    )


def _belongs(observed: Observed, name: str) -> bool:
    base = name[: -len(NEW)] if name.endswith(NEW) else name
    return base in observed.ours or name == BUILD or base == NEXT


def _plan_present(observed: Observed, desired: Desired) -> Plan:
    if len(set(desired.programs)) != len(desired.programs) or BUILD in desired.programs:
        raise OverlayError(
            "load programs", ", ".join(desired.programs), f"a name is listed twice or is {BUILD!r}", "Correct the list."
        )
    for name in desired.programs:
        _refuse_foreign(observed, name)
    if intact(observed, desired):
        return _plan_intact(observed, desired)
    if observed.built is None:
        return _plan_unbuilt(observed, desired)
    return _plan_build(observed, desired, observed.built)


def _leftovers(observed: Observed, keep: frozenset[str]) -> list[str]:
    """What a killed run left under temporary names, and what it pinned that no finished build has and nobody wants."""
    finished = observed.records[0].names if observed.records[0] else frozenset()
    temporary = [name for name in observed.pins if name.endswith(NEW) and _belongs(observed, name)]
    orphans = [name for name in observed.ours - finished - keep if name in observed.pins]
    return sorted(temporary) + sorted(orphans)


def _plan_intact(observed: Observed, desired: Desired) -> Plan:
    record = observed.records[0]
    if record is None:
        raise AssertionError("an intact build has its record")
    swept = _leftovers(observed, frozenset()) + ([NEXT] if NEXT in observed.pins else [])
    programs = [program for name in desired.programs if (program := observed.program_pin(name))]
    return Plan(
        operations=tuple(Unpin(name) for name in swept),
        changes=compare(_items(observed), _items(observed, without=frozenset(swept))),
        unmet=observed.unmet,
        result={
            "compiled": False,
            "digest": desired.digest,
            "programs": [_program_result(observed, p.name, p.id, p.tag, p.xlated_size) for p in programs],
            "maps": [
                _map_result(observed, pin.name, pin.id, pin.layout, fresh=False)
                for name in sorted(record.maps)
                if (pin := observed.map_pin(name))
            ],
        },
    )


def _plan_unbuilt(observed: Observed, desired: Desired) -> Plan:
    """Nothing could be compiled here (a dry run on a node without bcc), so only what must come of it can be said."""
    folder, digest = observed.folder, "(digest known once the compiler is installed)"
    coming = [_build(folder, digest), *(_pin(folder, "program", name) for name in desired.programs)]
    return Plan(
        operations=tuple(PinNew("program", name) for name in desired.programs),
        changes=compare(_items(observed), coming),
        unmet=observed.unmet or ("The source was not compiled.",),
        result={
            "compiled": True,
            "digest": desired.digest,
            "programs": [_program_result(observed, name, None, None, None) for name in desired.programs],
            "maps": [],
        },
    )


def _plan_build(observed: Observed, desired: Desired, built: Built) -> Plan:
    decisions = decide_maps(observed, built.maps, desired.on_map_change)
    if desired.digest is None:
        raise AssertionError("what was built has a digest")
    record = Record(desired.digest, {program.name: program.id for program in built.programs}, built.map_ids)
    finished = observed.records[0].names if observed.records[0] else frozenset()
    new = [("map", name) for name, decision in decisions.items() if decision != CARRY]
    new += [("program", program.name) for program in built.programs]

    operations: list[Any] = [] if observed.entries is not None else [MakeFolder()]
    operations += [Unpin(name) for name in _leftovers(observed, record.names)]
    operations.append(Announce(record.encode()))
    operations += [PinNew(kind, name) for kind, name in new]
    operations += [Publish(name) for _kind, name in new]
    operations += [Unpin(name) for name in sorted(finished - record.names) if name in observed.pins]
    operations.append(Commit())

    folder = observed.folder
    coming = [_build(folder, desired.digest)]
    coming += [_pin(folder, "program", program.name, f", tag {program.tag}") for program in built.programs]
    notes = {REPLACE: ", emptied", MIGRATE: ", entries copied"}
    coming += [
        _pin(folder, "map", name, f": {built.maps[name]}{notes.get(decision, '')}")
        for name, decision in decisions.items()
    ]
    # An id that only this process knows is none to report: in a dry run it is gone in a moment.
    carried = {name: built.map_ids[name] for name, decision in decisions.items() if decision == CARRY}
    return Plan(
        operations=tuple(operations),
        changes=compare(_items(observed), _sorted(coming)),
        unmet=observed.unmet,
        result={
            "compiled": True,
            "digest": desired.digest,
            "programs": [_program_result(observed, p.name, None, p.tag, p.xlated_size) for p in built.programs],
            "maps": [
                _map_result(observed, name, carried.get(name), built.maps[name], decision in (CREATE, REPLACE))
                for name, decision in decisions.items()
            ],
        },
    )


# --- what people and playbooks see ------------------------------------------------------------------------------------


def _program_result(
    observed: Observed, name: str, id_: int | None, tag: str | None, size: int | None
) -> dict[str, Any]:
    return {"name": name, "id": id_, "tag": tag, "pin": f"{observed.folder}/{name}", "xlated_size": size}


def _map_result(observed: Observed, name: str, id_: int | None, layout: Layout, fresh: bool) -> dict[str, Any]:
    return {
        "name": name,
        "id": id_,
        "type": layout.type,
        "key_size": layout.key_size,
        "value_size": layout.value_size,
        "max_entries": layout.max_entries,
        "flags": layout.flags,
        "fresh": fresh,
        "pin": f"{observed.folder}/{name}",
    }


def _build(folder: str, digest: str) -> Item:
    return Item("build", f"build in {folder}", f"build {digest}")


def _pin(folder: str, kind: str, name: str, more: str = "") -> Item:
    return Item(kind, f"pin {folder}/{name}", f"{kind} {name}{more}")


def _sorted(items: list[Item]) -> list[Item]:
    return sorted(items, key=lambda item: item.text)


def _items(observed: Observed, without: frozenset[str] = frozenset()) -> list[Item]:
    """Our own state, object by object; what is somebody else's is no part of it."""
    items, folder = [], observed.folder
    for name, entry in observed.pins.items():
        if name in without or not _belongs(observed, name):
            continue
        if name == BUILD:
            record = observed.records[0]
            items.append(_build(folder, record.digest if record else ""))
        elif name.endswith(NEW) or name == NEXT:
            items.append(_pin(folder, "leftover", name))
        elif isinstance(entry, ProgramPin):
            items.append(_pin(folder, "program", name, f", tag {entry.tag}"))
        elif isinstance(entry, MapPin):
            items.append(_pin(folder, "map", name, f": {entry.layout}"))
        else:
            items.append(_pin(folder, "other", name))
    return _sorted(items)
