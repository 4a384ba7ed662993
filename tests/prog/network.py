# SPDX-License-Identifier: GPL-3.0-or-later
"""A network namespace for the programs to look around in: interfaces, addresses and routes of a node.

It has no name and holds no process, so that nothing of it is left when the tests end, however they end.
Program tests run in the namespace of the thread that asks for them (bpf_prog_test_run_skb in net/bpf/test_run.c).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Interface:
    name: str
    mac: str
    ifindex: int


# A name, its MAC, and the name of the other end.
LINKS = (
    ("ens47f1", "02:00:00:00:47:01", "wire1"),
    ("ens48f1", "02:00:00:00:48:01", "wire2"),
    ("cali1", "ee:ee:ee:ee:ee:ee", "pod1"),
    ("cali2", "ee:ee:ee:ee:ee:ee", "pod2"),
    ("cali3", "ee:ee:ee:ee:ee:ee", "pod3"),
)
SETUP = """
address add 198.18.0.11/24 dev ens47f1
address add fd00:198:18::11/64 dev ens47f1 nodad
address add 198.19.0.11/24 dev ens48f1
address add fd00:198:19::11/64 dev ens48f1 nodad
route add 10.244.1.10/32 dev cali1 scope link
route add 10.244.1.11/32 dev cali2 scope link
route add fd00:10:244:1::10/128 dev cali1
route add fd00:10:244:1::11/128 dev cali2
route add 10.244.2.0/24 via 198.18.0.12
route add fd00:10:244:2::/64 via fd00:198:18::12
route add 10.244.3.0/24 via inet6 fd00:198:18::13 dev ens47f1
route add 10.244.4.0/24 via 198.18.0.14 mtu lock 1400
route add fd00:10:244:4::/64 via fd00:198:18::14 mtu lock 1400
"""


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments):
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


@contextlib.contextmanager
def inside(namespace: int) -> Iterator[None]:
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _call("setns", namespace, CLONE_NEWNET)
        try:
            yield
        finally:
            _call("setns", home, CLONE_NEWNET)
    finally:
        os.close(home)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def create() -> int:
    """A file descriptor of a new namespace, with the links and routes above."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _call("unshare", CLONE_NEWNET)
        namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        _build()
    finally:
        _call("setns", home, CLONE_NEWNET)
        os.close(home)
    return namespace


def _build() -> None:
    for family in ("ipv4", "ipv6"):
        Path(f"/proc/sys/net/{family}/conf/all/forwarding").write_text("1")
    lines = ["link set lo up"]
    for name, address, other in LINKS:
        lines.append(f"link add {name} address {address} type veth peer name {other}")
        lines += [f"link set {name} up", f"link set {other} up"]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines) + SETUP, text=True, check=True)


def interfaces() -> dict[str, Interface]:
    """Of the namespace that the caller is in."""
    return {name: Interface(name, address, socket.if_nametoindex(name)) for name, address, __ in LINKS}
