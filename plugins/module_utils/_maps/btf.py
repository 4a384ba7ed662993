# SPDX-License-Identifier: GPL-3.0-or-later
"""BTF, the kernel's own description of types -> schemas. Pure. Format: Documentation/bpf/btf.rst.

Whatever a schema cannot say (unions, bit fields, arrays) becomes ``bytes:N``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

_MAGIC = 0xEB9F
INT, ARRAY, STRUCT, UNION, ENUM, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC_PROTO, VAR, DATASEC, DECL_TAG, TYPE_TAG = (
    1, 3, 4, 5, 6, 8, 9, 10, 11, 13, 14, 15, 17, 18
)  # fmt: skip
ENUM64 = 19
# Words of 4 bytes that follow a type: a fixed number, and as many per member.
_EXTRA = {INT: (1, 0), ARRAY: (3, 0), STRUCT: (0, 3), UNION: (0, 3), ENUM: (0, 2), FUNC_PROTO: (0, 2),
          VAR: (1, 0), DATASEC: (0, 3), DECL_TAG: (1, 0), ENUM64: (0, 3)}  # fmt: skip
# Names that say more than the type behind them.
_MEANINGS = {"__be16": "be16", "__be32": "be32", "__be64": "be64", "in_addr": "ipv4", "in6_addr": "ipv6"}
_SIGNED = 1  # BTF_INT_SIGNED


class BtfError(ValueError):
    """BTF that cannot be read, or a type that has no size."""


@dataclass(frozen=True)
class Type:
    name: str
    kind: int
    size: int
    """Bytes for integers, structs and enums; the id of the type behind for typedefs and qualifiers."""
    words: tuple[int, ...]
    members: tuple[str, ...] = ()
    bit_fields: bool = False


def parse(data: bytes) -> list[Type]:
    """All types by id; 0 is void. Raises BtfError."""
    try:
        magic, _version, _flags, header, type_at, type_size, text_at, text_size = struct.unpack_from("=HBBIIIII", data)
        if magic != _MAGIC:
            raise BtfError("it is not BTF of this machine's byte order")
        text = data[header + text_at : header + text_at + text_size]
        types, position = [Type("void", 0, 0, ())], header + type_at
        while position < header + type_at + type_size:
            name, info, size = struct.unpack_from("=III", data, position)
            kind, count = info >> 24 & 0x1F, info & 0xFFFF
            fixed, per_member = _EXTRA.get(kind, (0, 0))
            words = struct.unpack_from(f"={fixed + per_member * count}I", data, position + 12)
            names = words[::per_member] if kind in (STRUCT, UNION, ENUM) else ()
            members = tuple(_string(text, at) for at in names)
            types.append(Type(_string(text, name), kind, size, words, members, bool(info >> 31)))
            position += 12 + 4 * len(words)
    except (struct.error, ValueError) as error:
        raise BtfError(str(error)) from None
    return types


def _string(text: bytes, at: int) -> str:
    return text[at : text.index(b"\0", at)].decode(errors="replace")


def _resolve(types: list[Type], id_: int) -> tuple[Type, str | None]:
    """The type behind typedefs and qualifiers, and the meaning that a name on the way gave it."""
    meaning = None
    for __ in types:
        if id_ >= len(types):
            break
        found = types[id_]
        meaning = meaning or _MEANINGS.get(found.name)
        if found.kind not in (TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG):
            return found, meaning
        id_ = found.size
    raise BtfError(f"type {id_} is not there")


def _size(types: list[Type], id_: int) -> int:
    found, _meaning = _resolve(types, id_)
    if found.kind == ARRAY:
        return found.words[2] * _size(types, found.words[0])
    if found.kind in (INT, STRUCT, UNION, ENUM, ENUM64):
        return found.size
    raise BtfError(f"{found.name or 'a type'} has no place in a map")


def schema_of(types: list[Type], id_: int) -> Any:
    """The schema of a type, paddings stated. Raises BtfError."""
    found, meaning = _resolve(types, id_)
    size = _size(types, id_)
    if meaning:
        return meaning
    if found.kind == INT and size in (1, 2, 4, 8) and found.words[0] & 0xFF == 8 * size:
        return f"{'s' if found.words[0] >> 24 & _SIGNED else 'u'}{8 * size}"
    if found.kind == ENUM and size in (1, 2, 4):
        if found.words[1::2] == tuple(range(len(found.members))):
            return {"type": f"u{8 * size}", "labels": list(found.members)}
        return f"{'s' if found.bit_fields else 'u'}{8 * size}"  # the same flag says "signed" here
    if found.kind == STRUCT and not found.bit_fields and all(found.members) and found.members:
        return _struct_schema(types, found)
    return f"bytes:{size}"


def _struct_schema(types: list[Type], found: Type) -> list[dict[str, Any]]:
    fields: list[dict[str, Any]] = []
    at = 0
    for name, type_id, bits in zip(found.members, found.words[1::3], found.words[2::3]):
        if bits // 8 > at:
            fields.append({"type": f"pad:{bits // 8 - at}"})
        fields.append({"name": name, "type": schema_of(types, type_id)})
        at = bits // 8 + _size(types, type_id)
    if found.size > at:
        fields.append({"type": f"pad:{found.size - at}"})
    return fields
