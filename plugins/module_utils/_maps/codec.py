# SPDX-License-Identifier: GPL-3.0-or-later
"""Values as people write them <-> the bytes in a map. A schema is data. Pure: interface numbers are handed in.

A schema is one of

- a scalar type: ``ipv4`` ``ipv6`` ``ip`` ``cidr`` ``mac`` ``u8``…``u64`` ``s8``…``s64`` ``be16`` ``be32`` ``be64``
  ``ifindex`` ``bytes:N``, or ``bytes`` for whatever room is left (byte orders: ``scalars``);
- a scalar with names for its numbers: ``{"type": "u32", "labels": ["off", "drain", "on"]}``;
- a struct: a list of ``{"name": …, "type": SCHEMA}``, in order and **packed**. The padding that C puts in is stated,
  as ``{"type": "pad:N"}``.

Speed: a schema is flattened once into leaves, and entries are encoded column by column, so that the loops run in C.
Whatever does not go that way (numbers as text, mistakes) is encoded value by value, which also finds the culprit.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, repeat, starmap
from operator import itemgetter
from typing import Any, Callable

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError

from .scalars import SURPRISES, Scalar, SchemaError, scalar

Schema = Any
BLOCK = 4096  # entries encoded at a time: enough for speed, and little memory beside the result


@dataclass(frozen=True)
class Leaf:
    path: tuple[str, ...]
    offset: int
    scalar: Scalar


def _flatten(
    schema: Schema, room: int | None, interfaces: Mapping[str, int], path: tuple[str, ...], at: int
) -> Iterator[Leaf | int]:
    """Leaves in order, and paddings as plain numbers of bytes."""
    if isinstance(schema, Mapping) and not isinstance(schema.get("type"), str):
        schema = schema.get("type")
    if isinstance(schema, str):
        schema = {"type": schema}
    if isinstance(schema, Mapping):
        left = None if room is None else max(room - at, 0)
        yield Leaf(path, at, scalar(schema["type"], schema, left, interfaces))
        return
    if not isinstance(schema, (list, tuple)) or not schema:
        raise SchemaError(f"{schema!r} is neither a type nor a list of fields")
    names = set()
    for number, field in enumerate(schema):
        if not isinstance(field, Mapping) or "type" not in field:
            raise SchemaError(f"field {number} is not a mapping with name and type")
        pad = re.fullmatch(r"pad:([0-9]+)", field["type"]) if isinstance(field["type"], str) else None
        if pad:
            yield int(pad[1])
            at += int(pad[1])
            continue
        name = field.get("name")
        if not isinstance(name, str) or not name:
            raise SchemaError(f"field {number} has no name")
        if name in names:
            raise SchemaError(f"field {name} is there twice")
        names.add(name)
        last = number == len(schema) - 1
        for leaf in _flatten(field, room if last else None, interfaces, (*path, name), at):
            yield leaf
            at += leaf if isinstance(leaf, int) else leaf.scalar.size


class Codec:
    """A compiled schema. ``size`` in bytes; ``what`` ("key" or "value") names it in errors."""

    def __init__(self, schema: Schema, what: str, room: int | None = None, interfaces: Mapping[str, int] | None = None):
        """``room``: the size that the map has for it; ``interfaces``: name -> ifindex. Raises OverlayError."""
        self.schema = schema
        self.what = what
        self.leaves: list[Leaf] = []
        layout = "="  # native byte order, and no padding but the stated one
        try:
            for part in _flatten(schema, room, interfaces or {}, (), 0):
                if isinstance(part, int):
                    layout += f"{part}x"
                else:
                    self.leaves.append(part)
                    layout += part.scalar.code
            if not self.leaves:
                raise SchemaError("it has no field but padding")
        except SchemaError as error:
            raise OverlayError("understand a schema", what, error, "Correct the schema of the task.") from None
        self._struct = struct.Struct(layout)
        self.size = self._struct.size
        # What to sort encoded values by, so that numbers stand as people count; None: as the bytes are.
        numbers = any(not leaf.scalar.code.endswith("s") for leaf in self.leaves)
        self.order: Callable[[bytes], Any] | None = self._struct.unpack if numbers else None
        self._plain = not self.leaves[0].path
        # Which names each struct in it must have, outer ones first.
        self._fields: dict[tuple[str, ...], set[str]] = {}
        for leaf in self.leaves:
            for depth, name in enumerate(leaf.path):
                self._fields.setdefault(leaf.path[:depth], set()).add(name)

        # A flat struct of plain numbers needs no columns.
        names = [leaf.path[0] for leaf in self.leaves if len(leaf.path) == 1 and leaf.scalar.plain]
        self._row = itemgetter(*names) if 1 < len(names) == len(self.leaves) else None

    # -- one value ----------------------------------------------------------------------------------------------

    def encode(self, value: Any, where: str = "") -> bytes:
        """The bytes of one value; raises OverlayError that names the field below ``where`` (such as entries[3])."""
        where = where or self.what
        for path, names in self._fields.items():
            inner, place = self._pick(value, path), ".".join((where, *path))
            if not isinstance(inner, Mapping):
                raise _refusal(place, f"{inner!r} is not a mapping with {', '.join(sorted(names))}")
            if set(inner) != names:
                missing, extra = sorted(names - set(inner)), sorted(map(str, set(inner) - names))
                told = [f"{', '.join(missing)} missing"] * bool(missing) + [f"{', '.join(extra)} unknown"] * bool(extra)
                raise _refusal(place, " and ".join(told))
        row = []
        for leaf in self.leaves:
            try:
                row.append(leaf.scalar.encode(self._pick(value, leaf.path)))
            except ValueError as error:
                raise _refusal(".".join((where, *leaf.path)), str(error)) from None
        return self._struct.pack(*row)

    @staticmethod
    def _pick(value: Any, path: tuple[str, ...]) -> Any:
        for name in path:
            value = value[name]
        return value

    def decode(self, data: bytes) -> Any:
        """The value as people write it."""
        row = self._struct.unpack(data)
        if self._plain:
            return self.leaves[0].scalar.decode(row[0])
        value: dict[str, Any] = {}
        for leaf, raw in zip(self.leaves, row):
            inner = value
            for name in leaf.path[:-1]:
                inner = inner.setdefault(name, {})
            inner[leaf.path[-1]] = leaf.scalar.decode(raw)
        return value

    def show(self, data: bytes) -> str:
        """One line for people: ``10.0.0.1`` or ``ifindex=cali1 mtu=1500``."""
        return ", ".join(
            f"{'.'.join(leaf.path)}={leaf.scalar.decode(raw)}" if leaf.path else str(leaf.scalar.decode(raw))
            for leaf, raw in zip(self.leaves, self._struct.unpack(data))
        )

    # -- many values --------------------------------------------------------------------------------------------

    def encode_column(self, values: Sequence[Any]) -> list[bytes]:
        """All values at once; raises one of SURPRISES when they are not all plain and right."""
        if not self._plain:
            for path, names in self._fields.items():
                inner = values if not path else [self._pick(value, path) for value in values]
                if set(map(len, inner)) != {len(names)}:
                    raise KeyError
        if self._row:
            try:
                return list(starmap(self._struct.pack, map(self._row, values)))
            except struct.error:  # an interface by its name, perhaps
                pass
        columns = []
        for leaf in self.leaves:
            picked: Iterable[Any] = values
            for name in leaf.path:
                picked = map(itemgetter(name), picked)
            columns.append(leaf.scalar.column(picked if isinstance(picked, list) else list(picked)))
        if self._plain and self._struct.format.endswith("s"):
            return list(columns[0])
        return list(map(self._struct.pack, *columns))

    def total(self, copies: Sequence[bytes]) -> bytes:
        """One value for a per-CPU entry: numbers in host order are summed (and wrap, as counters do).

        Whatever cannot be summed comes from the first copy that is not all zero.
        """
        rows = [self._struct.unpack(copy) for copy in copies]
        first = next((row for row, copy in zip(rows, copies) if any(copy)), rows[0])
        return self._struct.pack(*(
            _wrapped(sum(row[i] for row in rows), leaf.scalar) if leaf.scalar.numeric else first[i]
            for i, leaf in enumerate(self.leaves)
        ))  # fmt: skip


class AsWritten(Codec):
    """Stands in for the schema of a map that is still to be made: bytes that only name the value in a prediction."""

    def __init__(self, what: str) -> None:
        super().__init__("bytes:1", what)

    def encode(self, value: Any, where: str = "") -> bytes:  # noqa: ARG002
        return value.encode() if isinstance(value, str) else json.dumps(value, sort_keys=True).encode()

    def encode_column(self, values: Sequence[Any]) -> list[bytes]:
        return [self.encode(value) for value in values]

    def show(self, data: bytes) -> str:
        return data.decode()


def _wrapped(number: int, scalar: Scalar) -> int:
    number &= (1 << 8 * scalar.size) - 1
    return number - (1 << 8 * scalar.size) if scalar.type[0] == "s" and number >> 8 * scalar.size - 1 else number


def _refusal(place: str, reason: str) -> OverlayError:
    return OverlayError("encode an entry", place, reason, "Correct that entry; nothing was changed.")


def in_blocks(entries: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Entries that are in memory already, cut for :func:`encode_entries`."""
    return (entries[start : start + BLOCK] for start in range(0, len(entries), BLOCK))


_RANGE = re.compile(r"([0-9]+)-([0-9]+)", re.ASCII)
_LONGEST = 1 << 20


def with_ranges(blocks: Iterable[Sequence[Any]], key: Codec) -> Iterator[Sequence[Any]]:
    """Where keys are plain numbers, an entry whose key is such as ``8000-8010`` stands for one with each number."""
    if len(key.leaves) != 1 or key.leaves[0].path or not key.leaves[0].scalar.numeric:
        yield from blocks
        return
    for block in blocks:
        gathered: list[Any] = []
        for entry in block:
            told = entry.get("key") if isinstance(entry, Mapping) else None
            found = _RANGE.fullmatch(told) if isinstance(told, str) else None
            first, last = (int(found[1]), int(found[2])) if found else (0, -1)
            if 0 <= last - first < _LONGEST:
                gathered += [{**entry, "key": number} for number in range(first, last + 1)]
            else:
                gathered.append(entry)
        yield from in_blocks(gathered)


def encode_entries(blocks: Iterable[Sequence[Any]], key: Codec, value: Codec | None) -> dict[bytes, bytes]:
    """Entries ``{"key": …, "value": …}`` -> key bytes: value bytes; without ``value`` only the keys count.

    ``blocks``: the entries in lists of about ``BLOCK``, so that never all of them need to be in memory as objects.
    Raises OverlayError that names the entry by its number and the field, also for a key that is there twice.
    """
    encoded: dict[bytes, bytes] = {}
    start = 0
    for block in blocks:
        try:
            pairs: Iterable[tuple[bytes, bytes]] = _at_once(block, key, value)
        except SURPRISES:
            pairs = _one_by_one(block, start, key, value)
        encoded.update(pairs)
        if len(encoded) != start + len(block):
            raise _twice(encoded, block, start, key)
        start += len(block)
    return encoded


def _at_once(block: Sequence[Any], key: Codec, value: Codec | None) -> Iterable[tuple[bytes, bytes]]:
    if value is None:
        return zip(key.encode_column(list(map(itemgetter("key"), block))), repeat(b""))
    if set(map(len, block)) != {2}:
        raise KeyError
    keys, values = zip(*map(itemgetter("key", "value"), block))
    return zip(key.encode_column(keys), value.encode_column(values))


def _twice(encoded: Mapping[bytes, bytes], block: Sequence[Any], start: int, key: Codec) -> OverlayError:
    seen = set(islice(encoded, start))
    for number, entry in enumerate(block, start):
        raw = key.encode(entry["key"])
        if raw in seen:
            return _refusal(f"entries[{number}].key", f"{key.show(raw)} is there twice")
        seen.add(raw)
    raise AssertionError("no key is there twice")


def _one_by_one(block: Sequence[Any], start: int, key: Codec, value: Codec | None) -> Iterator[tuple[bytes, bytes]]:
    for number, entry in enumerate(block, start):
        where = f"entries[{number}]"
        wanted = {"key", "value"} if value else {"key"}
        if not isinstance(entry, Mapping) or not wanted <= set(entry) <= {"key", "value"}:
            raise _refusal(where, f"{entry!r} is not a mapping with {' and '.join(sorted(wanted))}")
        raw = key.encode(entry["key"], f"{where}.key")
        yield raw, value.encode(entry["value"], f"{where}.value") if value else b""
