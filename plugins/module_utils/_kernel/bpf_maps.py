# SPDX-License-Identifier: GPL-3.0-or-later
"""bpf(2) through ctypes, one function per command. No library but libc, so it also works where bcc is missing.

Every function raises :class:`OSError` with the kernel's errno, and knows nothing of what the bytes mean.
Programs and links live in ``bpf_programs``; their names are importable from here as well.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from .bpf_programs import (
    ATTACH_TCX_EGRESS,
    ATTACH_TCX_INGRESS,
    F_AFTER,
    F_BEFORE,
    F_ID,
    F_LINK,
    F_REPLACE,
    LINK_TYPE_TCX,
    PROG_TYPE_SCHED_CLS,
    LinkInfo,
    ProgInfo,
    VerifierError,
    link_create_tcx,
    link_detach,
    link_info,
    link_update,
    prog_info,
    prog_load,
    prog_query_tcx,
    prog_test_run,
)
from .call import (
    BTF_GET_FD_BY_ID,
    BTF_LOAD,
    LINK_GET_FD_BY_ID,
    LINK_GET_NEXT_ID,
    MAP_CREATE,
    MAP_DELETE_BATCH,
    MAP_DELETE_ELEM,
    MAP_FREEZE,
    MAP_GET_FD_BY_ID,
    MAP_GET_NEXT_ID,
    MAP_GET_NEXT_KEY,
    MAP_LOOKUP_BATCH,
    MAP_LOOKUP_ELEM,
    MAP_UPDATE_BATCH,
    MAP_UPDATE_ELEM,
    MUTATING,
    OBJ_GET,
    OBJ_PIN,
    PROG_GET_FD_BY_ID,
    PROG_GET_NEXT_ID,
    address,
    attribute,
    bpf,
    buffer_of,
    object_info,
    object_name,
)
from .map_types import NAMES, MapType, map_type, name_of

# Programs and links are passed on, so that callers need one import and no knowledge of the split.
__all__ = [
    "ATTACH_TCX_EGRESS", "ATTACH_TCX_INGRESS", "F_AFTER", "F_BEFORE", "F_ID", "F_LINK", "F_REPLACE", "LINK_TYPE_TCX",
    "MUTATING", "PROG_TYPE_SCHED_CLS", "LinkInfo", "ProgInfo", "VerifierError", "link_create_tcx", "link_detach",
    "link_info", "link_update", "prog_info", "prog_load", "prog_query_tcx", "prog_test_run",
]  # fmt: skip

MAP_TYPE_HASH, MAP_TYPE_ARRAY, MAP_TYPE_PROG_ARRAY = map(NAMES.index, ("hash", "array", "prog_array"))
MAP_TYPE_PERCPU_HASH, MAP_TYPE_PERCPU_ARRAY = map(NAMES.index, ("percpu_hash", "percpu_array"))
MAP_TYPE_LRU_HASH, MAP_TYPE_LRU_PERCPU_HASH = map(NAMES.index, ("lru_hash", "lru_percpu_hash"))
MAP_TYPE_LPM_TRIE, MAP_TYPE_DEVMAP, MAP_TYPE_DEVMAP_HASH = map(NAMES.index, ("lpm_trie", "devmap", "devmap_hash"))

BPF_ANY, BPF_NOEXIST, BPF_EXIST = 0, 1, 2
F_NO_PREALLOC = 1
F_RDONLY_PROG = 1 << 7
ENOTSUPP = 524  # internal to the kernel, leaks out of the batch commands; errno.h does not have it


class BatchError(OSError):
    """A batch stopped half way; ``done`` says how many of its entries were written (or deleted) before that."""

    def __init__(self, number: int, done: int) -> None:
        super().__init__(number, os.strerror(number))
        self.done = done


@dataclass(frozen=True)
class MapInfo:
    id: int
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str
    btf_id: int
    btf_key_type_id: int
    btf_value_type_id: int

    @property
    def type_name(self) -> str:
        return name_of(self.type)

    @property
    def kind(self) -> MapType:
        return map_type(self.type_name)

    @property
    def per_cpu(self) -> bool:
        return self.kind.per_cpu

    @property
    def value_stride(self) -> int:
        """Bytes that one value takes in a system call: per-CPU maps hand over all CPUs' copies, each padded to 8."""
        return (self.value_size + 7) // 8 * 8 * possible_cpus() if self.per_cpu else self.value_size


def possible_cpus() -> int:
    """How many CPUs this machine could ever have: that many copies a per-CPU value has (num_possible_cpus)."""
    with open("/sys/devices/system/cpu/possible", encoding="ascii") as file:
        return int(file.read().strip().split(",")[-1].split("-")[-1]) + 1


# -- pins ---------------------------------------------------------------------------------------------------------


def obj_get(path: str) -> int:
    """A new file descriptor of the pinned object; ENOENT where nothing is pinned, EINVAL/EACCES outside a bpffs."""
    pathname = buffer_of(os.fsencode(path) + b"\0")
    return bpf(OBJ_GET, attribute("QII", address(pathname), 0, 0))


def obj_pin(fd: int, path: str) -> None:
    """Pin; EEXIST when the path is taken, EPERM when it is not below a bpffs."""
    pathname = buffer_of(os.fsencode(path) + b"\0")
    bpf(OBJ_PIN, attribute("QII", address(pathname), fd, 0))


def object_kind(fd: int) -> str:
    """``bpf-map``, ``bpf-prog`` or ``bpf_link``: what a file descriptor stands for."""
    return os.readlink(f"/proc/self/fd/{fd}").rpartition(":")[2]


# -- maps ---------------------------------------------------------------------------------------------------------


def map_create(
    type_: int, key_size: int, value_size: int, max_entries: int, flags: int = 0, name: str = "",
    *, btf_fd: int = 0, btf_key_type_id: int = 0, btf_value_type_id: int = 0,
) -> int:  # fmt: skip
    """A new map; an LPM trie needs ``F_NO_PREALLOC``."""
    packed = struct.pack("=7I16s4I", type_, key_size, value_size, max_entries, flags, 0, 0, object_name(name),
                         0, btf_fd, btf_key_type_id, btf_value_type_id)  # fmt: skip
    return bpf(MAP_CREATE, ctypes.create_string_buffer(packed, len(packed)))


def map_lookup(fd: int, key: bytes, value_size: int) -> bytes | None:
    """The value, or None where the map has none. ``value_size``: the stride, for per-CPU maps all CPUs' copies."""
    key_buffer, value = buffer_of(key), ctypes.create_string_buffer(value_size)
    try:
        bpf(MAP_LOOKUP_ELEM, attribute("I4xQQQ", fd, address(key_buffer), address(value), 0))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return value.raw


def map_lookup_slots(fd: int, count: int, value_size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of the slots below ``count`` that hold something, for a kind of array without batches."""
    key, value = ctypes.c_uint32(), ctypes.create_string_buffer(value_size)
    attr = attribute("I4xQQQ", fd, ctypes.addressof(key), address(value), 0)
    for index in range(count):
        key.value = index
        try:
            bpf(MAP_LOOKUP_ELEM, attr)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            continue
        yield bytes(key), value.raw


def map_update(fd: int, key: bytes, value: bytes, flags: int = BPF_ANY) -> None:
    key_buffer, value_buffer = buffer_of(key), buffer_of(value)
    bpf(MAP_UPDATE_ELEM, attribute("I4xQQQ", fd, address(key_buffer), address(value_buffer), flags))


def map_delete(fd: int, key: bytes) -> bool:
    """Whether there was something to delete. Arrays answer EINVAL: their slots cannot go away."""
    key_buffer = buffer_of(key)
    try:
        bpf(MAP_DELETE_ELEM, attribute("I4xQQQ", fd, address(key_buffer), 0, 0))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def map_next_key(fd: int, key: bytes | None, key_size: int) -> bytes | None:
    """The key after ``key``; the first one for None, and also where ``key`` is no longer in a hash."""
    key_buffer = None if key is None else buffer_of(key)
    following = ctypes.create_string_buffer(key_size)
    try:
        bpf(MAP_GET_NEXT_KEY, attribute("I4xQQQ", fd, address(key_buffer), address(following), 0))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return following.raw


def map_freeze(fd: int) -> None:
    """No write from user space from now on (5.2); it cannot be undone."""
    bpf(MAP_FREEZE, attribute("I", fd))


def map_frozen(fd: int) -> bool:
    """Whether user space may no longer write (fdinfo is the only place where the kernel says so)."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        return any(line.split() == ["frozen:", "1"] for line in file)


def _batch(
    command: int, fd: int, keys: int, values: int, count: int, *, cursors: tuple[int, int] = (0, 0)
) -> tuple[int, int]:
    """(entries done, errno or 0)."""
    attr = attribute("QQQQIIQQ", cursors[0], cursors[1], keys, values, count, fd, 0, 0)
    code = 0
    try:
        bpf(command, attr)
    except OSError as error:
        code = error.errno or 0
    done = struct.unpack_from("=I", attr, 32)[0]
    # A call refused before its loop leaves the count as it was; a write that failed within never did all of them.
    return (0 if code and done >= count and command != MAP_LOOKUP_BATCH else done), code


def map_lookup_batch(fd: int, key_size: int, value_size: int, count: int = 8192) -> Iterator[tuple[bytes, bytes]]:
    """Blocks of (keys, values), each packed back to back; ENOTSUPP where this map type has no batches.

    A trie that changes meanwhile may yield a key twice. ``value_size`` is the stride.
    """
    # Hash maps keep a 4-byte bucket number in the cursor, the others a whole key.
    cursor, following = (ctypes.create_string_buffer(max(key_size, 8)) for __ in range(2))
    keys, values = (ctypes.create_string_buffer(count * size) for size in (key_size, value_size))
    first, code = True, 0
    while code != errno.ENOENT:
        cursors = 0 if first else address(cursor), address(following)
        done, code = _batch(MAP_LOOKUP_BATCH, fd, address(keys), address(values), count, cursors=cursors)
        if code == errno.ENOSPC:  # one bucket holds more than fits
            count *= 2
            keys, values = (ctypes.create_string_buffer(count * size) for size in (key_size, value_size))
            continue
        # EINTR: up to 5.x the kernel gave up on a trie that changed under it, with what it had until then.
        if code not in (0, errno.ENOENT) and not (code == errno.EINTR and done):
            raise OSError(code, os.strerror(code))
        if done:
            yield ctypes.string_at(keys, done * key_size), ctypes.string_at(values, done * value_size)
        cursor, following, first = following, cursor, False


def map_update_batch(fd: int, keys: bytes, values: bytes, count: int) -> None:
    """Write ``count`` entries packed back to back; BatchError says how many were written before a failure."""
    key_buffer, value_buffer = buffer_of(keys), buffer_of(values)
    done, code = _batch(MAP_UPDATE_BATCH, fd, address(key_buffer), address(value_buffer), count)
    if code:
        raise BatchError(code, done)


def map_delete_batch(fd: int, keys: bytes, count: int) -> int:
    """Delete; keys that are already gone are skipped. Returns how many were there."""
    size, position, deleted = len(keys) // max(count, 1), 0, 0
    buffer = buffer_of(keys)
    while position < count:
        done, code = _batch(MAP_DELETE_BATCH, fd, address(buffer) + position * size, 0, count - position)
        deleted += done
        position += done
        if code == errno.ENOENT:
            position += 1
        elif code:
            raise BatchError(code, position)
    return deleted


# -- objects by id ------------------------------------------------------------------------------------------------


def _by_id(command: int, id_: int) -> int:
    return bpf(command, attribute("III", id_, 0, 0))


def _next_id(command: int, id_: int) -> int | None:
    attr = attribute("III", id_, 0, 0)
    try:
        bpf(command, attr)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return int(struct.unpack_from("=I", attr, 4)[0])


def prog_fd_by_id(id_: int) -> int:
    return _by_id(PROG_GET_FD_BY_ID, id_)


def map_fd_by_id(id_: int) -> int:
    return _by_id(MAP_GET_FD_BY_ID, id_)


def link_fd_by_id(id_: int) -> int:
    return _by_id(LINK_GET_FD_BY_ID, id_)


def btf_fd_by_id(id_: int) -> int:
    return _by_id(BTF_GET_FD_BY_ID, id_)


def next_prog_id(id_: int = 0) -> int | None:
    return _next_id(PROG_GET_NEXT_ID, id_)


def next_map_id(id_: int = 0) -> int | None:
    return _next_id(MAP_GET_NEXT_ID, id_)


def next_link_id(id_: int = 0) -> int | None:
    return _next_id(LINK_GET_NEXT_ID, id_)


def map_info(fd: int) -> MapInfo:
    type_, id_, key_size, value_size, max_entries, flags, name, btf_id, key_type, value_type = struct.unpack(
        "=6I16s24x3I4x", object_info(fd, 80)
    )
    name = name.rstrip(b"\0").decode(errors="replace")
    return MapInfo(id_, type_, key_size, value_size, max_entries, flags, name, btf_id, key_type, value_type)


def btf_load(data: bytes) -> int:
    """A BTF object that maps can refer to when they are created."""
    buffer = buffer_of(data)
    return bpf(BTF_LOAD, attribute("QQIII", address(buffer), 0, len(data), 0, 0))


def btf_by_id(id_: int) -> bytes:
    """The raw BTF of the object with this id."""
    fd = btf_fd_by_id(id_)
    try:
        size = struct.unpack_from("=QI", object_info(fd, 16))[1]
        data = ctypes.create_string_buffer(size)
        object_info(fd, 16, struct.pack("=QII", address(data), size, 0))
        return data.raw
    finally:
        os.close(fd)
