# SPDX-License-Identifier: GPL-3.0-or-later
"""What is on this network namespace's hooks, as far as a wish concerns it."""

from __future__ import annotations

import errno
import os
import sys
from dataclasses import replace
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.libraries import importable
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import tcx as _tcx
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.bpffs import find_bpffs, not_on_bpffs
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.machine import interface_table
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.rtnl import Dumper
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.tc import PACKAGES
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.traffic import CLSACT, DIRECTIONS, Hook, Link

from . import records as qdisc_records
from .inspect import Programs
from .state import Observed, Program
from .text import ADVICE, PRIVILEGES
from .wish import Wish


class Watch:
    """Looks at everything that a wish concerns; later looks keep to the interfaces of the first.

    Interfaces come and go while a run lasts (workloads start and end). What appears after the first look is the next
    run's business, and what disappears is nobody's: neither may make the verification fail.
    """

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self.loaded = Programs()
        self.first: Observed | None = None

    def observe(self) -> Observed:
        """Raises :class:`OverlayError`."""
        try:
            seen = self._look()
        except OSError as error:
            raise OverlayError(
                "read the traffic-control hooks",
                "this network namespace",
                error,
                ADVICE.get(error.errno or 0, "Run again."),
            ) from error
        self.first = self.first or seen
        gone = {pair for pair in self.first.interfaces.items() if seen.interfaces.get(pair[0]) != pair[1]}
        return replace(
            seen,
            interfaces={
                name: index for name, index in seen.interfaces.items() if self.first.interfaces.get(name) == index
            },
            records=frozenset(pair for pair in seen.records if (pair[1], pair[0]) not in gone),
            dead_pins=tuple(pin for pin in seen.dead_pins if seen is self.first or pin in self.first.dead_pins),
        )

    def _look(self) -> Observed:
        wish = self.wish
        interfaces = interface_table()
        programs = {entry.program: read_program(entry.program) for entry in wish.attachments} if wish.present else {}
        named = {
            (interfaces[name], entry.direction) for entry in wish.attachments for name in entry.matches(interfaces)
        }
        tcx = _tcx.supported()
        pinned = {link.id: link for link in _tcx.pinned_links(wish.links)} if tcx else {}
        revisions, links = self._links(interfaces, named, pinned) if tcx else ({}, [])
        if any(not link.pin for link in links):
            neighbours = _tcx.neighbours(wish.links)
            links = [replace(link, neighbour=not link.pin and link.id in neighbours) for link in links]
        records = qdisc_records.records()
        with Dumper() as dumper:
            qdiscs = {qdisc.ifindex: qdisc for qdisc in dumper.qdiscs() if qdisc.has_hooks}
            complete = self._complete({ifindex for ifindex, _direction in named}, qdiscs, tcx)
            hooks = {(ifindex, way) for ifindex in complete for way in DIRECTIONS} | named
            served = [(qdiscs[ifindex], way) for ifindex, way in sorted(hooks) if ifindex in qdiscs]
            filters = [item for qdisc, way in served for item in dumper.filters(qdisc, way)]
        foreign = {item.program_id for item in filters if item.hook in named and not wish.owns(item)} - {None}
        folders = _tcx.empty_folders(wish.links)
        return Observed(
            interfaces=interfaces,
            qdiscs=qdiscs,
            filters=tuple(filters),
            links=tuple(links),
            complete=frozenset(complete),
            tcx=tcx,
            revisions=revisions,
            records=records,
            dead_pins=tuple(link.pin for link in pinned.values() if link.ifindex == 0),
            empty_directories=(*folders, *([qdisc_records.DIRECTORY] if qdisc_records.leftover() else [])),
            programs=programs,
            codes={number: self.loaded.codes(number) for number in foreign if number} if wish.present else {},
            no_filters=""
            if importable("pyroute2")
            else (f"Filters are changed through pyroute2, which {sys.executable} cannot import: install {PACKAGES}."),
            no_links="" if find_bpffs(wish.links) else not_on_bpffs(wish.links),
            no_pins={pin: _why_missing(pin) for pin, program in programs.items() if program.id is None},
        )

    def _complete(self, named: set[int], qdiscs: dict[int, Any], tcx: bool) -> set[int]:
        """The interfaces whose other direction matters too: a qdisc of ours may become superfluous there."""
        if self.wish.purge:
            return set(qdiscs)
        return named if not self.wish.present or (tcx and self.wish.mechanism != CLSACT) else set()

    def _links(
        self, interfaces: dict[str, int], named: set[Hook], pinned: dict[int, _tcx.PinnedLink]
    ) -> tuple[dict[Hook, int], list[Link]]:
        here = set(interfaces.values())
        hooks = named | {(link.ifindex, link.direction) for link in pinned.values() if link.ifindex in here}
        revisions, links = {}, []
        for hook in sorted(hooks):
            revisions[hook], found = _tcx.links(*hook, pinned)
            links += found
        return revisions, links


def read_program(pin: str) -> Program:
    """What is pinned at ``pin``, without an id when nothing is. Raises :class:`OverlayError` for no program."""
    doing, target = "read a program", f"pin {pin}"
    try:
        descriptor = bpf.obj_get(pin)
    except (FileNotFoundError, NotADirectoryError):
        return Program(pin)
    except OSError as error:
        wrong = "This path is no pin: name a program's pin below a bpffs."
        raise OverlayError(doing, target, error, PRIVILEGES if error.errno == errno.EPERM else wrong) from error
    try:
        kind = bpf.object_kind(descriptor)
        if kind != "bpf-prog":
            raise OverlayError(
                doing, target, f"what is pinned there is no program but a {kind}", "Name a program's pin."
            )
        info = bpf.prog_info(descriptor)
    finally:
        os.close(descriptor)
    if info.type != bpf.PROG_TYPE_SCHED_CLS:
        raise OverlayError(
            doing,
            target,
            f"the program {info.name} is of type {info.type}; TC runs SCHED_CLS ({bpf.PROG_TYPE_SCHED_CLS}) only",
            "Load it as a SCHED_CLS program.",
        )
    return Program(pin, info.id, info.tag, info.map_ids)


def _why_missing(pin: str) -> str:
    if find_bpffs(pin) is None:
        return not_on_bpffs(pin)
    return f"No program is pinned at {pin}: pin it first (ebpf.overlay.bpf_object does), or correct the path."
