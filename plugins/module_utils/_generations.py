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

from ansible_collections.ebpf.overlay.plugins.module_utils._errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._layout import BPFFS, PIN_DIR
from ansible_collections.ebpf.overlay.plugins.module_utils._topology import place_devices

KEPT = 3

# A call of a module of this collection: {"module": "bpf_object", "arguments": {...}}.
Call = Mapping[str, Any]

# What takes the overlay off a node, once its mode is off.
REMOVAL: tuple[Call, ...] = (
    {"module": "tc_bpf_attach", "arguments": {"attachments": [], "purge": True}},
    {"module": "bpf_object", "arguments": {"pin_dir": PIN_DIR, "state": "absent"}},
    {"module": "bpffs", "arguments": {"path": BPFFS, "state": "unmounted", "emptied": [PIN_DIR]}},
)


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
    ``boot``) the node goes back to ``former``. ``was_on``: whether the overlay was on when the attempt began."""

    identity: str
    number: int
    former: int
    deadline: int
    boot: str
    was_on: bool = True


@dataclass(frozen=True)
class History:
    """``confirmed``: 0 for a node without the overlay. ``by``: the attempt that was confirmed.

    ``left``: the generation that the node left when it was rolled back to ``confirmed``; 0 when it was not.
    """

    generations: Mapping[int, Generation] = field(default_factory=dict)
    confirmed: int = 0
    by: str = ""
    attempt: Attempt | None = None
    left: int = 0

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
    return max({0, history.confirmed, *history.generations} - given_up) + 1


def kept(history: History, taken_back: int = 0) -> set[int]:
    """Of confirmed generations, the last three, the one that the node is at and the one that this replaced.

    ``taken_back``: one that does not count, since its roll-out failed elsewhere: however often that happens, it must
    not cost the node its history.
    """
    confirmed = history.generations.get(history.confirmed)
    numbers = sorted(set(history.generations) - {taken_back})[-KEPT:]
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
        _record_of(history, number)
    return number


def calls_to(history: History, number: int, interfaces: Mapping[str, int]) -> tuple[Call, ...]:
    """The calls that make the node generation ``number``, on the interfaces that it has now.

    Raises :class:`OverlayError` when it is not on the node any more, or its record is damaged.
    """
    if number == 0:
        return REMOVAL
    generation = _record_of(history, number)
    return adapt(generation.calls, generation.interfaces, interfaces)


def _record_of(history: History, number: int) -> Generation:
    if number not in history.generations:
        known = ", ".join(map(str, sorted({0, *history.generations})))
        raise OverlayError(
            "go back",
            f"generation {number}",
            f"this node has no history of it; it knows {known}",
            f"Only the last {KEPT} confirmed generations are kept. Name one of these, or 0 to take the overlay off.",
        )
    return history.generations[number]


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
    if name != "ifindex_map":
        return dict(entry)
    value = entry["value"]
    ifindex = moved.get(value["ifindex"], value["ifindex"])
    return None if ifindex is None else {**entry, "value": {**value, "ifindex": ifindex}}


def describe(history: History, number: int) -> str:
    """One line for people."""
    if number == 0:
        return "generation 0 (no overlay)\n"
    generation = history.generations.get(number)
    return f"generation {number}{f' ({generation.digest[:12]})' if generation else ''}\n"
