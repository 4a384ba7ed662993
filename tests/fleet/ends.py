# SPDX-License-Identifier: GPL-3.0-or-later
"""Both ends of a connection through the lab, held by the test itself."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

from lab.api import Endpoint

from .datapath import TALK_PORT
from .traffic import connection


def of(endpoint: Endpoint, family: int) -> str:
    """Its address."""
    return endpoint.ipv4 if family == 4 else endpoint.ipv6


@contextlib.contextmanager
def connected(client: Endpoint, server: Endpoint, family: int) -> Iterator[list[socket.socket]]:
    """Client's and server's end, on the fast path as soon as both speak."""
    ends = connection(client, server, of(server, family), TALK_PORT)
    try:
        yield ends
    finally:
        for end in ends:
            end.close()


def transfer(sender: socket.socket, receiver: socket.socket, size: int) -> float:
    """Seconds for ``size`` bytes. Raises TimeoutError when it stands still for ten."""
    sender.settimeout(10)
    receiver.settimeout(10)
    thread = threading.Thread(target=sender.sendall, args=(bytes(size),))
    began = time.monotonic()
    thread.start()
    while size:
        received = len(receiver.recv(1 << 18))
        assert received
        size -= received
    thread.join()
    return time.monotonic() - began
