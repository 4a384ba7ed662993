# SPDX-License-Identifier: GPL-3.0-or-later
"""Live TCP connections across the lab, kept talking by one process of their own that measures every message.

A message is eight bytes from one end to the other. Both ends begin in turn, so that after a change of path sometimes
the server is the first to speak. What the measuring process itself was late is told apart from what the network took,
and retransmissions, which no busy machine causes here, are counted by the kernel.

>>> with Conversations() as live:
...     live.open(lab.nodes[1], lab.workload(2, 1), TALK_PORT, family=6)
...     time.sleep(5)
...     report = live.report()
"""

from __future__ import annotations

import heapq
import json
import os
import random
import selectors
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from lab.api import Endpoint

_TESTS = Path(__file__).resolve().parent.parent
_REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
# Offsets in struct tcp_info, include/uapi/linux/tcp.h.
_TOTAL_RETRANS, _DSACK_DUPS, _TCP_INFO = 100, 216, 224


@dataclass(frozen=True)
class Report:
    """What a set of conversations went through. Times in seconds.

    ``worst``: longest time that a message took, less what the measuring process was late. ``dead``: conversations that
    ended although nobody ended them, with the reason. ``waiting``: messages that never arrived.
    """

    conversations: int
    messages: int
    worst: float
    late: float
    retransmitted: int
    waiting: int
    dead: tuple[str, ...]

    def unharmed(self, stall: float = 0.2) -> None:
        """AssertionError unless every conversation went on without a reset, a loss or a stall."""
        assert not self.dead, self
        assert not self.waiting, self
        assert self.messages > 0, self
        assert not self.retransmitted, self
        assert self.worst < stall, self

    @property
    def survivors(self) -> int:
        return self.conversations - len(self.dead) - self.waiting


class Conversations:
    """Connections in a process of their own, which ends with this object."""

    def __init__(self, pause: float = 0.05) -> None:
        """``pause``: seconds between a message and the next, at most twice that."""
        ours, theirs = socket.socketpair()
        self._commands = ours
        self._count = 0
        with theirs:
            environment = {**os.environ, "PYTHONPATH": str(_TESTS)}
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fleet.traffic", str(theirs.fileno()), str(pause)],
                pass_fds=[theirs.fileno()], env=environment,
            )  # fmt: skip

    def __enter__(self) -> Conversations:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(
        self, client: Endpoint, server: Endpoint, port: int, *, address: str | None = None, family: int = 4,
        idle: bool = False, http: bool = False,
    ) -> tuple[str, int]:  # fmt: skip
        """A new connection; returns the client's address and port. ``address``: what the client connects to, the
        server's own by default.

        ``idle``: it says nothing until :meth:`wake`. ``http``: the lab's own server is the other end, and only the
        client begins. Raises OSError.
        """
        self._count += 1
        name = f"{self._count} {client.name} to {address or server.name} port {port}, IPv{family}"
        target = address or (server.ipv4 if family == 4 else server.ipv6)
        ends = [client.connect(target, port)] if http else connection(client, server, target, port)
        head = json.dumps({"name": name, "idle": idle}).encode()
        address, port = ends[0].getsockname()[:2]
        socket.send_fds(self._commands, [head], [end.fileno() for end in ends])
        for end in ends:
            end.close()
        assert self._commands.recv(16) == b"taken"
        return address, port

    def wake(self) -> None:
        """From now on the idle ones talk too."""
        self._ask("wake")

    def report(self, grace: float = 2.0) -> Report:
        """What happened since the last report; messages under way get ``grace`` seconds to arrive."""
        answer = self._ask(f"report {grace}")
        return Report(**{**answer, "dead": tuple(answer["dead"])})

    def close(self) -> None:
        self._commands.close()
        self._process.wait(10)

    def _ask(self, command: str) -> Any:
        self._commands.send(command.encode())
        answer = bytearray()
        while not answer.endswith(b"\n"):
            chunk = self._commands.recv(65536)
            assert chunk, "the process of the conversations ended"
            answer += chunk
        return json.loads(answer)


def connection(client: Endpoint, server: Endpoint, address: str, port: int) -> list[socket.socket]:
    """Both ends of a new TCP connection, both of them this process's: the client's first. Raises OSError."""
    with server.socket(socket.AF_INET6) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::", port))
        listener.listen(8)
        listener.settimeout(5)
        one = client.connect(address, port)
        other, __ = listener.accept()
    for end in (one, other):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return [one, other]


def speak(sender: socket.socket, seconds: float) -> None:
    """Send a byte each 10 ms; nobody waits for an answer. Raises OSError."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sender.send(b"x")
        time.sleep(0.01)


def converse(ends: list[socket.socket], seconds: float) -> None:
    """Both send in turn, and each reads what the other said. Raises OSError.

    The messages are longer than those of :func:`speak`: a size that was not seen before asks the kernel first.
    """
    until = time.monotonic() + seconds
    for end in ends:
        end.settimeout(2)
    while time.monotonic() < until:
        for speaker, listener in (ends, ends[::-1]):
            speaker.send(bytes(200))
            assert listener.recv(4096)
        time.sleep(0.005)


class _Conversation:
    def __init__(self, name: str, ends: list[socket.socket], idle: bool) -> None:
        self.name = name
        self.ends = ends
        self.idle = idle
        self.turn = 0  # whose message is next: client, server, server, client, …
        self.sent: float | None = None
        self.late_before = 0.0
        for end in ends:
            end.setblocking(False)

    @property
    def speaker(self) -> int:
        return (0, 1, 1, 0)[self.turn % 4] if len(self.ends) == 2 else 0

    def retransmitted(self) -> int:
        """Segments sent again, without those that the other end had already got: probes after a delayed answer."""
        total = 0
        for end in self.ends:
            info = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO)
            total += struct.unpack_from("I", info, _TOTAL_RETRANS)[0] - struct.unpack_from("I", info, _DSACK_DUPS)[0]
        return total


class _Loop:
    """Everything in one thread, so that a late timer and a late message can be told apart."""

    def __init__(self, commands: socket.socket, pause: float) -> None:
        self.commands = commands
        self.pause = pause
        self.selector = selectors.DefaultSelector()
        self.selector.register(commands, selectors.EVENT_READ)
        self.timers: list[tuple[float, int, _Conversation]] = []
        self.all: list[_Conversation] = []
        self.dead: list[str] = []
        self.messages = 0
        self.worst = self.late = self.late_total = 0.0
        self.retransmitted_before = 0

    def run(self) -> None:
        while True:
            now = time.monotonic()
            until = self.timers[0][0] if self.timers else now + 1
            events = self.selector.select(max(until - now, 0))
            began = time.monotonic()
            # Later than asked for although nothing came in: this process did not run.
            late = max(began - max(until, now), 0) if not events else 0
            self.late, self.late_total = max(self.late, late), self.late_total + late
            for key, __ in events:
                if key.fileobj is self.commands:
                    if not self.command():
                        return
                else:
                    self.arrived(*key.data)
            while self.timers and self.timers[0][0] <= time.monotonic():
                self.speak(heapq.heappop(self.timers)[2])
            # Whatever arrived meanwhile waited for this round.
            busy = time.monotonic() - began
            self.late, self.late_total = max(self.late, busy), self.late_total + busy

    def schedule(self, conversation: _Conversation) -> None:
        heapq.heappush(
            self.timers, (time.monotonic() + random.uniform(0.2, 2) * self.pause, id(conversation), conversation)
        )

    def speak(self, conversation: _Conversation) -> None:
        if conversation.idle or conversation.name in self.dead:
            return
        conversation.sent, conversation.late_before = time.monotonic(), self.late_total
        try:
            conversation.ends[conversation.speaker].send(bytes(8) if len(conversation.ends) == 2 else _REQUEST)
        except OSError as error:
            self.died(conversation, error)

    def arrived(self, conversation: _Conversation, end: int) -> None:
        try:
            data = conversation.ends[end].recv(65536)
            if not data:
                raise ConnectionError("closed")
        except BlockingIOError:
            return  # reported before a report was asked for, which has read it meanwhile
        except OSError as error:
            self.died(conversation, error)
            return
        if conversation.sent is None:
            return  # the rest of an HTTP answer
        taken = time.monotonic() - conversation.sent - (self.late_total - conversation.late_before)
        self.worst = max(self.worst, taken)
        self.messages += 1
        conversation.sent = None
        conversation.turn += 1
        self.schedule(conversation)

    def died(self, conversation: _Conversation, error: OSError) -> None:
        if conversation.name not in self.dead:
            self.dead.append(conversation.name)
            print(f"{conversation.name}: {error}", file=sys.stderr)
        conversation.sent = None
        for end in conversation.ends:
            if end.fileno() in self.selector.get_map():
                self.selector.unregister(end)

    def command(self) -> bool:
        data, descriptors, __, __ = socket.recv_fds(self.commands, 4096, 2)
        if not data:
            return False
        if descriptors:
            self.take(json.loads(data), descriptors)
            self.commands.send(b"taken")
        elif data == b"wake":
            for conversation in self.all:
                if conversation.idle:
                    conversation.idle = False
                    self.schedule(conversation)
            self.commands.send(b"null\n")
        else:
            self.grace(float(data.split()[1]))
            self.commands.send(json.dumps(self.told()).encode() + b"\n")
        return True

    def take(self, head: dict[str, Any], descriptors: list[int]) -> None:
        conversation = _Conversation(head["name"], [socket.socket(fileno=fd) for fd in descriptors], head["idle"])
        for number, end in enumerate(conversation.ends):
            self.selector.register(end, selectors.EVENT_READ, (conversation, number))
        self.all.append(conversation)
        self.schedule(conversation)

    def grace(self, seconds: float) -> None:
        """Nobody speaks, all listen, until nothing is under way."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and any(conversation.sent is not None for conversation in self.all):
            for key, __ in self.selector.select(0.05):
                if key.fileobj is not self.commands:
                    self.arrived(*key.data)

    def told(self) -> dict[str, Any]:
        for conversation in self.all:
            if conversation.sent is not None:
                taken = time.monotonic() - conversation.sent - (self.late_total - conversation.late_before)
                self.worst = max(self.worst, taken)
        retransmitted = sum(conversation.retransmitted() for conversation in self.all)
        report = {
            "conversations": len(self.all),
            "messages": self.messages,
            "worst": round(self.worst, 4),
            "late": round(self.late, 4),
            "retransmitted": retransmitted - self.retransmitted_before,
            "waiting": sum(conversation.sent is not None for conversation in self.all),
            "dead": self.dead,
        }
        self.retransmitted_before = retransmitted
        self.messages, self.worst, self.late = 0, 0.0, 0.0
        return report


if __name__ == "__main__":
    _Loop(socket.socket(fileno=int(sys.argv[1])), float(sys.argv[2])).run()
