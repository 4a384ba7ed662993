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
import sys
from collections.abc import Iterator
from typing import Any

LARGE = 1 << 20  # bytes of arguments; below it nothing is done, and the list shows in the log and in -vvv as usual
_CHUNK = 1 << 18  # bytes decoded at a time


class BulkList:
    """A JSON array of objects without arrays inside, as bytes; decoded while it is read."""

    def __init__(self, text: bytes, start: int, end: int) -> None:
        """``start``: the position after the opening bracket, ``end``: that of the closing one."""
        self._text = text
        self._start = start
        self._end = end

    def blocks(self) -> Iterator[list[Any]]:
        """Lists of some thousand items; can be read once, since the text is let go at the end."""
        text, position = self._text, self._start
        self._text = b""
        collecting = gc.isenabled()
        gc.disable()  # nothing here is cyclic; looking for cycles costs as much as decoding
        try:
            while position < self._end:
                # Without arrays inside, a brace, a comma and a brace stand between two items (or within a string).
                cut = text.rfind(b"}, {", position, position + _CHUNK) if self._end - position > _CHUNK else -1
                cut = cut + 1 if cut > 0 else self._end
                try:
                    block = json.loads(b"[%b]" % text[position:cut])
                except ValueError:  # it was a string
                    block, cut = json.loads(b"[%b]" % text[position : self._end]), self._end
                yield block
                position = cut + 1
        finally:
            if collecting:
                gc.enable()


def set_aside(name: str) -> BulkList | None:
    """Take the list parameter ``name`` out of the arguments, which then hold an empty list; None: it was left alone.

    To be called before AnsibleModule is made. Only a list without lists inside can be cut out without decoding it: it
    ends at its first closing bracket. If the rest is valid JSON with an empty list at that place, the cut was right.
    """
    # Private, and patched by every collection's unit tests: the one place where the arguments lie before they are read.
    basic = sys.modules.get("ansible.module_utils.basic")  # not there: this is no module
    raw = getattr(basic, "_ANSIBLE_ARGS", None)
    if not isinstance(raw, bytes) or len(raw) < LARGE or getattr(basic, "_ANSIBLE_PROFILE", None) != "legacy":
        return None
    opening = re.search(rb'"%b"[ \t\n\r]*:[ \t\n\r]*\[' % name.encode(), raw)
    end = raw.find(b"]", opening.end()) if opening else -1
    if opening is None or end < 0 or not raw[opening.end() : end].strip():
        return None
    rest = raw[: opening.end()] + raw[end:]
    try:
        arguments = json.loads(rest)["ANSIBLE_MODULE_ARGS"]
    except (ValueError, KeyError, TypeError):
        return None
    if arguments.get(name) != []:
        return None
    vars(basic)["_ANSIBLE_ARGS"] = rest
    return BulkList(raw, opening.end(), end)
