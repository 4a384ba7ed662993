# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes that leave the cluster for good, as ``overlay_retire`` names them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.plugin_utils._filters import or_filter_error, raw_variables


def retired(names: Iterable[str], hostvars: Mapping[str, Any], playing: Iterable[str]) -> list[str]:
    """All nodes -> those that leave, whichever host's variables say so; in the order of the nodes.

    ``playing``: the nodes that this run is about. Of the others, those that stay would keep in their maps who leaves,
    and those that leave would keep the overlay.
    """
    names, here = list(names), set(playing)
    settings = (raw_variables(hostvars, name).get("node_settings") or {} for name in names)
    leaving = {name for found in settings for name in found.get("overlay_retire") or ()}

    def checked() -> list[str]:
        unknown = sorted(leaving - set(names))
        if unknown or (leaving.issuperset(names) and names):
            raise OverlayError(
                "retire nodes",
                f"overlay_retire: {', '.join(unknown or sorted(leaving))}",
                "no such host is in the group overlay_nodes" if unknown else "no node would stay",
                "Nothing was changed. "
                + (
                    "Leave the node in the inventory for this one run, and take it out after it."
                    if unknown
                    else "Take the overlay off all nodes with rollback.yml and overlay_rollback_to=0."
                ),
            )
        outside = [name for name in names if name not in here] if leaving else []
        staying_outside = [name for name in outside if name not in leaving]
        if outside:
            why = "whose maps would go on naming them" if staying_outside else "which would keep the overlay"
            outside = staying_outside or outside
            more = f" and {len(outside) - 3} more" if outside[3:] else ""
            raise OverlayError(
                "retire nodes",
                f"overlay_retire: {', '.join(sorted(leaving))}",
                f"--limit leaves out {', '.join(outside[:3])}{more}, {why}",
                "Nothing was changed. Run without --limit: a node that leaves and cannot be reached holds nobody up.",
            )
        return [name for name in names if name in leaving]

    found: list[str] = or_filter_error(checked)
    return found


def staying(hostvars: Mapping[str, Any], names: Iterable[str], done: Sequence[str] = ()) -> str:
    """All nodes -> the pattern of hosts for those that stay, once the run has worked out who leaves; without those for
    which it came to one of the outcomes ``done``."""
    known = {name: raw_variables(hostvars, name) for name in names}
    leaving: list[str] = next((found for one in known.values() if (found := one.get("node_retired"))), [])
    through = [name for name, one in known.items() if (one.get("node_verdict") or {}).get("outcome") in done]
    outside = [*leaving, *through]
    if known and len(outside) == len(known):
        outside = ["overlay_nodes"]
    return ":!".join(["overlay_nodes", *outside])


class FilterModule:
    """Filters ``ebpf.overlay.retired`` and ``ebpf.overlay.staying``; beside this file each has its documentation."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"retired": retired, "staying": staying}
