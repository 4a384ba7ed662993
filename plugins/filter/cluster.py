# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that run on the controller: the picture of the cluster, and what follows from it for one node."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.ebpf.overlay.plugins.module_utils import _topology
from ansible_collections.ebpf.overlay.plugins.module_utils._errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._reasons import DIRECTIONS, REASONS

OWNER = "ebpf.overlay"
_NAMES = [name for name, _ in REASONS]
# The reasons are in this order: what was redirected, why a packet was not, what became of flows.
REDIRECTED = tuple(f"{direction}.{name}" for direction in DIRECTIONS for name in _NAMES[: _NAMES.index("not_ip")])
PASSED = frozenset(_NAMES[_NAMES.index("not_ip") : _NAMES.index("flow_opened")])


def picture(names: Iterable[str], hostvars: Mapping[str, Any]) -> dict[str, Any]:
    """Names of nodes and all host variables -> the picture; nodes without facts are left out of it."""
    facts = {name: _facts_of(hostvars, name) for name in names}
    return _told(lambda: _topology.build_picture(facts))


def missing_nodes(names: Iterable[str], known: Mapping[str, Any]) -> list[str]:
    """The names that the picture does not know."""
    return _topology.missing(names, known)


def node_plan(
    facts: Mapping[str, Any], name: str, known: Mapping[str, Any], services: list[Mapping[str, Any]]
) -> dict[str, Any]:
    """Facts of node ``name``, the picture and the services -> maps and attachments of the node."""
    return _told(lambda: _topology.plan_node(name, facts, known, services))


def status_table(names: Iterable[str], hostvars: Mapping[str, Any]) -> list[str]:
    """Names of nodes whose status was read -> lines of a table: what runs where."""
    rows: list[tuple[str, ...]] = [("node", "mode", "uplinks", "workloads", "attached", "redirected", "kernel's path")]
    rows += [_status_row(name, hostvars[name]) for name in names]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def _status_row(name: str, variables: Mapping[str, Any]) -> tuple[str, ...]:
    facts = _facts_of({name: variables}, name)
    hooks = [(link["name"], entry) for link in variables["node_attached"]["interfaces"] for entry in link["ingress"]]
    attached: dict[str, int] = {}
    for _, entry in hooks:
        if entry["owner"] == OWNER:
            program = entry["name"].partition(":")[2]
            attached[program] = attached.get(program, 0) + 1
    stats = {entry["key"]: entry["value"]["packets"] for entry in variables["node_stats"]["entries"]}
    redirected = sum(stats.get(label, 0) for label in REDIRECTED)
    control = facts["control"]
    return (
        name,
        control["mode"] if control else "not loaded",
        ", ".join(uplink["name"] for uplink in facts["uplinks"]) or "-",
        str(len(facts["workloads"])),
        ", ".join(f"{count} {program}" for program, count in sorted(attached.items())) or "nothing",
        str(redirected),
        str(sum(count for label, count in stats.items() if label.partition(".")[2] in PASSED)),
    )


def _facts_of(hostvars: Mapping[str, Any], name: str) -> Any:
    return hostvars[name].get("ansible_facts", {}).get("overlay") if name in hostvars else None


def _told(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return function()
    except OverlayError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """Filters ``ebpf.overlay.picture``, ``missing_nodes``, ``node_plan`` and ``status_table``."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "picture": picture,
            "missing_nodes": missing_nodes,
            "node_plan": node_plan,
            "status_table": status_table,
        }
