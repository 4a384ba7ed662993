# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that make the status of the fleet: one document, and what people look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from typing import Any

from ansible_collections.ebpf.overlay.plugins.plugin_utils._status import document, page


def fleet_status(names: Iterable[str], hostvars: Mapping[str, Any]) -> dict[str, Any]:
    """Names of nodes and all host variables -> the document."""
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return document.fleet_status(names, hostvars, when)


class FilterModule:
    """Filters ``ebpf.overlay.fleet_status`` and so on; beside this file each has its documentation."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "fleet_status": fleet_status,
            "status_table": document.status_table,
            "status_html": page.page,
        }
