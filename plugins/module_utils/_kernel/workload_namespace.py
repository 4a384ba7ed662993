# SPDX-License-Identifier: GPL-3.0-or-later
"""The network namespace behind a workload's interface: found by the veth's other end, and entered by a thread.

The kernel says in which namespace the other end is by a number (IFLA_LINK_NETNSID); the file of that namespace, which a
process or a mount holds, is the one that has the same number (RTM_GETNSID, rtnetlink(7)).
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Callable, TypeVar

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import describe_errno

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_RTM_GETLINK, _RTM_GETNSID = 18, 90
_NLM_F_REQUEST, _NLMSG_ERROR = 1, 2
_IFLA_LINK_NETNSID = 37
_NETNSA_NSID, _NETNSA_FD = 1, 3
_HOLDERS = ("/run/netns/*", "/run/docker/netns/*", "/proc/[0-9]*/ns/net")


class NotEnteredError(Exception):
    """Half a sentence that says why."""


def inside(interface: str, function: Callable[[], T]) -> T:
    """Run ``function`` in the network namespace behind an interface; sockets that it makes stay there.

    Only a thread goes there, and ends there. Raises :class:`NotEnteredError`, and whatever ``function`` raises.
    """
    outcome: list[T] = []
    raised: list[BaseException] = []

    def run(descriptor: int) -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(descriptor, _CLONE_NEWNET):
                raise NotEnteredError(f"its network namespace cannot be entered: {describe_errno(ctypes.get_errno())}")
            outcome.append(function())
        except BaseException as error:  # for the caller, in whose thread it belongs
            raised.append(error)

    with _opened(interface) as descriptor:
        thread = threading.Thread(target=run, args=(descriptor,))
        thread.start()
        thread.join()
    if raised:
        raise raised[0]
    return outcome[0]


@contextlib.contextmanager
def _opened(interface: str) -> Iterator[int]:
    """A descriptor of the namespace."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as netlink:
            wanted = _number_behind(netlink, interface)
            descriptor = _find(netlink, wanted) if wanted >= 0 else None
    except OSError as error:
        raise NotEnteredError(f"the other end of {interface} cannot be found: {error.strerror or error}") from error
    if wanted < 0:
        raise NotEnteredError(f"the other end of {interface} is in no other network namespace")
    if descriptor is None:
        raise NotEnteredError(f"no process or mount holds the network namespace behind {interface}")
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _find(netlink: socket.socket, wanted: int) -> int | None:
    """A descriptor of the namespace that has the number here, if a file of it can be found."""
    own = os.stat("/proc/self/ns/net")
    seen = {own.st_ino}
    for path in (path for pattern in _HOLDERS for path in glob.iglob(pattern)):
        with contextlib.suppress(OSError):  # the process ended meanwhile
            there = os.stat(path)
            if there.st_dev != own.st_dev or there.st_ino in seen:
                continue
            seen.add(there.st_ino)
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if _number_of(netlink, descriptor) == wanted:
                return descriptor
            os.close(descriptor)
    return None


def _number_behind(netlink: socket.socket, interface: str) -> int:
    """The number of the namespace of a link's other end; -1: it is in this one, or there is none."""
    body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, socket.if_nametoindex(interface), 0, 0)
    return _attribute(_ask(netlink, _RTM_GETLINK, body), 16 + len(body), _IFLA_LINK_NETNSID)


def _number_of(netlink: socket.socket, descriptor: int) -> int:
    """The number that a namespace has here; -1: it has none."""
    body = struct.pack("=Bxxx", socket.AF_UNSPEC)
    answer = _ask(netlink, _RTM_GETNSID, body + struct.pack("=HHI", 8, _NETNSA_FD, descriptor))
    return _attribute(answer, 16 + len(body), _NETNSA_NSID)


def _ask(netlink: socket.socket, command: int, body: bytes) -> bytes:
    netlink.send(struct.pack("=IHHII", 16 + len(body), command, _NLM_F_REQUEST, 1, 0) + body)
    answer = netlink.recv(1 << 16)
    if struct.unpack_from("=H", answer, 4)[0] == _NLMSG_ERROR:
        code = -struct.unpack_from("=i", answer, 16)[0]
        raise OSError(code, os.strerror(code))
    return answer


def _attribute(message: bytes, position: int, wanted: int) -> int:
    """An attribute of four bytes, signed; -1 where it is missing."""
    while position + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, position)
        if kind & 0x3FFF == wanted and length == 8:
            return int(struct.unpack_from("=i", message, position + 4)[0])
        position += max((length + 3) & ~3, 4)
    return -1
