# SPDX-License-Identifier: GPL-3.0-or-later
"""Which nodes lack what the overlay needs of their distribution."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible_collections.ebpf.overlay.plugins.plugin_utils._filters import raw_variables


def lacks(facts: Mapping[str, Any]) -> bool:
    """The overlay's facts of a node -> whether a library, or the headers, are not there."""
    return not all(facts.get("libraries", {}).values())


def some_lack(names: Iterable[str], hostvars: Mapping[str, Any]) -> bool:
    """Nodes -> whether any of them lacks something."""
    facts = (raw_variables(hostvars, name).get("ansible_facts", {}).get("overlay") for name in names)
    return any(node and lacks(node) for node in facts)


class FilterModule:
    """Filters ``ebpf.overlay.lacks`` and ``ebpf.overlay.some_lack``; beside this file each has its documentation."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"lacks": lacks, "some_lack": some_lack}
