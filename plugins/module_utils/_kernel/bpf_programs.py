# SPDX-License-Identifier: GPL-3.0-or-later
"""bpf(2) for programs and TCX links, one function per command."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from dataclasses import dataclass
from typing import Any

from .call import (
    LINK_CREATE,
    LINK_DETACH,
    LINK_UPDATE,
    PROG_LOAD,
    PROG_QUERY,
    PROG_TEST_RUN,
    address,
    attribute,
    bpf,
    buffer_of,
    object_info,
    object_name,
)

PROG_TYPE_SCHED_CLS = 3
ATTACH_TCX_INGRESS = 46
ATTACH_TCX_EGRESS = 47
LINK_TYPE_TCX = 11

F_REPLACE = 1 << 2  # link_update: the link must still run old_prog_fd
F_BEFORE = 1 << 3
F_AFTER = 1 << 4
F_ID = 1 << 5  # the relative is an id, not a file descriptor
F_LINK = 1 << 13  # the relative is a link, not a program


class VerifierError(OSError):
    """The kernel refused a program; ``log`` holds what the verifier wrote, the reason in its last lines."""

    def __init__(self, number: int, log: str) -> None:
        super().__init__(number, os.strerror(number))
        self.log = log


@dataclass(frozen=True)
class ProgInfo:
    id: int
    type: int
    tag: str
    name: str
    map_ids: tuple[int, ...]
    xlated_size: int
    load_time: int
    """Nanoseconds since boot."""
    run_time_ns: int
    run_cnt: int
    """Both stay 0 unless kernel.bpf_stats_enabled is set."""


@dataclass(frozen=True)
class LinkInfo:
    id: int
    type: int
    prog_id: int
    ifindex: int
    """0 unless the link is a TCX link; also 0 once its interface is gone."""
    attach_type: int


def prog_load(
    code: bytes,
    name: str,
    prog_type: int = PROG_TYPE_SCHED_CLS,
    license: bytes = b"GPL",  # noqa: A002 (the name of the field in bpf_attr)
    log_size: int = 1 << 20,
    expected_attach_type: int = 0,
) -> int:
    """Load ``code`` (8 bytes per instruction, map references already file descriptors).

    Raises :class:`VerifierError` with the verifier's log when it refused the program.
    """
    instructions, licence = buffer_of(code), buffer_of(license + b"\0")

    def attempt(level: int, log: ctypes.Array[ctypes.c_char] | None) -> int:
        size = 0 if log is None else len(log)
        head = struct.pack("=IIQQIIQII", prog_type, len(code) // 8, address(instructions), address(licence), level,
                           size, address(log), 0, 0)  # fmt: skip
        attr = head + object_name(name) + struct.pack("=II", 0, expected_attach_type)
        for __ in range(5):  # EAGAIN: the verifier was interrupted; libbpf's sys_bpf_prog_load asks five times too
            try:
                return bpf(PROG_LOAD, ctypes.create_string_buffer(attr, len(attr)))
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    raise
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    try:
        return attempt(0, None)  # a log costs time, and a log too small is an error of its own (ENOSPC)
    except OSError as refused:
        log = ctypes.create_string_buffer(log_size)
        try:
            return attempt(1, log)
        except OSError:
            if not log.value:  # refused before the verifier saw it: no capability, no memory, malformed
                raise refused from None
            raise VerifierError(refused.errno or 0, log.value.decode(errors="replace")) from refused


def prog_test_run(
    fd: int, data_in: bytes, repeat: int = 1, ctx_in: bytes = b"", data_size_out: int | None = None
) -> tuple[int, bytes, int]:
    """Run a program on a packet: (return value, packet afterwards, nanoseconds per round).

    ``ctx_in``: a ``struct __sk_buff``, or nothing. All rounds work on the same packet.
    """
    data, ctx = buffer_of(data_in), buffer_of(ctx_in)
    out = ctypes.create_string_buffer(len(data_in) + 256 if data_size_out is None else max(data_size_out, 1))
    attr = attribute("IIIIQQIIIIQQ", fd, 0, len(data_in), len(out), address(data), address(out), repeat, 0,
                     len(ctx_in), 0, address(ctx) if ctx_in else 0, 0)  # fmt: skip
    bpf(PROG_TEST_RUN, attr)
    retval, _size_in, size_out = struct.unpack_from("=III", attr, 4)
    return retval, out.raw[:size_out], struct.unpack_from("=I", attr, 36)[0]


def prog_info(fd: int) -> ProgInfo:
    def fields(preset: bytes) -> tuple[Any, ...]:
        raw = object_info(fd, 216, preset)
        return struct.unpack("=II8xII16xQIIQ16s", raw[:80]) + struct.unpack_from("=QQ", raw, 192) + (raw[8:16],)

    maps = fields(b"")[6]
    ids = ctypes.create_string_buffer(4 * max(maps, 1))
    # Only the number of map ids and where to put them; every other pointer stays 0, so nothing else is copied.
    type_, id_, _jited, xlated, load_time, _uid, count, _pointer, name, time_ns, runs, tag = fields(
        struct.pack("=52xIQ", maps, address(ids))
    )
    return ProgInfo(
        id_, type_, tag.hex(), name.rstrip(b"\0").decode(errors="replace"),
        struct.unpack_from(f"={min(count, maps)}I", ids), xlated, load_time, time_ns, runs,
    )  # fmt: skip


def link_create_tcx(
    prog_fd: int, ifindex: int, attach_type: int, relative: int = 0, flags: int = 0, expected_revision: int = 0
) -> int:
    """A TCX link (6.6); without ``flags`` it runs last. ESTALE: the chain's revision is another by now.

    ``relative``: a file descriptor or id (``F_ID``) of a program or link (``F_LINK``), with ``F_BEFORE``/``F_AFTER``.
    """
    return bpf(LINK_CREATE, attribute("IIIII4xQ", prog_fd, ifindex, attach_type, flags, relative, expected_revision))


def link_update(link_fd: int, new_prog_fd: int, old_prog_fd: int | None = None) -> None:
    """Swap the program in place; with ``old_prog_fd`` only while the link still runs that one (EPERM otherwise).

    EEXIST: another link on the same hook already runs the new program.
    """
    flags = 0 if old_prog_fd is None else F_REPLACE
    bpf(LINK_UPDATE, attribute("IIII", link_fd, new_prog_fd, flags, old_prog_fd or 0))


def link_detach(link_fd: int) -> None:
    bpf(LINK_DETACH, attribute("I", link_fd))


def link_info(fd: int) -> LinkInfo:
    type_, id_, prog_id, ifindex, attach_type = struct.unpack_from("=III4xII", object_info(fd, 64))
    if type_ != LINK_TYPE_TCX:
        ifindex = attach_type = 0
    return LinkInfo(id_, type_, prog_id, ifindex, attach_type)


def prog_query_tcx(ifindex: int, attach_type: int) -> tuple[int, list[tuple[int, int]]]:
    """(revision, [(program id, link id), …]) in running order; link id 0: attached without a link.

    EINVAL on kernels older than 6.6.
    """
    room = 64  # BPF_MPROG_MAX
    programs, links = ctypes.create_string_buffer(4 * room), ctypes.create_string_buffer(4 * room)
    attr = attribute("IIIIQI4xQQQQ", ifindex, attach_type, 0, 0, address(programs), room, 0, address(links), 0, 0)
    bpf(PROG_QUERY, attr)
    count, revision = struct.unpack_from("=I28xQ", attr, 24)
    return revision, list(zip(struct.unpack_from(f"={count}I", programs), struct.unpack_from(f"={count}I", links)))
