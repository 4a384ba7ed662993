# SPDX-License-Identifier: GPL-3.0-or-later
"""Generations: what a node was told to be, as data. Pure: no kernel, no clock, no files.

A generation is an ordered list of module calls. Rolling out and restoring make the same calls; generation 0 is the
node without the overlay.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.plan import Item
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.layout import BPFFS, PIN_DIR
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.topology import place_devices

KEPT = 3
# How ``by`` of a history begins where no attempt was confirmed: the node went back by itself, a run took it there.
RETURNED, RESTORED = "returned-", "restored-"
# Of the records on disk. Those of release 1.0.0 name none and count as 1.
FORMAT = 2

# A call of a module of this collection: {"module": "bpf_object", "arguments": {...}}.
Call = Mapping[str, Any]

_CONNTRACK_AS_BEFORE: Mapping[str, Any] = {"state": "absent"}

# What takes the overlay off a node, once its mode is off.
REMOVAL: tuple[Call, ...] = (
    {"module": "tc_bpf_attach", "arguments": {"attachments": [], "purge": True}},
    {"module": "bpf_object", "arguments": {"pin_dir": PIN_DIR, "state": "absent"}},
    {"module": "bpffs", "arguments": {"path": BPFFS, "state": "unmounted", "emptied": [PIN_DIR]}},
    {"module": "overlay_conntrack", "arguments": _CONNTRACK_AS_BEFORE},
)
# It belongs to the node, not to a generation: it stays whatever the node goes back to, but for generation 0.
COMMAND_GONE: Call = {"module": "overlay_ctl", "arguments": {"state": "absent"}}
GENERATION_0: tuple[Call, ...] = (*REMOVAL, COMMAND_GONE)


# Module -> the arguments that undo a call of it, for modules that leave something on the node which neither the removal
# nor the calls of another generation take away.
UNDO: Mapping[str, Mapping[str, Any]] = {"overlay_conntrack": _CONNTRACK_AS_BEFORE}


@dataclass(frozen=True)
class Generation:
    """``former``: the generation that it replaced. ``interfaces``: name -> ifindex when it was made."""

    number: int
    former: int
    digest: str
    when: str
    calls: tuple[Call, ...] = ()
    interfaces: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Attempt:
    """A roll-out that nobody has confirmed yet; past ``deadline`` (ns of CLOCK_MONOTONIC) or after a reboot (another
    ``boot``) the node goes back to ``former``. ``was_on``: whether the overlay was on when the attempt began.

    ``lease``: the deadline in the datapath's control entry at that time, which is that of an earlier attempt.
    ``enable``: whether its confirmation ends that the node is switched off. ``left``: whether its beginning switched
    the former generation off, by that one's own code, since maps change their layout or another release made them.
    """

    identity: str
    number: int
    former: int
    deadline: int
    boot: str
    was_on: bool = True
    lease: int = 0
    enable: bool = False
    left: bool = False


@dataclass(frozen=True)
class History:
    """``confirmed``: 0 for a node without the overlay. ``by``: the attempt that was confirmed.

    ``left``: the generation that the node left when it was rolled back to ``confirmed``; 0 when it was not.
    ``switched_off``: somebody has switched the node off, and it stays so whatever is rolled out.
    ``damaged``: what is wrong with the records of generations that cannot be read, by number.
    """

    generations: Mapping[int, Generation] = field(default_factory=dict)
    confirmed: int = 0
    by: str = ""
    attempt: Attempt | None = None
    left: int = 0
    switched_off: bool = False
    damaged: Mapping[int, str] = field(default_factory=dict)

    @property
    def numbers(self) -> frozenset[int]:
        """Of all generations whose records are there."""
        return frozenset(self.generations) | frozenset(self.damaged)

    @property
    def digest(self) -> str:
        """Of the confirmed generation; empty for generation 0."""
        return self.generations[self.confirmed].digest if self.confirmed in self.generations else ""


def digest_of(calls: Iterable[Call]) -> str:
    """The identity of a generation: equal calls, equal digest, on every node and controller."""
    text = json.dumps(list(calls), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def next_number(history: History) -> int:
    """One more than any confirmed generation that is kept; an attempt that was given up leaves its number."""
    given_up = {history.attempt.number} if history.attempt and history.attempt.number != history.confirmed else set()
    return max({0, history.confirmed, *history.numbers} - given_up) + 1


def kept(history: History, taken_back: int = 0) -> set[int]:
    """Of confirmed generations, the last three, the one that the node is at and the one that this replaced.

    ``taken_back``: one that does not count, since its roll-out failed elsewhere: however often that happens, it must
    not cost the node its history.
    """
    confirmed = history.generations.get(history.confirmed)
    numbers = sorted(history.numbers - {taken_back})[-KEPT:]
    return {*numbers, history.confirmed, *([confirmed.former] if confirmed else [])}


def target_of(history: History, wanted: str, former: int | None = None) -> int:
    """``previous``, ``former`` (the one that was there before an attempt) or a number -> the generation to go to.

    ``former``: the number of the one before the attempt, where the attempt may have been confirmed meanwhile.
    A node that was rolled back to its previous generation stays there: the run may be repeated for the nodes that it
    did not reach. Raises :class:`OverlayError` when what is needed to go there is not on the node any more.
    """
    confirmed = history.generations.get(history.confirmed)
    if wanted == "former":
        number = history.confirmed if former is None else former
        number = history.attempt.former if history.attempt else number
    elif wanted == "previous":
        number = history.confirmed if history.left else confirmed.former if confirmed else history.confirmed
    elif wanted.isdigit():
        number = int(wanted)
    else:
        raise OverlayError("go back", f"generation {wanted}", "this is no generation", "Give previous or a number.")
    if number:
        record_of(history, number)
    return number


def holder_of(history: History, identity: str, former: int = 0) -> str:
    """Who has the node, where that is not (any more) the run that began the attempt ``identity``; empty where it is.

    ``former``: the generation before that attempt. A node that went back to it by itself is nobody's.
    """
    waiting = history.attempt
    if not identity:
        return "this run began nothing here"
    if waiting and waiting.identity != identity:
        return f"another run's attempt {waiting.identity} (generation {waiting.number}) waits for confirmation"
    if not waiting and not history.confirmed:
        return "another run has taken the overlay off" if former else ""
    if waiting or history.by == identity or history.by.startswith(RETURNED):
        return ""
    if history.by.startswith(RESTORED):
        return f"another run has taken the node to generation {history.confirmed}"
    return f"another run's attempt {history.by} (generation {history.confirmed}) was confirmed"


def calls_to(history: History, number: int, interfaces: Mapping[str, int]) -> tuple[Call, ...]:
    """The calls that make the node generation ``number``, on the interfaces that it has now.

    Raises :class:`OverlayError` when it is not on the node any more, or its record is damaged.
    """
    if number == 0:
        return GENERATION_0
    generation = record_of(history, number)
    return adapt(generation.calls, generation.interfaces, interfaces)


def record_of(history: History, number: int) -> Generation:
    """Raises :class:`OverlayError` when the generation is not on the node any more, or its record is damaged."""
    if number in history.damaged:
        raise OverlayError(
            "go back",
            f"generation {number}",
            f"this node has no history of it that can be read: {history.damaged[number]}",
            "Name another generation, or 0 to take the overlay off; site.yml makes a new one.",
        )
    if number not in history.generations:
        known = ", ".join(map(str, sorted({0, *history.generations})))
        raise OverlayError(
            "go back",
            f"generation {number}",
            f"this node has no history of it; it knows {known}",
            f"Only the last {KEPT} confirmed generations are kept. Name one of these, or 0 to take the overlay off.",
        )
    return history.generations[number]


def undo(calls: Iterable[Call], kept: Iterable[str] = ()) -> tuple[Call, ...]:
    """What takes back that which calls leave on the node. ``kept``: modules that the next generation calls as well."""
    made = list(dict.fromkeys(call["module"] for call in calls))
    leaving = [name for name in reversed(made) if name in UNDO and name not in frozenset(kept)]
    return tuple({"module": name, "arguments": dict(UNDO[name])} for name in leaving)


def replacing_maps(calls: Iterable[Call]) -> tuple[Call, ...]:
    """The same calls, which start a map whose layout differs with no entries. For a datapath that is off."""
    return tuple(
        {**call, "arguments": {**call["arguments"], "on_map_change": "replace"}}
        if call["module"] == "bpf_object" and call["arguments"].get("state") != "absent"
        else call
        for call in calls
    )


def adapt(calls: Sequence[Call], recorded: Mapping[str, int], now: Mapping[str, int]) -> tuple[Call, ...]:
    """The same calls for interfaces that got another ifindex since (a reboot), without those that are gone."""
    moved = {recorded[name]: now.get(name) for name in recorded}
    if all(old == new for old, new in moved.items()):
        return tuple(calls)
    return tuple({**call, "arguments": _adapt_arguments(call, moved, now)} for call in calls)


def _adapt_arguments(call: Call, moved: Mapping[int, int | None], now: Mapping[str, int]) -> dict[str, Any]:
    arguments = dict(call["arguments"])
    if call["module"] == "tc_bpf_attach":
        arguments["attachments"] = [a for a in arguments["attachments"] if a["interface"] in now]
    elif call["module"] == "bpf_map_sync":
        name = str(arguments["map"]).rpartition("/")[2]
        if name == "devices":
            carriers = [moved.get(entry["value"], entry["value"]) for entry in arguments["entries"]]
            places, _unplaced = place_devices(ifindex for ifindex in carriers if ifindex is not None)
            arguments["entries"] = [{"key": place, "value": ifindex} for place, ifindex in places]
            return arguments
        entries = (_adapt_entry(name, entry, moved) for entry in arguments["entries"])
        arguments["entries"] = [entry for entry in entries if entry is not None]
    return arguments


def _adapt_entry(name: str, entry: Mapping[str, Any], moved: Mapping[int, int | None]) -> dict[str, Any] | None:
    if name != "ifindex_map" or not isinstance(entry["value"], dict) or "ifindex" not in entry["value"]:
        return dict(entry)
    value = entry["value"]
    ifindex = moved.get(value["ifindex"], value["ifindex"])
    return None if ifindex is None else {**entry, "value": {**value, "ifindex": ifindex}}


def told(text: str) -> Item:
    return Item("generation", "generation", text)


def describe(history: History, number: int) -> Item:
    if number == 0:
        return told("generation 0 (no overlay)")
    generation = history.generations.get(number)
    return told(f"generation {number}{f' ({generation.digest[:12]})' if generation else ''}")
