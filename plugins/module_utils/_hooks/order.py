# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything on a hook in the order in which it runs, and what never gets its turn. Pure.

Rules (net/core/dev.c ``sch_handle_ingress`` and ``tcx_run``, include/net/tcx.h ``tcx_action_code``, net/sched/cls_bpf.c
``cls_bpf_exec_opcode``, net/sched/cls_api.c ``__tcf_classify``): TCX links run first, each only when the one before
said "next". The qdisc's filters run when the last link that ran said "next" or a code that TCX does not know. Filters
of chain 0 run by ascending priority; filters of other chains only where an action jumps there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.traffic import (
    CLSACT,
    PROTOCOL_ALL,
    TCX,
    Filter,
    owner_of,
)

from .verdict import Values

ENDS = {TCX: frozenset({0, 2, 7}), CLSACT: frozenset({0, 2, 4, 7, 8})}
"""Codes that keep a packet from filters: OK, SHOT, REDIRECT, and for filters STOLEN and TRAP."""
TCX_NEXT = -1
"""The only code of a link after which the next link runs."""


@dataclass(frozen=True)
class Entry:
    """One program or filter on a hook. ``codes``: what its program can return, None where that is not known."""

    mechanism: str
    name: str = ""
    owner: str | None = None
    filter: Filter | None = None
    link_id: int | None = None
    pin: str = ""
    program_id: int | None = None
    codes: Values = None

    @property
    def protocol(self) -> int:
        return self.filter.protocol if self.filter else PROTOCOL_ALL

    @property
    def chain(self) -> int:
        return self.filter.chain if self.filter else 0

    @property
    def label(self) -> str:
        """How another entry names this one."""
        if self.filter is None:
            return f"tcx link {self.link_id} {self.name}".rstrip()
        item = self.filter
        return f"{item.kind} filter priority {item.priority} handle {item.handle:#x} {self.name}".rstrip()


def entry_of(item: Filter, codes: Values) -> Entry:
    owner = owner_of(item.name) if item.kind == "bpf" else None
    return Entry(CLSACT, item.name, owner, item, program_id=item.program_id, codes=codes)


def in_running_order(links: Iterable[Entry], filters: Iterable[Entry]) -> list[Entry]:
    """``links`` and each priority's ``filters`` come in the kernel's order, which is kept."""
    real = [entry for entry in filters if entry.filter and entry.filter.handle]
    return [*links, *sorted(real, key=lambda entry: (entry.chain, entry.filter.priority if entry.filter else 0))]


def hiders(entries: list[Entry]) -> list[tuple[Entry | None, list[Entry]]]:
    """For each entry: the earlier one because of which it never runs, and those that may keep packets from it.

    "Never" is only said when it is certain: the earlier program returns nothing but codes that end the chain, for all
    packets that the later one is meant for. A program whose code depends on the packet, and every filter that is no
    eBPF program, may end the chain.
    """
    answers: list[tuple[Entry | None, list[Entry]]] = []
    for place, entry in enumerate(entries):
        certain: Entry | None = None
        perhaps = []
        for earlier, (hidden_by, _perhaps) in zip(entries[:place], answers):
            if hidden_by or earlier.chain != 0 or entry.chain != 0 or not _share_packets(earlier, entry):
                continue
            ends = ends_chain(earlier, entry.mechanism)
            if ends and _covers(earlier, entry):
                certain = earlier
                break
            if ends is not False:
                perhaps.append(earlier)
        answers.append((certain, [] if certain else perhaps))
    return answers


def ends_chain(entry: Entry, later: str = CLSACT) -> bool | None:
    """Whether a packet's way to links or filters (``later``) behind this entry ends here: always, never, or (None) it
    depends."""
    item = entry.filter
    if item is not None and item.continues:
        return False
    if item is not None and (item.kind != "bpf" or item.has_actions):
        return None
    if item is not None and item.skips_software:
        return False
    if entry.codes is None:
        return None
    if item is not None and not item.direct_action:
        # The program only says whether it matches (not 0); a match without actions is TC_ACT_OK (tcf_exts_exec).
        ending = [code != 0 for code in entry.codes]
    elif later == TCX:
        ending = [code != TCX_NEXT for code in entry.codes]
    else:
        ending = [code in ENDS[entry.mechanism] for code in entry.codes]
    if all(ending):
        return True
    return None if any(ending) else False


def _share_packets(one: Entry, other: Entry) -> bool:
    return PROTOCOL_ALL in (one.protocol, other.protocol) or one.protocol == other.protocol


def _covers(earlier: Entry, later: Entry) -> bool:
    return earlier.protocol in (PROTOCOL_ALL, later.protocol)
