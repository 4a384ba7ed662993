# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that make the status of the fleet: one document, and what people look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from typing import Any

from ansible_collections.ebpf.overlay.plugins.plugin_utils import _fleet_status, _status_page


def fleet_status(names: Iterable[str], hostvars: Mapping[str, Any]) -> dict[str, Any]:
    """Names of nodes and all host variables -> the document."""
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return _fleet_status.fleet_status(names, hostvars, when)


class FilterModule:
    """Filters ``ebpf.overlay.fleet_status`` and so on; beside this file each has its documentation."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "fleet_status": fleet_status,
            "status_table": _fleet_status.status_table,
            "status_html": _status_page.page,
        }
