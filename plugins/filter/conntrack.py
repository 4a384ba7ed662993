# SPDX-License-Identifier: GPL-3.0-or-later
"""What conntrack of the nodes has against the overlay, known before anything is changed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.conntrack import LIBERAL
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.topology import service_entries


def conntrack_refusals(
    names: Iterable[str], hostvars: Mapping[str, Any], services: Sequence[Mapping[str, Any]]
) -> list[str]:
    """One sentence for each reason, with the node and the way out.

    ``services``: those of nodes that have no ``overlay_services`` of their own.
    """
    told = []
    for name in names:
        # Raw, because looking for templates in what a module returned takes its time.
        raw = getattr(hostvars, "raw_get", hostvars.__getitem__)(name)
        facts = raw.get("ansible_facts", {}).get("overlay", {}).get("conntrack", {})
        if facts.get("helpers") or not facts.get("liberal", True):
            told += [f"{name}: {sentence}" for sentence in _told(facts, hostvars[name], services)]
    return told


def _told(
    facts: Mapping[str, Any], variables: Mapping[str, Any], services: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    if not facts.get("liberal", True) and not boolean(variables.get("overlay_conntrack_liberal", True)):
        yield (
            f"{LIBERAL} is not 1, which the overlay needs, and overlay_conntrack_liberal forbids to set it. Set it "
            "yourself, or allow it."
        )
    if variables.get("overlay_helper_ports", "refuse") == "ignore":
        return
    ports: list[int] = []
    with contextlib.suppress(OverlayError):  # the plan of the node refuses what is no service
        ports = [entry["key"] for entry in service_entries(variables.get("overlay_services", services))]
    for helper in facts.get("helpers", ()):
        for port in (port for port in ports if helper["first"] <= port <= helper["last"]):
            yield (
                f"the service on port {port} has the conntrack helper {helper['helper']} ({helper['by']}), which reads "
                "nothing on the fast path. Take it out of overlay_services, or set overlay_helper_ports to ignore."
            )


class FilterModule:
    """Filter ``ebpf.overlay.conntrack_refusals``; beside this file is its documentation."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"conntrack_refusals": conntrack_refusals}
