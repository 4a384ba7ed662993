# SPDX-License-Identifier: GPL-3.0-or-later
"""Read everything that hangs on interfaces' hooks, whoever owns it. Changes nothing and needs no library."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from dataclasses import dataclass
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import tcx as _tcx
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.call import object_info
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.rtnl import Dumper
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.traffic import (
    CLSACT,
    DIRECTIONS,
    PROTOCOL_ALL,
    TCX,
    Qdisc,
    filter_name,
    unescape,
)

from . import records as qdisc_records
from .order import Entry, entry_of, hiders, in_running_order
from .verdict import Values, return_codes

PROTOCOLS = {PROTOCOL_ALL: "all", 0x0800: "ip", 0x86DD: "ipv6", 0x0806: "arp", 0x8100: "802.1Q"}


@dataclass(frozen=True)
class Loaded:
    """A program that runs somewhere; ``codes``: what it can return, None where that is not known."""

    name: str
    tag: str
    map_ids: tuple[int, ...]
    codes: Values


def read_interfaces(interfaces: dict[str, int], bpffs: str, noted: bool = True) -> list[dict[str, Any]]:
    """One dictionary for each of ``interfaces``, by name. ``noted``: whether to look which qdiscs are ours.

    Raises :class:`OSError`, and :class:`OverlayError` for a record that cannot be read.
    """
    programs = Programs()
    owners = _link_owners(bpffs)
    records = qdisc_records.records() if noted else ()
    recorded = {ifindex for ifindex, name in records if interfaces.get(name) == ifindex}
    tcx = _tcx.supported()
    answer = []
    with Dumper() as dumper:
        qdiscs: dict[int, list[Qdisc]] = {}
        for qdisc in dumper.qdiscs():
            qdiscs.setdefault(qdisc.ifindex, []).append(qdisc)
        for name, ifindex in sorted(interfaces.items()):
            here = qdiscs.get(ifindex, [])
            ours = ifindex in recorded
            entry: dict[str, Any] = {
                "name": name,
                "ifindex": ifindex,
                "qdiscs": [_qdisc(qdisc, ours and qdisc.kind == CLSACT) for qdisc in here],
            }
            for direction in DIRECTIONS:
                links = _links(ifindex, direction, owners, programs) if tcx else []
                found = [item for qdisc in here for item in dumper.filters(qdisc, direction)]
                filters = [entry_of(item, programs.codes(item.program_id)) for item in found]
                entry[direction] = _described(in_running_order(links, filters), programs)
            answer.append(entry)
    return answer


def _links(ifindex: int, direction: str, owners: dict[int, tuple[str, str, str]], programs: Programs) -> list[Entry]:
    entries = []
    for link in _tcx.links(ifindex, direction, {})[1]:
        owner, program, pin = owners.get(link.id, ("", "", ""))
        loaded = programs.get(link.program_id)
        name = filter_name(owner, program) if owner else (loaded.name if loaded else "")
        codes = programs.codes(link.program_id)
        entries.append(Entry(TCX, name, owner or None, None, link.id, pin, link.program_id, codes))
    return entries


def _described(entries: list[Entry], programs: Programs) -> list[dict[str, Any]]:
    answer = []
    for entry, (certain, perhaps) in zip(entries, hiders(entries)):
        item, loaded = entry.filter, programs.get(entry.program_id)
        answer.append(
            {
                "mechanism": entry.mechanism,
                "kind": item.kind if item else "bpf",
                "priority": item.priority if item else None,
                "handle": item.handle if item else None,
                "chain": item.chain if item else None,
                "protocol": PROTOCOLS.get(entry.protocol, f"{entry.protocol:#06x}"),
                "name": entry.name or None,
                "owner": entry.owner,
                "link_id": entry.link_id,
                "pin": entry.pin or None,
                "program_id": entry.program_id,
                "program_name": loaded.name if loaded else None,
                "tag": (loaded.tag if loaded else item.tag if item else "") or None,
                "map_ids": list(loaded.map_ids) if loaded else None,
                "direct_action": item.direct_action if item else True,
                "return_codes": None if entry.codes is None else sorted(entry.codes),
                "hidden_by": certain.label if certain else None,
                "may_be_hidden_by": [earlier.label for earlier in perhaps],
            }
        )
    return answer


def _qdisc(qdisc: Qdisc, ours: bool) -> dict[str, Any]:
    return {"kind": qdisc.kind, "handle": _handle(qdisc.handle), "parent": _handle(qdisc.parent), "ours": ours}


def _handle(number: int) -> str:
    """As tc(8) writes it."""
    if number == 0xFFFFFFFF:
        return "root"
    major, minor = number >> 16, number & 0xFFFF
    return f"{major:x}:{minor:x}" if minor else f"{major:x}:"


def _link_owners(bpffs: str) -> dict[int, tuple[str, str, str]]:
    """(owner, program, pin) of all links pinned in the collection's way, by link id."""
    folder = os.path.dirname(_tcx.links_folder(bpffs, ""))
    found = {}
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for owner in os.listdir(folder):
            for link in _tcx.pinned_links(os.path.join(folder, owner)):
                found[link.id] = unescape(owner), link.program, link.pin
    return found


class Programs:
    """Programs by id, each read once: the same one runs on hundreds of interfaces."""

    def __init__(self) -> None:
        self._known: dict[int, Loaded | None] = {}

    def get(self, program_id: int | None) -> Loaded | None:
        if not program_id:
            return None
        if program_id not in self._known:
            self._known[program_id] = _loaded(program_id)
        return self._known[program_id]

    def codes(self, program_id: int | None) -> Values:
        loaded = self.get(program_id)
        return loaded.codes if loaded else None


def _loaded(program_id: int) -> Loaded | None:
    """None where the program went meanwhile, or where we may not look (CAP_SYS_ADMIN)."""
    try:
        descriptor = bpf.prog_fd_by_id(program_id)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EPERM):
            return None
        raise
    try:
        info = bpf.prog_info(descriptor)
        return Loaded(info.name, info.tag, info.map_ids, return_codes(_instructions(descriptor, info.xlated_size)))
    finally:
        os.close(descriptor)


def _instructions(descriptor: int, size: int) -> bytes:
    """The program as the verifier left it; empty where the kernel keeps it to itself (constants blinded)."""
    buffer = ctypes.create_string_buffer(max(size, 8))
    # struct bpf_prog_info: xlated_prog_len at byte 20, xlated_prog_insns at 32.
    raw = object_info(descriptor, 216, struct.pack("=20xI8xQ", size, ctypes.addressof(buffer)))
    length, where = struct.unpack_from("=I8xQ", raw, 20)
    return buffer.raw[: min(size, length)] if where else b""
