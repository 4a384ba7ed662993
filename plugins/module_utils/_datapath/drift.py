# SPDX-License-Identifier: GPL-3.0-or-later
"""What differs from a generation, object by object, and whose it is what is there instead. Pure.

A generation's calls, made in check mode, tell their differences as text, one line per object (``Plan``). Here each
line finds the one that it replaces, and what else is on the same hook.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Difference = Mapping[str, Any]

MISSING = "missing"  # it should be there and is not
CHANGED = "changed"  # it is there, and different
EXTRA = "extra"  # it is there and should not be
HIDDEN = "hidden"  # it is there and never runs, because of what runs before it
AHEAD = "ahead"  # it runs; what runs before it may keep packets from it
UNKNOWN = "unknown"  # it could not be compared

_FILTER = re.compile(
    r"(?P<interface>\S+) (?P<direction>ingress|egress) priority (?P<priority>\d+) handle (?P<handle>\S+) "
)
_LINK = re.compile(r"(?P<interface>\S+) (?P<direction>ingress|egress) tcx (?P<name>\S+)")
_QDISC = re.compile(r"(?P<interface>\S+) qdisc (?P<kind>\S+)")
_PIN = re.compile(r"(?:program|map|leftover|other) (?P<name>[^,: ]+)[,:]? ?")


def find_drift(
    differences: Iterable[Difference], attachments: Sequence[Mapping[str, Any]], hooks: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """One dictionary for each object that differs: ``kind``, ``object``, ``wanted``, ``found``, ``owner``.

    ``differences``: what the generation's calls would change. ``attachments``: those that the generation wants, as
    the module ``tc_bpf_attach`` takes them. ``hooks``: what is on the interfaces, as ``tc_bpf_info`` returns it.
    """
    on = {(link["name"], direction): link[direction] for link in hooks for direction in ("ingress", "egress")}
    found: list[dict[str, Any]] = []
    for difference in differences:
        diff = difference.get("diff")
        if diff and diff.get("before") != diff.get("after"):
            found += _from_text(difference, diff, on)
        elif difference["module"] == "tc_bpf_attach" and (absent := _absent(attachments, on)):
            found += absent
        else:
            found.append(_untold(difference))
    return found + _outrun(on)


def _untold(difference: Difference) -> dict[str, Any]:
    """A call that would change something, or cannot tell, without saying so line by line."""
    if difference["module"] == "overlay_mode" and difference.get("reason") == "differs":
        return _item(CHANGED, "mode", "on, by this generation", "on, by another generation", None)
    target = str(difference.get("target") or difference["module"])
    return _item(UNKNOWN, target, None, str(difference.get("reason") or "it differs"), None)


def _item(kind: str, target: str, wanted: str | None, found: str | None, owner: str | None) -> dict[str, Any]:
    return {"kind": kind, "object": target, "wanted": wanted, "found": found, "owner": owner}


# --- from the lines of a diff -----------------------------------------------------------------------------------------


def _from_text(difference: Difference, diff: Mapping[str, str], on: Mapping[Any, Any]) -> list[dict[str, Any]]:
    before, after = (_by_object(difference, str(diff.get(side) or "")) for side in ("before", "after"))
    items = []
    for place in [*after, *(place for place in before if place not in after)]:
        wanted, is_there = after.get(place), before.get(place)
        if wanted == is_there:
            continue
        kind = MISSING if is_there is None else EXTRA if wanted is None else CHANGED
        owner = None
        if kind == MISSING and place[0] == "filter":
            is_there, owner = _occupant(on, place)
        items.append(_item(kind, _named(place), wanted, is_there, owner))
    return items


def _by_object(difference: Difference, text: str) -> dict[tuple[str, ...], str]:
    """What a line is about -> what it says of it."""
    lines = [line for line in text.splitlines() if line]
    if difference["module"] == "bpf_map_sync":
        name = str(difference["target"]).rpartition("/")[2]
        entries = [line.partition(" -> ") for line in lines if " -> " in line]
        told: dict[tuple[str, ...], str] = {("entry", name, key): value for key, _arrow, value in entries}
        if lines and lines[-1].startswith("… "):
            told[("more", name)] = lines[-1]
        return told
    if difference["module"] == "tc_bpf_attach":
        return dict(_on_hook(line) for line in lines)
    if difference["module"] == "bpf_object":
        return dict(_pinned(line, str(difference["target"])) for line in lines)
    if difference["module"] == "overlay_conntrack":
        return {("state", line.partition(" = ")[0]): line.partition(" = ")[2] for line in lines}
    if difference["module"] == "overlay_packages":
        return {("package", line.partition(" ")[0]): line.partition(" ")[2] for line in lines}
    if difference["module"] == "overlay_mode":
        return {("mode",): " ".join(lines)}
    return {("state", difference["module"], str(difference.get("target") or "")): " ".join(lines)} if lines else {}


def _on_hook(line: str) -> tuple[tuple[str, ...], str]:
    if match := _FILTER.match(line):
        return ("filter", *match.groups()), line[match.end() :].replace("protocol 0x0003 ", "")
    if match := _LINK.match(line):
        return ("link", *match.groups()), line[match.start("name") :]
    if match := _QDISC.match(line):
        return ("qdisc", *match.groups()), match["kind"]
    return ("line", line), line


def _pinned(line: str, folder: str) -> tuple[tuple[str, ...], str]:
    match = _PIN.match(line)
    if match is None:
        return ("build", folder), line
    return ("pin", f"{folder}/{match['name']}"), line


def _named(place: tuple[str, ...]) -> str:
    kind, rest = place[0], place[1:]
    if kind == "filter":
        return f"filter on {rest[0]} {rest[1]}, priority {rest[2]}, handle {rest[3]}"
    if kind == "link":
        return f"TCX link on {rest[0]} {rest[1]}, {rest[2]}"
    if kind == "qdisc":
        return f"qdisc {rest[1]} on {rest[0]}"
    if kind == "entry":
        return f"map {rest[0]}, key {rest[1]}"
    if kind == "more":
        return f"map {rest[0]}"
    if kind == "build":
        return f"build in {rest[0]}"
    if kind == "state":
        return " ".join(rest).strip()
    return " ".join(place)


# --- from what is on the hooks ----------------------------------------------------------------------------------------


def _occupant(on: Mapping[Any, Any], place: tuple[str, ...]) -> tuple[str | None, str | None]:
    """What sits in a filter's place (or on its hook with the same program), and whose it is."""
    _kind, interface, direction, priority, handle = place
    for entry in on.get((interface, direction), ()):
        if (str(entry["priority"]), _hex(entry["handle"])) == (priority, handle):
            return describe(entry), entry["owner"]
    return None, None


def _absent(attachments: Sequence[Mapping[str, Any]], on: Mapping[Any, Any]) -> list[dict[str, Any]]:
    """The wanted filters that are not there, where the call that would attach them cannot even be planned."""
    items = []
    for wanted in attachments:
        program = str(wanted["program"]).rpartition("/")[2]
        hook = on.get((wanted["interface"], wanted["direction"]), ())
        if any((entry["name"] or "").partition(":")[2] == program for entry in hook):
            continue
        place = (
            wanted["interface"],
            wanted["direction"],
            str(wanted.get("priority", 1)),  # a generation that names none is of release 1.0.0
            _hex(wanted.get("handle", 1)),
        )
        found, owner = _occupant(on, ("filter", *place))
        items.append(_item(MISSING, _named(("filter", *place)), program, found, owner))
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
