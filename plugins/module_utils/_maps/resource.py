# SPDX-License-Identifier: GPL-3.0-or-later
"""The entries of a pinned map, as a resource."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.lock import one_run
from ansible_collections.ebpf.overlay.plugins.module_utils._core.plan import Plan
from ansible_collections.ebpf.overlay.plugins.module_utils._core.resource import (
    STATE,
    Params,
    Warn,
    converge,
    pinned_by_others,
    told,
)
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpffs

from .bulk import BulkList
from .codec import encode_entries, in_blocks, with_ranges
from .pinned import PinnedMap, codecs, opened, traits_of
from .plan import UNKNOWN, plan_map

Schemas = tuple[Any, Any]
"""Of the key and the value; None for one that nobody knows."""

# Also what calls on disk are checked by, of earlier releases too: nothing is taken away or made stricter.
SPEC: dict[str, Any] = {
    "map": {"type": "path", "required": True},
    "key": {"type": "raw", "no_log": False},
    "value": {"type": "raw"},
    "entries": {"type": "list", "elements": "raw", "default": []},
    "maps": pinned_by_others(
        name="str", fresh="bool", type="str", max_entries="int", key_size="int", value_size="int", flags="int"
    ),
    "purge": {"type": "bool", "default": False},
    "state": STATE,
}


def not_pinned(path: str) -> str:
    """The sentence for a pin that is not there, which an earlier task may be about to make."""
    if bpffs.find_bpffs(path) is None:
        return bpffs.not_on_bpffs(path)
    return f"No map is pinned at {path}: load the program that it belongs to first (ebpf.overlay.bpf_object)."


def still_to_be_made(maps: list[dict[str, Any]], path: str) -> dict[str, Any] | None:
    """What an earlier task of a dry run told about the map, if it would make it anew."""
    return next((told for told in maps if told["id"] is None and os.path.normpath(told["pin"]) == path), None)


class Entries:
    """To be used while the map is open: see :func:`opened_entries`."""

    def __init__(self, params: Params, pinned: PinnedMap | None, known: Schemas, bulk: BulkList | None) -> None:
        self._path, self._params, self._pinned = os.path.normpath(params["map"]), params, pinned
        self._present = params["state"] == "present"
        self._coming = still_to_be_made(params["maps"], self._path)
        self._found = None if self._coming and self._coming["fresh"] else pinned
        # To remove an entry nobody needs to know what its value means.
        fallbacks = None, None if self._present else "bytes"
        self._key, self._value = codecs(self._path, self._found, params["key"], params["value"], known, fallbacks)
        blocks = bulk.blocks() if bulk else in_blocks(params["entries"])
        self._listed = encode_entries(with_ranges(blocks, self._key), self._key, self._value if self._present else None)

    def observe(self) -> Mapping[bytes, bytes]:
        return self._found.read(self._value.total) if self._found else {}

    def plan(self, seen: Mapping[bytes, bytes]) -> Plan:
        purge, coming = self._params["purge"], self._coming
        needed = self._present and (self._listed or purge)
        unmet = [not_pinned(self._path)] if needed and not self._pinned else []
        if coming and not unmet:
            unmet = [f"The map for {self._path} is still to be made."]
        traits = self._found.traits if self._found else UNKNOWN
        return plan_map(
            os.path.basename(self._path),
            seen,
            self._listed if self._present else {},
            traits_of(coming["type"], coming["max_entries"]) if coming else traits,
            lambda key, value: (self._key.show(key), self._value.show(value)),
            purge=purge,
            unwanted=() if self._present else self._listed,
            order=self._key.order,
            unmet=tuple(unmet),
        )

    def apply(self, operations: tuple[Any, ...]) -> None:
        if self._found:
            self._found.apply(operations, self._key.show)


@contextlib.contextmanager
def opened_entries(params: Params, known: Schemas = (None, None), bulk: BulkList | None = None) -> Iterator[Entries]:
    """``known``: the schemas where the parameters name none. ``bulk``: the entries, where they were set aside."""
    with opened(os.path.normpath(params["map"])) as pinned:
        yield Entries(params, pinned, known, bulk)


def ensure(
    params: Params, check: bool, warn: Warn, known: Schemas = (None, None), bulk: BulkList | None = None
) -> dict[str, Any]:
    with one_run(), opened_entries(params, known, bulk) as wanted:
        return told(converge(wanted, check, warn))
