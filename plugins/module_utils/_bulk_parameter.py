# SPDX-License-Identifier: GPL-3.0-or-later
"""A list parameter too large for AnsibleModule, which copies it twice, writes it to the log and returns it.

With 100,000 entries that takes seconds and 200 MB, for work of half a second and 60 MB. So a large list is taken out of
the arguments before AnsibleModule reads them, and is decoded a block at a time. Where anything about the arguments is
not as expected they are left alone: the result is the same, only slower.
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterator
from typing import Any

from ansible.module_utils import basic

LARGE = 1 << 20  # bytes of arguments; below it nothing is done, and the list shows in the log and in -vvv as usual
_SEPARATOR = re.compile(r"[ \t\n\r]*([,\]])[ \t\n\r]*")


class BulkList:
    """A JSON array in text, decoded while it is read."""

    def __init__(self, text: str, start: int) -> None:
        """``start``: the position after the opening bracket."""
        self._text = text
        self._start = start

    def blocks(self, count: int) -> Iterator[list[Any]]:
        """Lists of up to ``count`` items; can be read again. Raises ValueError when the text is not what it seemed."""
        scan, text, block = json.JSONDecoder().raw_decode, self._text, []
        position, mark = re.compile(r"[ \t\n\r]*").match(text, self._start).end(), ","  # type: ignore[union-attr]
        collecting = gc.isenabled()
        gc.disable()  # nothing here is cyclic; looking for cycles costs as much as decoding
        try:
            while mark == ",":
                item, position = scan(text, position)
                block.append(item)
                found = _SEPARATOR.match(text, position)
                if not found:
                    raise ValueError(f"no separator at {position}")
                mark, position = found[1], found.end()
                if len(block) == count:
                    yield block
                    block = []
            if block:
                yield block
        finally:
            if collecting:
                gc.enable()


def set_aside(name: str) -> BulkList | None:
    """Take the list parameter ``name`` out of the arguments, which then hold an empty list; None: it was left alone.

    To be called before AnsibleModule is made. Only a list without lists inside can be cut out without decoding it: it
    ends at its first closing bracket. If the rest is valid JSON with an empty list at that place, the cut was right.
    """
    # Private, and patched by every collection's unit tests: the one place where the arguments lie before they are read.
    raw = getattr(basic, "_ANSIBLE_ARGS", None)
    if not isinstance(raw, bytes) or len(raw) < LARGE or getattr(basic, "_ANSIBLE_PROFILE", None) != "legacy":
        return None
    text = raw.decode()
    opening = re.search(rf'"{name}"[ \t\n\r]*:[ \t\n\r]*\[', text)
    end = text.find("]", opening.end()) if opening else -1
    if opening is None or end < 0:
        return None
    rest = f"{text[: opening.end()]}{text[end:]}"
    try:
        arguments = json.loads(rest)["ANSIBLE_MODULE_ARGS"]
    except (ValueError, KeyError, TypeError):
        return None
    if arguments.get(name) != []:
        return None
    basic._ANSIBLE_ARGS = rest.encode()
    return BulkList(text, opening.end())
