# SPDX-License-Identifier: GPL-3.0-or-later
"""The entry into bpf(2): command numbers, the call, the buffers that it takes.

Layouts: ``union bpf_attr`` and ``struct bpf_*_info`` in include/uapi/linux/bpf.h. The attribute is handed over only as
long as its last used field: the kernel takes the missing rest as zero (kernel/bpf/syscall.c, ``__sys_bpf``).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

(
    MAP_CREATE, MAP_LOOKUP_ELEM, MAP_UPDATE_ELEM, MAP_DELETE_ELEM, MAP_GET_NEXT_KEY, PROG_LOAD, OBJ_PIN, OBJ_GET,
    PROG_ATTACH, PROG_DETACH, PROG_TEST_RUN, PROG_GET_NEXT_ID, MAP_GET_NEXT_ID, PROG_GET_FD_BY_ID, MAP_GET_FD_BY_ID,
    OBJ_GET_INFO_BY_FD, PROG_QUERY, RAW_TRACEPOINT_OPEN, BTF_LOAD, BTF_GET_FD_BY_ID, TASK_FD_QUERY,
    MAP_LOOKUP_AND_DELETE_ELEM, MAP_FREEZE, BTF_GET_NEXT_ID, MAP_LOOKUP_BATCH, MAP_LOOKUP_AND_DELETE_BATCH,
    MAP_UPDATE_BATCH, MAP_DELETE_BATCH, LINK_CREATE, LINK_UPDATE, LINK_GET_FD_BY_ID, LINK_GET_NEXT_ID, ENABLE_STATS,
    ITER_CREATE, LINK_DETACH,
) = range(35)  # fmt: skip
MUTATING = frozenset({
    MAP_CREATE, MAP_UPDATE_ELEM, MAP_DELETE_ELEM, PROG_LOAD, OBJ_PIN, PROG_ATTACH, PROG_DETACH, BTF_LOAD, MAP_FREEZE,
    MAP_LOOKUP_AND_DELETE_ELEM, MAP_LOOKUP_AND_DELETE_BATCH, MAP_UPDATE_BATCH, MAP_DELETE_BATCH, LINK_CREATE,
    LINK_UPDATE, LINK_DETACH,
})  # fmt: skip

_SYSCALL_NUMBERS = {
    "x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280, "ppc64le": 361, "ppc64": 361, "s390x": 351,
    "armv7l": 386, "armv6l": 386, "i686": 357, "i386": 357,
}  # fmt: skip
syscall = ctypes.CDLL(None, use_errno=True).syscall


def bpf(command: int, attr: ctypes.Array[ctypes.c_char]) -> int:
    """The system call itself: returns its result, raises OSError. The only place that enters the kernel."""
    number = _SYSCALL_NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"the number of bpf(2) on {platform.machine()} is not known")
    result = int(syscall(number, command, attr, len(attr)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def attribute(layout: str, *fields: int) -> ctypes.Array[ctypes.c_char]:
    packed = struct.pack("=" + layout, *fields)
    return ctypes.create_string_buffer(packed, len(packed))


def buffer_of(data: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(data, max(len(data), 1))


def address(buffer: ctypes.Array[ctypes.c_char] | None) -> int:
    return 0 if buffer is None else ctypes.addressof(buffer)


def object_name(name: str) -> bytes:
    # The kernel takes letters, digits, "_" and "." (bpf_obj_name_cpy), 15 bytes at most.
    allowed = "".join(c if c.isascii() and (c.isalnum() or c in "_.") else "_" for c in name)
    return allowed[:15].encode().ljust(16, b"\0")


def object_info(fd: int, size: int, preset: bytes = b"") -> bytes:
    """``struct bpf_*_info`` of any object, zero where this kernel's is shorter; ``preset``: fields that we fill in."""
    info = ctypes.create_string_buffer(preset, size)
    bpf(OBJ_GET_INFO_BY_FD, attribute("IIQ", fd, size, address(info)))
    return info.raw
