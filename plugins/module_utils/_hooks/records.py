# SPDX-License-Identifier: GPL-3.0-or-later
"""Which clsact qdiscs are ours to remove. The kernel has no room for an owner in a qdisc, so it is noted beside it.

One empty file for each qdisc; all that is known is in its name, so that making it is one atomic step:
``/run/ebpf-overlay/clsact-BOOT-NAMESPACE-IFINDEX-INTERFACE``. A record is made before its qdisc and removed after it.

The first word is the format: ``clsact`` is format 1, ``clsact2`` would be the next one.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.records import unreadable
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.machine import boot_id

DIRECTORY = "/run/ebpf-overlay"
SO_NETNS_COOKIE = 71


def namespace_key() -> str:
    """Names this network namespace: its cookie, which no other gets before the next boot (5.14), else its inode number,
    which may be reused."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        return f"c{struct.unpack('=Q', probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0]}"
    return f"i{os.stat('/proc/self/ns/net').st_ino}"


def records(directory: str = DIRECTORY) -> frozenset[tuple[int, str]]:
    """(ifindex, interface) of the qdiscs noted in this network namespace since this boot.

    Raises :class:`OverlayError` where that cannot be told.
    """
    prefix = _prefix()
    found = set()
    for name in _listed(directory):
        ifindex, _dash, interface = name[len(prefix) :].partition("-") if name.startswith(prefix) else ("", "", "")
        if ifindex.isdigit() and interface:
            found.add((int(ifindex), interface))
        elif name.startswith(prefix) or re.match(r"clsact\d", name):
            raise OverlayError(
                "read which qdiscs are ours", os.path.join(directory, name), "this release does not know its format",
                "Use the release of the collection that wrote it; a reboot removes it.",
            )  # fmt: skip
    return frozenset(found)


def leftover(directory: str = DIRECTORY) -> bool:
    """Whether the folder is there with nothing in it."""
    return os.path.isdir(directory) and not _listed(directory)


def note(ifindex: int, interface: str, directory: str = DIRECTORY) -> None:
    os.makedirs(directory, mode=0o755, exist_ok=True)
    os.close(os.open(_path(ifindex, interface, directory), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def forget(ifindex: int, interface: str, directory: str = DIRECTORY) -> None:
    """Remove the record, and the folder with the last one."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_path(ifindex, interface, directory))
    with contextlib.suppress(OSError):  # somebody else's records are in it
        os.rmdir(directory)


def _path(ifindex: int, interface: str, directory: str) -> str:
    return os.path.join(directory, f"{_prefix()}{ifindex}-{interface}")


def _prefix() -> str:
    return f"clsact-{boot_id()[:8]}-{namespace_key()}-"


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(directory, error) from error
