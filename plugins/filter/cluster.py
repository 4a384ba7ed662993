# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that run on the controller: the picture of the cluster, and what follows from it for one node."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.ebpf.overlay.plugins.module_utils import _source, _topology
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


def generation_calls(
    plan: Mapping[str, Any], pins: str, packages: list[str], source: str, defines: Mapping[str, Any], keep: bool
) -> list[dict[str, Any]]:
    """The plan of a node -> the calls that its generation consists of, as the tasks of the role make them.

    ``source``: the C file on the controller. ``keep``: leave peers that the plan does not name.
    """
    bundle = _told(lambda: _source.pack(_source.read_bundle(source)))

    def fill(name: str, purge: bool = True, **more: str) -> dict[str, Any]:
        entries = plan["maps"][name]
        arguments = {"map": f"{pins}/{name}", "entries": entries, "purge": purge, **more}
        return {"module": "bpf_map_sync", "arguments": arguments}

    programs = ["from_uplink", "from_workload"]
    built = {"bundle": bundle, "pin_dir": pins, "programs": programs, "defines": dict(defines)}
    return [
        {"module": "overlay_packages", "arguments": {"packages": list(packages)}},
        {"module": "bpffs", "arguments": {}},
        {"module": "bpf_object", "arguments": built},
        fill("ifindex_map"),
        fill("services"),
        fill("peers", not keep),
        {"module": "tc_bpf_attach", "arguments": {"attachments": plan["attachments"], "purge": True}},
        fill("devices", epochs=f"{pins}/device_epochs"),
    ]


def probers(known: Mapping[str, Any], name: str) -> list[str]:
    """The nodes that can probe node ``name``: all others of the picture, beginning with the next one."""
    names = list(known)
    start = names.index(name) + 1 if name in names else 0
    return [other for other in names[start:] + names[:start] if other != name]


def probe_targets(workloads: list[Mapping[str, Any]], services: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Up to three workloads, each with every service."""
    return [
        {"address": workload["address"], "port": int(service["port"])}
        for workload in workloads[:3]
        for service in services
    ]


def reason(failed: Mapping[str, Any]) -> str:
    """What a failed task said, in one line; of a loop, the first item that failed."""
    broken = [item for item in failed.get("results", ()) if item.get("failed")]
    text = str((broken[0] if broken else failed).get("msg", "it failed"))
    return " ".join(text.split())[:600]


def verdicts(names: Iterable[str], hostvars: Mapping[str, Any], outcome: str) -> list[str]:
    """The nodes of which this run said so far that the roll-out had ``outcome``."""
    return [name for name in names if (hostvars[name].get("node_verdict") or {}).get("outcome") == outcome]


def fleet_report(names: Iterable[str], hostvars: Mapping[str, Any]) -> list[str]:
    """One line per node: what happened to it in this run (or would, in a dry run), and where it is now."""
    lines = []
    for name in names:
        verdict = hostvars[name].get("node_verdict") or {}
        would = hostvars[name].get("ansible_check_mode", False)
        told = {
            "": "not reached by the roll-out, nothing changed",
            "unchanged": "nothing to do",
            "confirmed": "would be rolled out and confirmed" if would else "rolled out and confirmed",
            "failed": f"FAILED at '{verdict.get('step')}': {verdict.get('reason')}",
            "returned": "was rolled out, and taken back because of the failure elsewhere",
            "rolled back": f"rolled back from generation {verdict.get('former')}",
            "no history": "has no history",
        }[verdict.get("outcome", "")]
        now = verdict.get("now")
        lines.append(f"{name}: {told}" + (f"; {'then' if would else 'now'}: {now}" if now else ""))
    return lines


def _facts_of(hostvars: Mapping[str, Any], name: str) -> Any:
    return hostvars[name].get("ansible_facts", {}).get("overlay") if name in hostvars else None


def _told(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except OverlayError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """Filters ``ebpf.overlay.picture`` and so on; beside this file each has its documentation."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "picture": picture,
            "missing_nodes": missing_nodes,
            "node_plan": node_plan,
            "generation_calls": generation_calls,
            "probers": probers,
            "probe_targets": probe_targets,
            "reason": reason,
            "verdicts": verdicts,
            "fleet_report": fleet_report,
        }
