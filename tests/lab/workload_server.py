# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs in a workload: an HTTP server on 8080 and a TCP echo on 8081, IPv4 and IPv6 on one socket each.

- ``GET /`` answers with JSON: the workload's name, the client's address and port as seen here, and the path;
- ``GET /bytes/N`` answers with N bytes; ``POST`` answers with the number of bytes received;
- connections stay open (HTTP/1.1) unless the client asks otherwise.

Runs as a script (``workload_server.py NAME``) with nothing but the standard library, to be small: there are many.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable
from typing import BinaryIO

HTTP_PORT = 8080
ECHO_PORT = 8081
_CHUNK = bytes(65536)


def _read_head(reader: BinaryIO) -> tuple[str, str, dict[str, str]] | None:
    """Method, path and headers of the next request; None at the end of the connection or for garbage."""
    words = reader.readline(8192).decode("latin-1").split()
    if len(words) != 3:
        return None
    headers: dict[str, str] = {}
    while True:
        line = reader.readline(8192).decode("latin-1").strip()
        if not line:
            return words[0], words[1], headers
        key, __, value = line.partition(":")
        headers[key.lower()] = value.strip()


def _swallow(reader: BinaryIO, length: int) -> int:
    left = length
    while left > 0:
        chunk = reader.read(min(left, len(_CHUNK)))
        if not chunk:
            break
        left -= len(chunk)
    return length - left


def serve_http(name: str, connection: socket.socket, address: tuple[str, int]) -> None:
    """Answer requests until the client closes the connection."""
    reader = connection.makefile("rb")
    while True:
        request = _read_head(reader)
        if request is None:
            return
        method, path, headers = request
        received = _swallow(reader, int(headers.get("content-length") or 0))
        close = headers.get("connection", "").lower() == "close"
        connection_header = "Connection: close\r\n" if close else ""
        if method == "GET" and path.startswith("/bytes/"):
            length = int(path.rpartition("/")[2])
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n{connection_header}"
            connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
            while length > 0:
                connection.sendall(_CHUNK[:length])
                length -= len(_CHUNK)
        else:
            client = address[0].removeprefix("::ffff:")
            answer = {"workload": name, "client": client, "client_port": address[1], "path": path, "method": method}
            if received:
                answer["received"] = received
            body = json.dumps(answer).encode() + b"\n"
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{connection_header}"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        if close:
            return


def serve_echo(name: str, connection: socket.socket, address: tuple[str, int]) -> None:
    """Send back whatever comes in."""
    del name, address
    while True:
        data = connection.recv(65536)
        if not data:
            return
        connection.sendall(data)


def _handle(serve: Callable[..., None], name: str, connection: socket.socket, address: tuple[str, int]) -> None:
    try:
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            serve(name, connection, address)
    except (OSError, ValueError):
        # The client went away, or sent what is not HTTP: a test did that on purpose.
        return


def _accept(listener: socket.socket, serve: Callable[..., None], name: str) -> None:
    while True:
        connection, address = listener.accept()
        threading.Thread(target=_handle, args=(serve, name, connection, address[:2]), daemon=True).start()


def main(name: str) -> None:
    """Listen on both ports, for good."""
    threading.stack_size(256 * 1024)
    for port, serve in ((ECHO_PORT, serve_echo), (HTTP_PORT, serve_http)):
        listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
        threading.Thread(target=_accept, args=(listener, serve, name)).start()


if __name__ == "__main__":
    main(sys.argv[1])
