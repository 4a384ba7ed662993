# SPDX-License-Identifier: GPL-3.0-or-later
"""What hangs on the traffic-control hooks of a network namespace, as data. Pure."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.traffic import Filter, Hook, Link, Qdisc

from .verdict import Values

LAST = 60000
"""The priority of our filters where nobody gives another: behind those of everybody else. tc(8) and agents choose low
numbers, and the kernel itself none above 49152 (net/sched/cls_api.c, ``tcf_auto_prio``)."""


@dataclass(frozen=True)
class Program:
    """A program by its pin. ``id`` is None while the pin does not exist (a dry run on a node without it)."""

    pin: str
    id: int | None = None
    tag: str = ""
    map_ids: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return os.path.basename(self.pin)


@dataclass(frozen=True)
class Observed:
    """One look at a network namespace, as much of it as a task needs.

    ``filters`` and ``links`` hold for each hook everything in running order, whoever owns it.
    ``complete``: interfaces whose hooks of both directions were read.
    ``revisions``: of the TCX hooks that were read; empty where the kernel has no TCX.
    ``records``: (ifindex, name) of the clsact qdiscs that we noted as ours.
    ``dead_pins``: pins of this owner whose link lost its interface.
    ``no_filters``, ``no_links``, ``no_pins`` (by pin): why these cannot be attached, a sentence each.
    ``codes``: what the programs of others' filters can return, by program id; None or missing where that is not known.
    ``empty_directories``: of ours, with nothing in them: an earlier run was killed before it could remove them.
    """

    interfaces: dict[str, int] = field(default_factory=dict)
    qdiscs: dict[int, Qdisc] = field(default_factory=dict)
    filters: tuple[Filter, ...] = ()
    links: tuple[Link, ...] = ()
    complete: frozenset[int] = frozenset()
    tcx: bool = False
    revisions: dict[Hook, int] = field(default_factory=dict)
    records: frozenset[tuple[int, str]] = frozenset()
    dead_pins: tuple[str, ...] = ()
    empty_directories: tuple[str, ...] = ()
    programs: dict[str, Program] = field(default_factory=dict)
    codes: dict[int, Values] = field(default_factory=dict)
    no_filters: str = ""
    no_links: str = ""
    no_pins: dict[str, str] = field(default_factory=dict)
