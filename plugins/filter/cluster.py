# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that run on the controller: the picture of the cluster, and what follows from it for one node."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.ebpf.overlay.plugins.module_utils import _topology
from ansible_collections.ebpf.overlay.plugins.module_utils._errors import OverlayError


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


def _facts_of(hostvars: Mapping[str, Any], name: str) -> Any:
    return hostvars[name].get("ansible_facts", {}).get("overlay") if name in hostvars else None


def _told(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return function()
    except OverlayError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """Filters ``ebpf.overlay.picture``, ``missing_nodes`` and ``node_plan``."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"picture": picture, "missing_nodes": missing_nodes, "node_plan": node_plan}
