# SPDX-License-Identifier: GPL-3.0-or-later
"""clsact or TCX for a program on a hook, and why. Pure."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.traffic import CLSACT, TCX, Filter, Hook

from .order import ends_chain, entry_of
from .state import Observed


def choose(asked: str, hook: Hook, interface: str, program: str, takers: list[str], seen: Observed) -> tuple[str, str]:
    """(mechanism, the reason as half a sentence). ``takers``: see :func:`takers_of`.

    ``auto`` prefers TCX, which costs a packet less, unless filters of somebody else may take packets on this hook: TCX
    runs before all filters, and our programs run last. Raises :class:`OverlayError` when the mechanism cannot work on
    this hook.
    """
    _ifindex, direction = hook
    target = f"interface {interface}, {direction}, program {program}"
    why_not = obstacle(hook, seen)
    if asked == TCX:
        if not seen.tcx:
            raise OverlayError(
                "attach a program through TCX",
                target,
                OSError(errno.EOPNOTSUPP, ""),
                "TCX needs kernel 6.6 or newer; use mechanism clsact or auto.",
            )
        return TCX, "asked for"
    if asked == CLSACT:
        if why_not:
            raise OverlayError(
                "attach a program through clsact", target, why_not, "Use mechanism tcx (kernel 6.6 or newer)."
            )
        return CLSACT, "asked for"
    if not seen.tcx:
        if why_not:
            raise OverlayError(
                "attach a program",
                target,
                why_not,
                "This kernel has no TCX (6.6) to go round it: remove or replace that qdisc.",
            )
        return CLSACT, "this kernel has no TCX"
    if why_not:
        return TCX, why_not
    if takers:
        more = f" and {len(takers) - 1} more" if takers[1:] else ""
        return CLSACT, f"TCX would run before what may take packets here: {takers[0]}{more}"
    return TCX, "this kernel has TCX, and no filter of somebody else takes packets on this hook"


def takers_of(filters: Iterable[Filter], seen: Observed) -> list[str]:
    """Which of these filters may end a packet's way, by the names that ``tc_bpf_info`` gives them."""
    entries = [entry_of(item, seen.codes.get(item.program_id or 0)) for item in filters if item.handle]
    return [entry.label for entry in entries if entry.chain == 0 and ends_chain(entry) is not False]


def obstacle(hook: Hook, seen: Observed) -> str:
    """Why no filter of ours can be on this hook; empty when one can."""
    ifindex, direction = hook
    qdisc = seen.qdiscs.get(ifindex)
    if qdisc and not qdisc.serves(direction):
        return "the interface has an ingress qdisc of somebody else, which excludes clsact and has no egress hook"
    if qdisc and qdisc.block(direction):
        return f"the qdisc's filters are shared with other interfaces (block {qdisc.block(direction)})"
    return ""
