# SPDX-License-Identifier: GPL-3.0-or-later
"""clsact or TCX for a program on a hook, and why. Pure."""

from __future__ import annotations

import errno

from ansible_collections.ebpf.overlay.plugins.module_utils._errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._tc_state import CLSACT, TCX, Hook, Link, Observed


def choose(asked: str, hook: Hook, interface: str, program: str, links: list[Link], seen: Observed) -> tuple[str, str]:
    """(mechanism, the reason as half a sentence). ``links``: what runs on this hook through TCX.

    ``auto`` prefers clsact, which every kernel has and every tool shows, unless a filter there would not run, could not
    be made, or ours runs through TCX already. Raises :class:`OverlayError` when the mechanism cannot work on this hook.
    """
    _ifindex, direction = hook
    target = f"interface {interface}, {direction}, program {program}"
    obstacle = _obstacle(hook, seen)
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
        if obstacle:
            raise OverlayError(
                "attach a program through clsact", target, obstacle, "Use mechanism tcx (kernel 6.6 or newer)."
            )
        return CLSACT, "asked for"
    if not seen.tcx:
        if obstacle:
            raise OverlayError(
                "attach a program",
                target,
                obstacle,
                "This kernel has no TCX (6.6) to go round it: remove or replace that qdisc.",
            )
        return CLSACT, "this kernel has no TCX"
    if obstacle:
        return TCX, obstacle
    if any(link.program == program for link in links if link.pin):
        return TCX, "it is attached through TCX already"
    foreign = sum(not link.pin for link in links)
    if foreign:
        return TCX, f"{foreign} TCX link(s) of somebody else run before all filters on this hook and may end the chain"
    return CLSACT, "nothing on this hook asks for TCX"


def _obstacle(hook: Hook, seen: Observed) -> str:
    """Why no filter of ours can be on this hook; empty when one can."""
    ifindex, direction = hook
    qdisc = seen.qdiscs.get(ifindex)
    if qdisc and not qdisc.serves(direction):
        return "the interface has an ingress qdisc of somebody else, which excludes clsact and has no egress hook"
    if qdisc and qdisc.block(direction):
        return f"the qdisc's filters are shared with other interfaces (block {qdisc.block(direction)})"
    return ""
