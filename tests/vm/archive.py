# SPDX-License-Identifier: GPL-3.0-or-later
"""The archive format of an initrd (Documentation/driver-api/early-userspace/buffer-format.rst). Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping

_FOLDER, _FILE = 0o040755, 0o100755


def pack(files: Mapping[str, bytes], folders: Iterable[str] = ()) -> bytes:
    """``files`` by their paths, executable, and their folders, as an archive. Several of them may follow each other."""
    made = set(folders)
    for name in files:
        while name := posixpath.dirname(name):
            made.add(name)
    members = [(name, _FOLDER, b"") for name in sorted(made)]
    members += [(name, _FILE, content) for name, content in files.items()]
    packed = bytearray()
    for number, (name, mode, content) in enumerate(members, 1):
        packed += _member(number, name, mode, content)
    packed += _member(0, "TRAILER!!!", 0, b"")
    return bytes(packed) + bytes(-len(packed) % 512)


def _member(number: int, name: str, mode: int, content: bytes) -> bytes:
    # inode, mode, uid, gid, links, mtime, size, device (2), special device (2), length of the name, checksum
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)
