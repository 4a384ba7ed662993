# SPDX-License-Identifier: GPL-3.0-or-later
"""Entering a named network namespace from this process, and the sysctls that live in one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from .cluster import OUR_NAMESPACE
from .paths import NETNS_DIR

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def path_of(name: str) -> Path:
    """The file that names the namespace, as ``ip netns`` keeps it."""
    return NETNS_DIR / name


def ours() -> list[str]:
    """Every namespace on this machine whose name is one that a lab gives."""
    try:
        return sorted(name for name in os.listdir(NETNS_DIR) if OUR_NAMESPACE.match(name))
    except FileNotFoundError:
        return []


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "setns")


@contextlib.contextmanager
def entered(name: str) -> Iterator[None]:
    """Run the block in the namespace. Only the calling thread moves; sockets made inside stay there for good.

    Raises OSError when there is no such namespace.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(path_of(name), os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(there)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def set_sysctls(name: str, values: Mapping[str, int | str]) -> None:
    """Write sysctls of a namespace; keys are paths below /proc/sys/net, e.g. ``ipv4/ip_forward``."""
    with entered(name):
        for key, value in values.items():
            Path("/proc/sys/net", key).write_text(f"{value}\n", encoding="ascii")


def connect(name: str, address: str, port: int, timeout: float = 5.0) -> socket.socket:
    """A TCP connection opened from inside the namespace. Raises OSError as ``socket.create_connection`` does."""
    with entered(name):
        return socket.create_connection((address, port), timeout=timeout)
