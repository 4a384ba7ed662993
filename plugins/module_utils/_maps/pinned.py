# SPDX-License-Identifier: GPL-3.0-or-later
"""Pinned maps of the kernel: open, read everything, write as a transaction."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from struct import iter_unpack
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.bpffs import find_bpffs
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.machine import interface_table
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.map_types import KNOWN, NAMES, map_type

from . import btf
from .codec import AsWritten, Codec
from .plan import UNKNOWN, DeleteEntries, Operation, Traits

BATCH = 16384  # entries per call
PATIENCE = 5.0  # seconds, for a map that changes while it is read

_ADVICE = {
    errno.E2BIG: "The map is full, or the index is beyond it: list fewer entries, or load a larger map.",
    errno.EPERM: "The map is frozen, or the right is missing: run with become, and look at bpf_map_info for frozen.",
    errno.EINVAL: "The kernel refuses this value: look for an interface that is gone or a prefix that is too long.",
    errno.ENOMEM: "Free memory on the host, then run again.",
}


class Entries(Mapping[bytes, bytes]):
    """What a large map held, packed as the kernel gave it; the table is made only for whoever looks into it."""

    def __init__(
        self, key_size: int, value_size: int, blocks: Sequence[tuple[bytes, bytes]], distinct: bool = False
    ) -> None:
        """``distinct``: whoever read the blocks knows that no key is in them twice."""
        self._distinct = distinct
        self._sizes = key_size, value_size
        self._blocks = blocks
        self._table: dict[bytes, bytes] | None = None

    @property
    def table(self) -> dict[bytes, bytes]:
        if self._table is None:
            keys, values = (f"{size}s" for size in self._sizes)
            self._table = {}
            for block in self._blocks:
                columns = iter_unpack(keys, block[0]), iter_unpack(values, block[1])
                self._table.update(zip(*map(chain.from_iterable, columns)))
        return self._table

    def __eq__(self, other: object) -> bool:
        if self._table is not None or not isinstance(other, dict):
            return self.table == other
        # Equal when it has as many pairs as the other, each is in the other, and none is there twice (the hashes of the
        # keys add up to the same). In C and block by block, since most runs end with this comparison.
        count = checksum = 0
        for keys, values in self._blocks:
            block = list(chain.from_iterable(iter_unpack(f"{self._sizes[0]}s", keys)))
            count += len(block)
            checksum += 0 if self._distinct else sum(map(hash, block))
            try:
                if b"".join(map(other.__getitem__, block)) != values:
                    return False
            except KeyError:
                return False
        return count == len(other) and (self._distinct or checksum == sum(map(hash, other)))

    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, key: bytes) -> bytes:
        return self.table[key]

    def __contains__(self, key: object) -> bool:
        return key in self.table

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)

    def items(self) -> ItemsView[bytes, bytes]:
        return self.table.items()


class PinnedMap:
    """An open map. Values are logical: a per-CPU entry has one, the sum over all CPUs (see Codec.total)."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd
        self.info = bpf.map_info(fd)
        self.kind = self.info.kind
        self.indexed = self.kind.indexed
        self.traits = Traits(self.info.max_entries, self.indexed, self.kind.evicts, frozen=bpf.map_frozen(fd))
        self._stride = self.info.value_stride
        self._stepped = False  # read key by key, since the kernel has no batches for it
        # What the map held when it was last read, all CPUs' copies: what a failed write goes back to.
        self._former: Mapping[bytes, bytes] = {}

    # -- read -----------------------------------------------------------------------------------------------------

    def read(self, total: Callable[[Sequence[bytes]], bytes]) -> Mapping[bytes, bytes]:
        """All entries, without an array's slots of zeros. Raises OverlayError.

        ``total`` makes one value of a per-CPU entry's copies. While others write, an entry may be missed or be the
        old one, as in any reader of a live map; it is never torn between two keys, and the loop always ends: after
        four times the steps that a map at rest takes, but not before PATIENCE is over, since on a busy machine the
        writers may get more of the CPU than the reader.
        """
        # A map that changes under the reader may send it back to the start, again and again.
        limit, steps, deadline = 4 * self.info.max_entries + 1024, 0, time.monotonic() + PATIENCE
        blocks = []
        try:
            for keys, values in self._blocks():
                steps += max(len(keys) // self.info.key_size, 1)
                if any(values) or (keys and not self.indexed):
                    blocks.append((keys, values))
                if steps > limit and time.monotonic() > deadline:
                    raise OverlayError(
                        "read a map", self.path, f"it changes faster than it can be read ({steps} entries so far)",
                        "Stop what adds and removes its entries, then run again.",
                    )  # fmt: skip
        except OSError as error:
            raise _refused("read a map", self.path, error) from error
        distinct = self.kind.hashed and not self._stepped
        entries: Mapping[bytes, bytes] = Entries(self.info.key_size, self._stride, blocks, distinct)
        if self.indexed:
            entries = {key: value for key, value in entries.items() if any(value)}
        self._former = entries
        if self.info.per_cpu:
            return {key: total(self._copies(value)) for key, value in entries.items()}
        return entries

    def _blocks(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values, packed; in batches where the kernel has them for this map, one by one elsewhere."""
        size = self.info.key_size
        try:
            yield from bpf.map_lookup_batch(self.fd, size, self._stride)
        except OSError as error:
            if error.errno not in (bpf.ENOTSUPP, errno.EINVAL, errno.EINTR):
                raise
        else:
            return
        if self.indexed:
            yield from bpf.map_lookup_slots(self.fd, self.info.max_entries, self._stride)
            return
        self._stepped = True
        yield from self._walk()

    def _walk(self) -> Iterator[tuple[bytes, bytes]]:
        """Key by key, then their values; an empty pair for a step on the way.

        After a key that is gone the kernel starts anew with the first one (htab_map_get_next_key, trie_get_next_key).
        To go on from there would never end on a busy map, so the walk goes on from the last key that is still there. It
        does nothing between two steps: the less time a key has to go away, the surer is the next step.
        """
        size = self.info.key_size
        seen: dict[bytes, None] = {}
        trail: list[bytes] = []
        key = bpf.map_next_key(self.fd, None, size)
        while key is not None:
            following = bpf.map_next_key(self.fd, key, size)
            if key not in seen:
                seen[key] = None
                trail.append(key)
            if following in seen and following == bpf.map_next_key(self.fd, None, size):  # sent back
                while trail and bpf.map_lookup(self.fd, trail[-1], self._stride) is None:
                    trail.pop()
                following = bpf.map_next_key(self.fd, trail[-1] if trail else None, size)
            key = following
            yield b"", b""
        for key in seen:
            value = bpf.map_lookup(self.fd, key, self._stride)
            if value is not None:
                yield key, value

    def _copies(self, value: bytes) -> list[bytes]:
        slot = self._stride // bpf.possible_cpus()
        return [value[start : start + self.info.value_size] for start in range(0, self._stride, slot)]

    # -- write ----------------------------------------------------------------------------------------------------

    def apply(self, operations: Iterable[Operation], show: Callable[[bytes], str]) -> None:
        """All of it or nothing: when a write fails, what this call wrote before it is undone.

        The state to go back to is that of the last :meth:`read`. ``show`` turns a key into text for the error.
        """
        touched: list[bytes] = []
        try:
            for operation in operations:
                if isinstance(operation, DeleteEntries):
                    zeros = (bytes(self._stride),) * len(operation.keys)
                    self._each(operation.keys, zeros if self.indexed else None, touched)
                else:
                    values = operation.values
                    if self.info.per_cpu:  # on CPU 0, and zeros on the others, so that the sum is the value
                        values = tuple(value.ljust(self._stride, b"\0") for value in values)
                    self._each(operation.keys, values, touched)
        except _WriteError as failed:
            lost = self._restore(touched)
            advice = _ADVICE.get(failed.error.errno or 0, "Look at the kernel's log, then run again.")
            undone = f"{lost} entries could not be restored: run again." if lost else "The former content was restored."
            raise OverlayError(
                "write to a map", f"{self.path}, entry {show(failed.key)}", failed.error, f"{advice} {undone}"
            ) from failed.error

    def _each(self, keys: Sequence[bytes], values: Sequence[bytes] | None, touched: list[bytes]) -> None:
        """Write (without values: delete) in batches where the kernel has them for this map, one by one elsewhere."""
        for start in range(0, len(keys), BATCH):
            part = keys[start : start + BATCH]
            parts = values[start : start + BATCH] if values is not None else None
            try:
                if parts is None:
                    bpf.map_delete_batch(self.fd, b"".join(part), len(part))
                else:
                    bpf.map_update_batch(self.fd, b"".join(part), b"".join(parts), len(part))
                touched.extend(part)
            except bpf.BatchError as error:
                touched.extend(part[: error.done])
                if error.errno not in (bpf.ENOTSUPP, errno.EINVAL) or error.done:
                    raise _WriteError(part[error.done], error) from error
                self._singly(part, parts, touched)

    def _singly(self, keys: Sequence[bytes], values: Sequence[bytes] | None, touched: list[bytes]) -> None:
        for number, key in enumerate(keys):
            try:
                if values is None:
                    bpf.map_delete(self.fd, key)
                else:
                    bpf.map_update(self.fd, key, values[number])
            except OSError as error:
                raise _WriteError(key, error) from error
            touched.append(key)

    def _restore(self, touched: Iterable[bytes]) -> int:
        """Put back what was there; removals first, since they make room. Returns how many could not be put back."""
        empty = bytes(self._stride) if self.indexed else None
        wanted = {key: self._former.get(key, empty) for key in touched}
        lost = 0
        for key, value in sorted(wanted.items(), key=lambda item: item[1] is not None):
            try:
                if value is None:
                    bpf.map_delete(self.fd, key)
                else:
                    bpf.map_update(self.fd, key, value)
            except OSError:
                lost += 1
        return lost


class _WriteError(Exception):
    def __init__(self, key: bytes, error: OSError) -> None:
        super().__init__(key, error)
        self.key = key
        self.error = error


def _refused(doing: str, path: str, error: OSError) -> OverlayError:
    advice = "Look at the kernel's log, then run again."
    if error.errno in (errno.EPERM, errno.EACCES):
        advice = "Run with become: CAP_BPF (before kernel 5.8 CAP_SYS_ADMIN) and access to the pin are needed."
    return OverlayError(doing, path, error, advice)


@contextlib.contextmanager
def opened(path: str) -> Iterator[PinnedMap | None]:
    """The map pinned at ``path``, or None where nothing is.

    Raises OverlayError for anything else there, and when a later mount hides the pins.
    """
    try:
        fd = bpf.obj_get(path)
    except (FileNotFoundError, NotADirectoryError):
        find_bpffs(path)
        yield None
        return
    except OSError as error:
        raise _refused("open a pinned map", path, error) from error
    try:
        if bpf.object_kind(fd) != "bpf-map":
            raise OverlayError("open a pinned map", path, "it is not a map", "Name the pin of a map, not of a program.")
        found = PinnedMap(path, fd)
        if not found.kind.known:
            raise OverlayError(
                "open a pinned map", path, f"maps of type {found.info.type_name} do not hold entries of this kind",
                f"Known are {', '.join(KNOWN)}.",
            )  # fmt: skip
        yield found
    finally:
        os.close(fd)


def traits_of(type_name: str | None, max_entries: int | None) -> Traits:
    """Those of a map that is still to be made, as far as they are told."""
    if type_name not in NAMES or max_entries is None:
        return UNKNOWN
    kind = map_type(type_name)
    return Traits(max_entries, kind.indexed, kind.evicts)


# -- schemas ------------------------------------------------------------------------------------------------------


def codecs(
    path: str,
    found: PinnedMap | None,
    key: Any,
    value: Any,
    known: tuple[Any, Any] = (None, None),
    fallbacks: tuple[Any, Any] = (None, None),
) -> tuple[Codec, Codec]:
    """How to read keys and values: as told, else as ``known``, the map's BTF, its type or a fallback say.

    Raises OverlayError where nobody knows, and when a schema and the map differ in size.
    """
    interfaces = interface_table()
    seen = [known, *_schemas_of(found)]
    made: list[Codec] = []
    for place, (what, told) in enumerate((("key", key), ("value", value))):
        choices = [told, *(pair[place] for pair in seen), fallbacks[place] if found else None]
        schema = next((choice for choice in choices if choice is not None), None)
        if found is None:
            made.append(Codec(schema, what, None, interfaces) if schema else AsWritten(what))
            continue
        if schema is None:
            raise OverlayError(
                f"encode the {what}s of a map", path, "the kernel has no BTF of it, and it is not one of the overlay's",
                f"State the schema in the parameter {what}.",
            )  # fmt: skip
        size = (found.info.key_size, found.info.value_size)[place]
        codec = Codec(schema, what, size, interfaces)
        if codec.size != size:
            raise OverlayError(
                f"match the {what} schema with the map", path, f"the schema has {codec.size} bytes, the map {size}",
                "Correct the schema; padding that C puts into a struct is stated as pad:N.",
            )  # fmt: skip
        made.append(codec)
    return made[0], made[1]


def _schemas_of(found: PinnedMap | None) -> Iterator[tuple[Any, Any]]:
    if found is None:
        return
    if found.info.btf_id and found.info.btf_value_type_id:
        with contextlib.suppress(btf.BtfError, OSError):
            types = btf.parse(bpf.btf_by_id(found.info.btf_id))
            ids = found.info.btf_key_type_id, found.info.btf_value_type_id
            yield tuple(btf.schema_of(types, id_) if id_ else None for id_ in ids)  # type: ignore[misc]
    if found.indexed:
        yield "u32", None
    if found.kind.devices and found.info.value_size == 4:
        yield None, "ifindex"
