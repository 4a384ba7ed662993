# SPDX-License-Identifier: GPL-3.0-or-later
"""TCP connections over which nothing but keepalives travels, and what the kernel says of them.

A keepalive is a segment without data in front of the next sequence number (RFC 9293 section 3.8.4); the other end
answers it with an acknowledgement, and no server notices. The kernel's own come a second apart at least, which is too
late here: of a direction that was silent for 0.75 s, the datapath gives the first packet to the kernel. So they are
sent by leaving TCP_REPAIR, which sends the same segment (``tcp_send_window_probe`` in net/ipv4/tcp_output.c).
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError

PAUSE = 0.6
"""Seconds between keepalives: the other end answers one in 0.5 s (net.ipv4.tcp_invalid_ratelimit)."""
_STEP = 0.005
_TCP_REPAIR = 19  # include/uapi/linux/tcp.h
# struct tcp_info: tcpi_total_retrans and tcpi_segs_in (Linux 4.2).
_INFO = struct.Struct("=100xI36xI")


@dataclass
class Connection:
    """An open connection. ``sent``, ``answered``: keepalives."""

    socket: socket.socket
    retransmissions: int = 0
    sent: int = 0
    answered: int = 0
    closed: bool = False
    """The other end closed it."""
    _segments: int = 0

    @property
    def local(self) -> tuple[str, int]:
        address, port = self.socket.getsockname()[:2]
        return address, port

    @property
    def remote(self) -> tuple[str, int]:
        address, port = self.socket.getpeername()[:2]
        return address, port

    def send(self) -> None:
        """One keepalive. Raises :class:`OverlayError` for a process that may not."""
        self._look()
        if self.closed:
            return
        try:
            for value in (1, 0):
                self.socket.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, value)
        except OSError as error:
            raise OverlayError(
                "send a keepalive",
                f"a TCP connection from {socket.gethostname()}",
                error,
                "Run as root (become: true): TCP_REPAIR needs CAP_NET_ADMIN.",
            ) from error
        self.sent += 1

    def has_answer(self) -> bool:
        """Whether something came in since the last keepalive, or nothing more will."""
        former = self._segments
        self._look()
        return self.closed or self._segments > former

    def _look(self) -> None:
        told = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
        self.retransmissions, self._segments = _INFO.unpack(told)
        # What the other end says is read, so that the connection does not end with a RST.
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while not self.closed:
                self.closed = self.socket.recv(65536) == b""


def connect(address: str, port: int, timeout: float, source: str = "") -> Connection:
    """Connect from ``source``, in the network namespace of the calling thread. Raises :class:`OSError`."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.settimeout(timeout)
        if source:
            opened.bind((source, 0))
        opened.connect((address, port))
        opened.setblocking(False)
    except BaseException:
        opened.close()
        raise
    return Connection(opened)


def keep_alive(connections: Sequence[Connection], seconds: float, enough: Callable[[], bool] = lambda: False) -> None:
    """A keepalive over each, at once and again until ``seconds`` have passed or it is ``enough``."""
    begun = time.monotonic()
    while True:
        sent = time.monotonic()
        for connection in connections:
            connection.send()
        silent = [connection for connection in connections if not connection.closed]
        while silent and time.monotonic() - sent < PAUSE:
            for connection in [one for one in silent if one.has_answer()]:
                connection.answered += not connection.closed
                silent.remove(connection)
            time.sleep(_STEP if silent else 0)
        over = time.monotonic() - begun + PAUSE > seconds
        if enough() or over or all(connection.closed for connection in connections):
            return
        time.sleep(max(0.0, sent + PAUSE - time.monotonic()))


def why_not(error: OSError, timeout: float) -> str:
    """Why nobody answered: ``no answer within 3 s``, ``EHOSTUNREACH``."""
    if isinstance(error, socket.timeout):
        return f"no answer within {timeout:g} s"
    return errno.errorcode.get(error.errno or 0, str(error))


def report(connection: Connection, **more: Any) -> dict[str, Any]:
    """A connection as a module returns it."""
    return {
        **more,
        "keepalives": connection.sent,
        "answered": connection.answered,
        "retransmissions": connection.retransmissions,
        "closed": connection.closed,
    }
