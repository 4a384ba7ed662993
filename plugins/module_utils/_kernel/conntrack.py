# SPDX-License-Identifier: GPL-3.0-or-later
"""TCP entries of this network namespace's conntrack, straight by ctnetlink: flagged as liberal, or deleted.

Not through pyroute2, for two reasons: it takes half a minute for 100,000 entries and this takes a second, and a node
must find its way back where that library is gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Collection, Iterator, Mapping
from typing import Callable

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError

NETLINK_NETFILTER = 12
# linux/nfnetlink.h, linux/netfilter/nfnetlink_conntrack.h
CT_NEW, CT_GET, CT_DELETE = 0x100, 0x101, 0x102  # NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_*
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
CTA_TUPLE_ORIG, CTA_PROTOINFO, CTA_ZONE = 1, 4, 18
CTA_PROTOINFO_TCP = 1
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2
_ADDRESSES = (1, 3), (2, 4)  # of source and destination, CTA_IP_V4_* and CTA_IP_V6_*
CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT = 1, 2, 3
TCP_STATE, TCP_FLAGS_ORIGINAL, TCP_FLAGS_REPLY = 1, 4, 5  # CTA_PROTOINFO_TCP_*
NESTED = 0x8000  # NLA_F_NESTED

# linux/netfilter/nf_conntrack_tcp.h: from ESTABLISHED on until both ends have closed, data may still come.
LIVE = (3, 4, 5, 6)  # ESTABLISHED, FIN_WAIT, CLOSE_WAIT, LAST_ACK
BE_LIBERAL = 0x08  # IP_CT_TCP_FLAG_BE_LIBERAL

# Each request may be answered by an error, and the answers must fit into the socket's buffer.
BATCH = 100

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_FAMILY_ONLY = struct.Struct("=BBH")  # struct nfgenmsg: family, version, resource


def flag_live_entries() -> int:
    """Set the flag in both directions of every TCP entry that carries a live connection; returns how many had it not.

    Nothing else of an entry changes (net/netfilter/nf_conntrack_proto_tcp.c, ``nlattr_to_tcp``). Raises
    :class:`OverlayError`.
    """
    try:
        with _opened() as conntrack:
            # Twice: a dump may miss entries that move to another bucket meanwhile (``ctnetlink_dump_table``).
            return sum(_request_all(conntrack, list(_requests(conntrack, _request_for))) for __ in range(2))
    except OSError as error:
        raise _refused("flag the live connections as liberal", error) from error


Connection = frozenset[tuple[bytes, int]]
"""Both ends, address in the network's byte order (4 or 16 bytes) and port, whichever of them began."""


def delete_entries(connections: Collection[Connection]) -> int:
    """Delete the TCP entries of these connections, in every zone; returns how many there were.

    What comes next of such a connection is new to the packet filter. Raises :class:`OverlayError`.
    """

    def request_for(message: memoryview) -> bytes | None:
        attributes = dict(_attributes(message[4:]))
        if _ends(attributes.get(CTA_TUPLE_ORIG, b"")) not in connections:
            return None
        return _request(CT_DELETE, 0, _named(message, attributes))

    try:
        with _opened() as conntrack:
            return sum(_request_all(conntrack, list(_requests(conntrack, request_for))) for __ in range(2))
    except OSError as error:
        raise _refused("delete the entries of connections", error) from error


def _refused(doing: str, error: OSError) -> OverlayError:
    return OverlayError(
        doing,
        "conntrack's table, by ctnetlink",
        error,
        "Run as root (become: true); the kernel needs CONFIG_NF_CT_NETLINK (the module nf_conntrack_netlink).",
    )


@contextlib.contextmanager
def _opened() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as conntrack:
        conntrack.bind((0, 0))
        conntrack.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        yield conntrack


def _requests(conntrack: socket.socket, request_for: Callable[[memoryview], bytes | None]) -> Iterator[bytes]:
    """What ``request_for`` asks for, of every entry for which it asks for something."""
    conntrack.send(_request(CT_GET, NLM_F_DUMP, _FAMILY_ONLY.pack(socket.AF_UNSPEC, 0, 0)))
    while True:
        data = memoryview(conntrack.recv(1 << 17))
        for kind, message in _messages(data):
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR:
                _raise(message)
                return
            request = request_for(message)
            if request:
                yield request


def _request_for(message: memoryview) -> bytes | None:
    """That which sets the flag, for a live TCP entry that lacks it in one direction or both."""
    # struct nfgenmsg takes four bytes of the message.
    attributes = dict(_attributes(message[4:]))
    protocol = dict(_attributes(attributes.get(CTA_PROTOINFO, b"")))
    tcp = dict(_attributes(protocol.get(CTA_PROTOINFO_TCP, b"")))
    if CTA_TUPLE_ORIG not in attributes or TCP_STATE not in tcp or tcp[TCP_STATE][0] not in LIVE:
        return None
    if all(tcp[way][0] & BE_LIBERAL for way in (TCP_FLAGS_ORIGINAL, TCP_FLAGS_REPLY)):
        return None
    return _request(CT_NEW, 0, _named(message, attributes) + _FLAGS)


def _named(message: memoryview, attributes: Mapping[int, memoryview | bytes]) -> bytes:
    """What names this very entry in a request."""
    zone = _attribute(CTA_ZONE, bytes(attributes[CTA_ZONE])) if CTA_ZONE in attributes else b""
    orig = _attribute(CTA_TUPLE_ORIG | NESTED, bytes(attributes[CTA_TUPLE_ORIG]))
    return bytes(message[:1]) + b"\0\0\0" + orig + zone


def _ends(tuple_: memoryview | bytes) -> Connection | None:
    """Of a TCP entry."""
    parts = dict(_attributes(tuple_))
    ip, protocol = (dict(_attributes(parts.get(part, b""))) for part in (CTA_TUPLE_IP, CTA_TUPLE_PROTO))
    if bytes(protocol.get(CTA_PROTO_NUM, b"")) != bytes((socket.IPPROTO_TCP,)):
        return None
    addresses = [next((bytes(ip[kind]) for kind in kinds if kind in ip), b"") for kinds in _ADDRESSES]
    ports = [int.from_bytes(protocol.get(kind, b""), "big") for kind in (CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT)]
    return frozenset(zip(addresses, ports))


def _request_all(conntrack: socket.socket, requests: list[bytes]) -> int:
    """Returns how many of the entries were still there."""
    gone = 0
    for first in range(0, len(requests), BATCH):
        batch = requests[first : first + BATCH]
        # Errors are told without being asked for; the last request asks, so that its answer ends the batch.
        size, kind, flags, _sequence, _port = _HEADER.unpack_from(batch[-1])
        batch[-1] = _HEADER.pack(size, kind, flags | NLM_F_ACK, len(requests), 0) + batch[-1][_HEADER.size :]
        conntrack.send(b"".join(batch))
        gone += _failed(conntrack, len(requests))
    return len(requests) - gone


def _failed(conntrack: socket.socket, last: int) -> int:
    """Read the answers up to that of the request with number ``last``; how many say that the entry is gone."""
    gone = 0
    while True:
        for kind, message in _messages(memoryview(conntrack.recv(1 << 17))):
            if kind != NLMSG_ERROR:
                continue
            code, _size, _kind, _flags, sequence, _port = struct.unpack_from("=iIHHII", message)
            if code == -errno.ENOENT:
                gone += 1
            elif code:
                _raise(message)
            if sequence == last:
                return gone


def _raise(message: memoryview) -> None:
    code = struct.unpack_from("=i", message)[0]
    if code:
        raise OSError(-code, os.strerror(-code))


def _request(kind: int, flags: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST | flags, 0, 0) + body


def _attribute(kind: int, content: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(content), kind) + content + bytes(-len(content) % 4)


def _messages(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    position = 0
    while position < len(data):
        length, kind = struct.unpack_from("=IH", data, position)
        yield kind, data[position + _HEADER.size : position + length]
        position += (length + 3) & ~3


def _attributes(data: memoryview | bytes) -> Iterator[tuple[int, memoryview | bytes]]:
    position = 0
    while position + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, position)
        if length < 4:
            return
        yield kind & 0x3FFF, data[position + 4 : position + length]
        position += (length + 3) & ~3


# struct nf_ct_tcp_flags: flags, mask.
_LIBERAL = bytes((BE_LIBERAL, BE_LIBERAL))
_FLAGS = _attribute(
    CTA_PROTOINFO | NESTED,
    _attribute(
        CTA_PROTOINFO_TCP | NESTED,
        _attribute(TCP_FLAGS_ORIGINAL, _LIBERAL) + _attribute(TCP_FLAGS_REPLY, _LIBERAL),
    ),
)
