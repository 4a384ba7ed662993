# SPDX-License-Identifier: GPL-3.0-or-later
"""Dumps of qdiscs and filters, straight from rtnetlink(7).

Not through pyroute2, for two reasons. Its decoder drops the program's tag and id in all versions from 0.5 to 0.9, and
without them nobody can say whether a filter is the right one. And reading this way needs no library, so a dry run tells
the truth on a node where pyroute2 is yet to be installed, and a run that changes nothing never imports it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from types import TracebackType

from .traffic import INGRESS, Filter, Qdisc

NETLINK_ROUTE = 0
RTM_GETQDISC, RTM_GETTFILTER = 38, 46
NLM_F_REQUEST, NLM_F_DUMP, NLM_F_DUMP_INTR = 0x1, 0x300, 0x10
NLMSG_ERROR, NLMSG_DONE = 2, 3
PARENT = {INGRESS: 0xFFFFFFF2, "egress": 0xFFFFFFF3}
"""TC_H_MIN_INGRESS and TC_H_MIN_EGRESS below TC_H_CLSACT; a plain ingress qdisc takes the first as well."""

# linux/rtnetlink.h TCA_*, linux/pkt_cls.h TCA_BPF_*
TCA_KIND, TCA_OPTIONS, TCA_CHAIN, TCA_INGRESS_BLOCK, TCA_EGRESS_BLOCK = 1, 2, 11, 13, 14
TCA_BPF_ACT, TCA_BPF_NAME, TCA_BPF_FLAGS, TCA_BPF_FLAGS_GEN, TCA_BPF_TAG, TCA_BPF_ID = 1, 7, 8, 9, 10, 11
TCA_BPF_FLAG_ACT_DIRECT = 1
TCA_CLS_FLAGS_SKIP_SW = 2
TCA_U32_DIVISOR = 4
ACTIONS = {"bpf": TCA_BPF_ACT, "u32": 7, "flower": 3, "matchall": 2, "basic": 3, "fw": 4}
"""Where a filter's actions are among its options: TCA_U32_ACT, TCA_FLOWER_ACT and so on."""
TCA_ACT_KIND, TCA_ACT_OPTIONS = 1, 2
TCA_GACT_PARMS, TCA_GACT_PROB = 2, 3
TC_ACT_UNSPEC = -1

_TCMSG = struct.Struct("=BxxxiIII")  # family, ifindex, handle, parent, info
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")


Message = tuple[int, int, int, int, dict[int, bytes]]
"""(ifindex, handle, parent, info, attributes) of a ``struct tcmsg``."""


class Dumper:
    """A netlink socket in the network namespace in which it was made. Raises :class:`OSError`."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._sequence = 0

    def __enter__(self) -> Dumper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def qdiscs(self) -> list[Qdisc]:
        """The qdiscs of all interfaces."""
        found = []
        for ifindex, handle, parent, _info, attributes in self._dump(RTM_GETQDISC, 0, 0):
            ingress, egress = (_u32(attributes.get(number)) for number in (TCA_INGRESS_BLOCK, TCA_EGRESS_BLOCK))
            found.append(Qdisc(ifindex, _string(attributes.get(TCA_KIND, b"")), ingress, egress, handle, parent))
        return found

    def filters(self, qdisc: Qdisc, direction: str) -> list[Filter]:
        """The filters of one hook in running order, with the entries (handle 0) that stand for a priority's list.

        Nothing where ``qdisc`` has no such hook. An ingress qdisc must not even be asked for egress: it would list its
        ingress filters once more (net/sched/sch_ingress.c, ``ingress_tcf_block`` ignores the parent's lower half).
        """
        if not qdisc.has_hooks or not qdisc.serves(direction):
            return []
        found = []
        for index, handle, _parent, info, attributes in self._dump(RTM_GETTFILTER, qdisc.ifindex, PARENT[direction]):
            if index == qdisc.ifindex:
                found.append(_filter(index, direction, handle, info, attributes))
        return found

    def _dump(self, command: int, ifindex: int, parent: int) -> list[Message]:
        for __ in range(10):
            entries, interrupted = self._dump_once(command, ifindex, parent)
            if not interrupted:
                return entries
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))  # the tables changed under every attempt

    def _dump_once(self, command: int, ifindex: int, parent: int) -> tuple[list[Message], bool]:
        self._sequence += 1
        body = _TCMSG.pack(0, ifindex, 0, parent, 0)
        self._socket.send(_HEADER.pack(16 + len(body), command, NLM_F_REQUEST | NLM_F_DUMP, self._sequence, 0) + body)
        entries: list[Message] = []
        interrupted = False
        while True:
            data = self._socket.recv(1 << 17)
            position = 0
            while position < len(data):
                length, kind, flags, sequence, _port = _HEADER.unpack_from(data, position)
                message = data[position : position + length]
                position += (length + 3) & ~3
                if sequence != self._sequence:
                    continue  # the rest of a dump that was given up
                interrupted |= bool(flags & NLM_F_DUMP_INTR)
                if kind in (NLMSG_DONE, NLMSG_ERROR):
                    code = struct.unpack_from("=i", message, 16)[0] if length >= 20 else 0
                    if code < 0:
                        raise OSError(-code, os.strerror(-code))
                    return entries, interrupted
                _family, index, handle, parent_, info = _TCMSG.unpack_from(message, 16)
                entries.append((index, handle, parent_, info, dict(_attributes(message, 36))))


def _filter(ifindex: int, direction: str, handle: int, info: int, attributes: dict[int, bytes]) -> Filter:
    kind = _string(attributes.get(TCA_KIND, b""))
    options = dict(_attributes(attributes[TCA_OPTIONS])) if TCA_OPTIONS in attributes else None
    # An entry without options is no filter but the head of its priority's list, whatever handle it shows.
    place = (ifindex, direction, info >> 16, handle if options is not None else 0, socket.ntohs(info & 0xFFFF))
    chain = _u32(attributes.get(TCA_CHAIN))
    if kind == "bpf" and options is not None:
        return Filter(
            *place,
            chain,
            kind,
            _string(options.get(TCA_BPF_NAME, b"")),
            _u32(options[TCA_BPF_ID]) if TCA_BPF_ID in options else None,  # classic BPF has none
            options.get(TCA_BPF_TAG, b"").hex(),
            bool(_u32(options.get(TCA_BPF_FLAGS)) & TCA_BPF_FLAG_ACT_DIRECT),
            bool(options.get(TCA_BPF_ACT)),
            bool(_u32(options.get(TCA_BPF_FLAGS_GEN)) & TCA_CLS_FLAGS_SKIP_SW),
            _continues(kind, options),
        )
    return Filter(*place, chain, kind, continues=options is not None and _continues(kind, options))


def _continues(kind: str, options: dict[int, bytes]) -> bool:
    """Whether no packet's way ends at a filter. Several actions, and those of other kinds, are not looked into."""
    if kind == "u32" and TCA_U32_DIVISOR in options:
        return True
    actions = list(_attributes(options.get(ACTIONS.get(kind, 0), b"")))
    if len(actions) != 1:
        return False
    action = dict(_attributes(actions[0][1]))
    more = dict(_attributes(action.get(TCA_ACT_OPTIONS, b"")))
    # struct tc_gact begins with index, capabilities and the code.
    code = more.get(TCA_GACT_PARMS, b"")[8:12]
    plain = _string(action.get(TCA_ACT_KIND, b"")) == "gact" and TCA_GACT_PROB not in more
    return plain and len(code) == 4 and struct.unpack("=i", code)[0] == TC_ACT_UNSPEC


def _attributes(data: bytes, position: int = 0) -> Iterator[tuple[int, bytes]]:
    while position + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, position)
        if length < 4:
            return
        yield kind & 0x3FFF, data[position + 4 : position + length]
        position += (length + 3) & ~3


def _string(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="replace")


def _u32(data: bytes | None) -> int:
    return int(struct.unpack("=I", data)[0]) if data and len(data) == 4 else 0
