# SPDX-License-Identifier: GPL-3.0-or-later
"""What differs from a generation, object by object, and whose it is what is there instead. Pure.

A generation's calls, made in check mode, tell what they would change (``Change``). Here each missing filter finds what
has its place, and each filter of ours those that run before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.traffic import place_of

Difference = Mapping[str, Any]

MISSING = "missing"  # it should be there and is not
CHANGED = "changed"  # it is there, and different
EXTRA = "extra"  # it is there and should not be
HIDDEN = "hidden"  # it is there and never runs, because of what runs before it
AHEAD = "ahead"  # it runs; what runs before it may keep packets from it
UNKNOWN = "unknown"  # it could not be compared


def find_drift(
    differences: Iterable[Difference], attachments: Sequence[Mapping[str, Any]], hooks: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """One dictionary for each object that differs: ``kind``, ``object``, ``wanted``, ``found``, ``owner``.

    ``differences``: what the generation's calls would change. ``attachments``: those that the generation wants, as
    the module ``tc_bpf_attach`` takes them. ``hooks``: what is on the interfaces, as ``tc_bpf_info`` returns it.
    """
    on = {(link["name"], direction): link[direction] for link in hooks for direction in ("ingress", "egress")}
    occupants = {
        place_of(*hook, int(entry["priority"] or 0), int(entry["handle"] or 0)): entry
        for hook, entries in on.items()
        for entry in reversed(entries)
    }
    found: list[dict[str, Any]] = []
    for difference in differences:
        if changes := difference.get("changes"):
            found += [_changed(change, occupants) for change in changes]
        elif difference["module"] == "tc_bpf_attach" and (absent := _absent(attachments, on, occupants)):
            found += absent
        else:
            found.append(_untold(difference))
    return found + _outrun(on)


def _changed(change: Mapping[str, Any], occupants: Mapping[str, Any]) -> dict[str, Any]:
    """``change``: a ``Change`` as data."""
    wanted, found, owner = change["after"], change["before"], None
    kind = MISSING if found is None else EXTRA if wanted is None else CHANGED
    if kind == MISSING and change["kind"] == "filter":
        found, owner = _occupant(occupants, change["object"])
    return _item(kind, change["object"], wanted, found, owner)


def _untold(difference: Difference) -> dict[str, Any]:
    """A call that would change something, or cannot tell, without saying so object by object."""
    if difference["module"] == "overlay_mode" and difference.get("reason") == "differs":
        return _item(CHANGED, "mode", "on, by this generation", "on, by another generation", None)
    target = str(difference.get("target") or difference["module"])
    diff = difference.get("diff") or {}
    # A generation that was made by an earlier release tells its differences as text alone.
    was, becomes = (str(diff.get(side) or "").splitlines() for side in ("before", "after"))
    if was != becomes:
        wanted = "; ".join(line for line in becomes if line not in was)
        return _item(
            CHANGED, target, wanted or None, "; ".join(line for line in was if line not in becomes) or None, None
        )
    return _item(UNKNOWN, target, None, str(difference.get("reason") or "it differs"), None)


def _item(kind: str, target: str, wanted: str | None, found: str | None, owner: str | None) -> dict[str, Any]:
    return {"kind": kind, "object": target, "wanted": wanted, "found": found, "owner": owner}


# --- from what is on the hooks ----------------------------------------------------------------------------------------


def _occupant(occupants: Mapping[str, Any], place: str) -> tuple[str | None, str | None]:
    """What sits in a filter's place, and whose it is."""
    entry = occupants.get(place)
    return (describe(entry), entry["owner"]) if entry else (None, None)


def _absent(
    attachments: Sequence[Mapping[str, Any]], on: Mapping[Any, Any], occupants: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The wanted filters that are not there, where the call that would attach them cannot even be planned."""
    items = []
    for wanted in attachments:
        program = str(wanted["program"]).rpartition("/")[2]
        hook = on.get((wanted["interface"], wanted["direction"]), ())
        if any((entry["name"] or "").partition(":")[2] == program for entry in hook):
            continue
        place = place_of(
            wanted["interface"],
            wanted["direction"],
            int(wanted.get("priority", 1)),  # a generation that names none is of release 1.0.0
            int(wanted.get("handle") or 1),
        )
        items.append(_item(MISSING, place, program, *_occupant(occupants, place)))
    return items


def _outrun(on: Mapping[Any, Any]) -> list[dict[str, Any]]:
    """Our programs that others keep packets from."""
    items = []
    for (interface, direction), entries in on.items():
        labels = {label(entry): entry for entry in entries}
        for entry in entries:
            if entry["owner"] != "ebpf.overlay":
                continue
            first = [entry["hidden_by"]] if entry["hidden_by"] else entry["may_be_hidden_by"]
            for name in first:
                owner = labels[name]["owner"] if name in labels else None
                if owner == "ebpf.overlay":
                    continue
                kind = HIDDEN if entry["hidden_by"] else AHEAD
                says = "runs before it and ends the chain" if kind == HIDDEN else "runs before it and may end the chain"
                target = f"{entry['name']} on {interface} {direction}"
                items.append(_item(kind, target, "runs first", f"{name} {says}", owner))
    return items


def describe(entry: Mapping[str, Any]) -> str:
    """One entry of a hook, for people."""
    program = f" program {entry['program_id']}" if entry["program_id"] else ""
    return f"{label(entry)}{program}"


def label(entry: Mapping[str, Any]) -> str:
    """As ``tc_bpf_info`` names an entry that hides another."""
    name = entry["name"] or ""
    if entry["mechanism"] == "tcx":
        return f"tcx link {entry['link_id']} {name}".rstrip()
    return f"{entry['kind']} filter priority {entry['priority']} handle {_hex(entry['handle'])} {name}".rstrip()


def _hex(number: Any) -> str:
    return hex(int(number or 0))
