# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules of a packet filter beside the lab's own, and what gets past them."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import time
from collections.abc import Iterator

from lab.api import Endpoint

TABLE = "kernel_owns"


@contextlib.contextmanager
def ruled(node: Endpoint, chains: str) -> Iterator[None]:
    """The block runs with a table ``inet`` of these chains there. Raises LabError with nft's own message."""
    node.host_run(["nft", "-f", "-"], stdin=f"table inet {TABLE} {{\n{chains}\n}}\n")
    try:
        yield
    finally:
        node.host_run(["nft", "delete", "table", "inet", TABLE], check=False)


def forward(*rules: str, priority: str = "filter - 10") -> str:
    """A chain of the FORWARD hook that accepts whatever no rule refuses."""
    lines = "\n".join(rules)
    return f"chain forward {{ type filter hook forward priority {priority}; policy accept;\n{lines}\n}}"


def attempts(client: Endpoint, address: str, port: int, count: int, seconds: float) -> int:
    """How many of ``count`` connections, begun at once, are established after so many seconds.

    More than one second has repeated SYNs in it, which take the kernel's path if the first did not.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    opened = [client.socket(family) for __ in range(count)]
    waiting = select.poll()
    done = 0
    try:
        for one in opened:
            one.setblocking(False)
            assert one.connect_ex((address, port)) in (0, errno.EINPROGRESS)
            waiting.register(one, select.POLLOUT)
        until = time.monotonic() + seconds
        left = {one.fileno(): one for one in opened}
        while left and (rest := until - time.monotonic()) > 0:
            for descriptor, __ in waiting.poll(rest * 1000):
                waiting.unregister(descriptor)
                done += left.pop(descriptor).getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    finally:
        for one in opened:
            # A reset: nothing of this test goes on talking.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()
    return done
