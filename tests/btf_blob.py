# SPDX-License-Identifier: GPL-3.0-or-later
"""BTF written by hand, as a compiler would write it (Documentation/bpf/btf.rst)."""

from __future__ import annotations

import struct

INT, PTR, ARRAY, STRUCT, UNION, ENUM, TYPEDEF, CONST = 1, 2, 3, 4, 5, 6, 8, 10


class Blob:
    """Types get their ids in the order in which they are added, from 1 on."""

    def __init__(self) -> None:
        self.types = b""
        self.strings = b"\0"
        self.count = 0

    def _string(self, text: str) -> int:
        if not text:
            return 0
        self.strings += text.encode() + b"\0"
        return len(self.strings) - len(text.encode()) - 1

    def _add(self, name: str, kind: int, size: int, *words: int, members: int = 0, flag: bool = False) -> int:
        info = flag << 31 | kind << 24 | members
        self.types += struct.pack(f"=III{len(words)}I", self._string(name), info, size, *words)
        self.count += 1
        return self.count

    def integer(self, name: str, size: int, signed: bool = False) -> int:
        return self._add(name, INT, size, signed << 24 | 8 * size)

    def refer(self, kind: int, name: str, id_: int) -> int:
        return self._add(name, kind, id_)

    def array(self, element: int, index: int, count: int) -> int:
        return self._add("", ARRAY, 0, element, index, count)

    def record(self, kind: int, name: str, size: int, *members: tuple[str, int, int], bit_fields: bool = False) -> int:
        """``members``: name, type, offset in bytes."""
        words = [word for field, type_, offset in members for word in (self._string(field), type_, 8 * offset)]
        return self._add(name, kind, size, *words, members=len(members), flag=bit_fields)

    def enum(self, name: str, **values: int) -> int:
        words = [word for label, number in values.items() for word in (self._string(label), number)]
        return self._add(name, ENUM, 4, *words, members=len(values))

    def data(self) -> bytes:
        head = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings))
        return head + self.types + self.strings
