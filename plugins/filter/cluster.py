# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that run on the controller: the picture of the cluster, and what follows from it for one node."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ansible.utils.display import Display

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import peers as _peers
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import services as _services
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import topology
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import workloads as _workloads
from ansible_collections.ebpf.overlay.plugins.module_utils._generations import model
from ansible_collections.ebpf.overlay.plugins.module_utils._generations import steps as _steps
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.machine import identity
from ansible_collections.ebpf.overlay.plugins.module_utils._objects import source as _source
from ansible_collections.ebpf.overlay.plugins.plugin_utils import _cached_facts, _probe_verdict, _wiring_report
from ansible_collections.ebpf.overlay.plugins.plugin_utils._filters import or_filter_error, raw_variables

_FORGOTTEN = "and the other nodes' maps do not name the node any more"
_LEAVING = ("retired", "left behind")


def picture(
    names: Iterable[str], hostvars: Mapping[str, Any], fresh: Iterable[str], max_age: float, visited: Iterable[str] = ()
) -> str:
    """Names of nodes and all host variables -> the picture, as text.

    It is text, as the plan of a node is, because Ansible looks into every value of a structure that is handed on, at
    every node again. ``fresh``, ``max_age``: see :func:`topology.build_picture`. ``visited``: the nodes that this run
    went to; one of them that is not fresh is dead, whatever a cache knows of it.
    """
    fresh, visited, now = frozenset(fresh), frozenset(visited), time.time()
    facts: dict[str, Any] = {}
    dialled, refused = {}, {}
    for name in names:
        variables = raw_variables(hostvars, name)
        facts[name] = _overlay(variables)
        address = str(variables.get("ansible_host", name))
        if name not in fresh:
            address = str(hostvars[name].get("ansible_host", name)) if name in hostvars else name  # no template
            lost = "it could not be reached or read" if name in visited else ""
            refused[name] = lost or _cached_facts.why_not(facts[name], now, float(max_age), address)
            facts[name] = None if refused[name] else facts[name]
        with contextlib.suppress(ValueError):  # a name, or a template
            dialled[name] = str(ipaddress.ip_address(address))
    controller = topology.Controller(tuple(identity().values()), dialled)
    built = or_filter_error(
        lambda: topology.build_picture(facts, fresh, now, float(max_age), controller),
    )
    built["missing"].update({name: why for name, why in refused.items() if why})
    return json.dumps(built)


def missing_nodes(known: str) -> list[str]:
    """The nodes that the picture misses, each with the reason."""
    return [f"{name} ({why})" for name, why in sorted(json.loads(known)["missing"].items())]


def node_plan(name: str, hostvars: Mapping[str, Any], known: str, services: Any, peers: Any = ()) -> str:
    """Name of a node, all host variables, the picture, the user's services and peers (empty: the nodes and their
    workloads) -> maps and attachments of the node, as text.

    What stays in the kernel's path is a warning.
    """
    facts = _overlay(raw_variables(hostvars, name))
    plan = or_filter_error(lambda: topology.plan_node(name, facts, json.loads(known), services, peers))
    for note in plan["notes"]:
        Display().warning(f"{name}: {note}.")
    return json.dumps(plan)


def generation_calls(planned: str, *inputs: Any, **named: Any) -> list[Mapping[str, Any]]:
    """The plan of a node -> the calls that its generation consists of. ``inputs``, ``named``: see :func:`_wanted`."""
    wanted = _wanted(planned, *inputs, **named)
    return or_filter_error(lambda: _steps.calls(wanted))


def generation_step(planned: str, name: str, *inputs: Any, **named: Any) -> Any:
    """The plan of a node -> the arguments of one of these calls, for the task that makes it."""
    wanted = _wanted(planned, *inputs, **named)
    return or_filter_error(lambda: _steps.STEPS[name](wanted)["arguments"])


def _wanted(
    planned: str,
    pins: str,
    packages: list[str],
    source: str,
    defines: Mapping[str, Any],
    mechanism: str,
    priority: int,
    liberal: bool,
) -> _steps.Wanted:
    """``source``: the C file on the controller. ``liberal``: whether conntrack may be made liberal."""
    plan = _plan_of(planned)
    return _steps.Wanted(
        plan["maps"],
        plan["attachments"],
        pins,
        packages,
        lambda: _source.pack(_source.read_bundle(source)),
        defines,
        mechanism,
        int(priority),
        liberal,
    )


@functools.lru_cache(maxsize=1)
def _plan_of(planned: str) -> Any:
    """Read once for all arguments of a task, which a process of its own templates. Nobody writes to it."""
    return json.loads(planned)


def already(calls: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], enable: bool) -> bool:
    """The calls of a node's generation, its facts, and whether it is switched on if somebody switched it off -> whether
    the node was all that when the facts were gathered, so that it need not be asked again."""
    there = facts.get("generation") or {}
    return bool(
        there.get("as_confirmed")
        and not (enable and there.get("switched_off"))
        and there.get("digest") == model.digest_of(calls)
    )


def probers(known: str, name: str) -> list[str]:
    """The nodes that can probe node ``name``: all others of the picture, beginning with the next one."""
    names = list(json.loads(known)["nodes"])
    start = names.index(name) + 1 if name in names else 0
    return [other for other in names[start:] + names[:start] if other != name]


def probe_targets(workloads: Iterable[Mapping[str, Any]], services: Any) -> list[dict[str, Any]]:
    """Up to three workloads that the fast path can reach, each with every service; of a range, three ports."""
    ports = _ports(services)
    return [{"address": workload["address"], "port": port} for workload in _probed(workloads) for port in ports]


def far_targets(known: str, name: str, services: Any) -> list[dict[str, Any]]:
    """Services of a few workloads of the other nodes of the picture, for a workload of node ``name`` to connect to."""
    return _probe_verdict.far_targets(json.loads(known)["nodes"], probers(known, name), _ports(services))


def probe_sources(workloads: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Up to three workloads from which a connection can be made that takes the fast path."""
    return [{"address": one["address"], "interface": one["interface"]} for one in _probed(workloads)]


def probe_verdict(
    probed: Mapping[str, Any], seen: Mapping[str, Any], before: Mapping[str, Any], planned: str
) -> dict[str, Any]:
    """Results of ``overlay_probe`` and the node's plan -> what they mean: :func:`_probe_verdict.judge`."""
    plan = json.loads(planned)
    peers = [entry["key"] for entry in plan["maps"]["peers"] if entry["value"] == _peers.PEER]
    return _probe_verdict.judge(probed, seen, before, peers, plan["uplinks"])


def _probed(workloads: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [one for one in workloads if _workloads.qualifies(one) and not one["may_be_taken"]][:3]


def _ports(services: Any) -> list[int]:
    ranges = or_filter_error(lambda: _services.parse_services(services))
    return [port for _protocol, first, last in ranges for port in range(first, min(last, first + 2) + 1)]


def reason(failed: Mapping[str, Any]) -> str:
    """What a failed task said, in one line; of a loop, the first item that failed."""
    broken = [item for item in failed.get("results", ()) if item.get("failed")]
    text = str((broken[0] if broken else failed).get("msg", "it failed"))
    return " ".join(text.split())[:600]


def whereabouts(told: Mapping[str, Any]) -> str:
    """What ``overlay_generation`` or ``overlay_generation_info`` said of a node -> where the node is."""
    if "number" not in told:
        return "not known"
    digest = str(told.get("digest") or "")
    parts = [f"generation {told['number']}" + (f", digest {digest[:12]}" if digest else "")]
    if told.get("switched_off"):
        parts.append("switched off: playbooks/enable.yml switches it on")
    if told.get("foreign"):
        parts.append(str(told["foreign"]))
    return "; ".join(parts)


def verdicts(names: Iterable[str], hostvars: Mapping[str, Any], outcomes: Sequence[str]) -> list[str]:
    """The nodes of which this run said so far that the roll-out had one of ``outcomes``, or ``silent``: that they did
    not answer when they should probe another node."""
    names = list(names)
    silent = _silent_probers(names, hostvars) if "silent" in outcomes else {}
    return [
        name
        for name in names
        if name in silent or (raw_variables(hostvars, name).get("node_verdict") or {}).get("outcome") in outcomes
    ]


def _silent_probers(names: Iterable[str], hostvars: Mapping[str, Any]) -> dict[str, str]:
    """Nodes, in this run or not, that did not answer when they should probe another one: name -> what is told of it."""
    found = [entry for name in names for entry in raw_variables(hostvars, name).get("node_silent_probers") or ()]
    return {
        entry["name"]: f"DID NOT ANSWER when it was to probe {entry['probed']}: {entry['reason']}"
        for entry in reversed(found)
    }


def fleet_report(names: Iterable[str], hostvars: Mapping[str, Any]) -> list[str]:
    """One line per node: what happened to it in this run (or would, in a dry run), and where it is now."""
    names, lines = list(names), []
    forgotten = _who_forgot(names, hostvars)
    silent = _silent_probers(names, hostvars)
    for name in names:
        verdict = raw_variables(hostvars, name).get("node_verdict") or {}
        would = hostvars[name].get("ansible_check_mode", False)
        told = {
            "": f"not reached by the roll-out, {_untouched(raw_variables(hostvars, name))}",
            "unchanged": "nothing to do" + (f" (looked at {verdict['looked_at']})" if verdict.get("looked_at") else ""),
            "confirmed": "would be rolled out and confirmed" if would else "rolled out and confirmed",
            "failed": f"FAILED at '{verdict.get('step')}': {verdict.get('reason')}",
            "returned": "was rolled out, and taken back because of the failure elsewhere",
            "foreign": "was rolled out, and changed by another run since; not taken back",
            "rolled back": f"rolled back from generation {verdict.get('former')}",
            "no history": "has no history",
            "retired": f"{'would be' if would else 'was'} retired: the overlay is off, {forgotten}",
            "left behind": f"LEFT BEHIND, it could not be reached ({verdict.get('reason')}), {forgotten}. "
            f"If it comes back: rollback.yml -e overlay_rollback_to=0 --limit {name}",
        }[verdict.get("outcome", "")]
        now = verdict.get("now")
        lines.append(f"{name}: {told}" + (f"; {'then' if would else 'now'}: {now}" if now else ""))
    return lines + [f"{name}: {told}" for name, told in silent.items()]


def wiring_report(names: Iterable[str], hostvars: Mapping[str, Any]) -> list[str]:
    """What this run found on the nodes for which it made a plan: :func:`_wiring_report.wiring_report`."""
    plans = {name: planned for name in names if (planned := raw_variables(hostvars, name).get("node_planned"))}
    return _wiring_report.wiring_report({name: json.loads(planned)["wiring"] for name, planned in plans.items()})


def _who_forgot(names: Iterable[str], hostvars: Mapping[str, Any]) -> str:
    """Whether the maps of those that stay still name who leaves."""
    known = {name: raw_variables(hostvars, name) for name in names}
    outcomes = {name: (variables.get("node_verdict") or {}).get("outcome") for name, variables in known.items()}
    if not any(outcome in _LEAVING for outcome in outcomes.values()):
        return _FORGOTTEN
    picture_of_all = next((found for one in known.values() if (found := one.get("node_picture"))), '{"missing": {}}')
    kept = bool(json.loads(picture_of_all)["missing"])  # then every node keeps the peers that it knew: plan_node

    def knows(name: str) -> bool:
        given = (known[name].get("node_settings") or {}).get("overlay_peers")
        return outcomes[name] not in ("unchanged", "confirmed") or (kept and not given)

    know = [name for name, outcome in outcomes.items() if outcome not in _LEAVING and knows(name)]
    rest = "name the node still: run site.yml with overlay_retire again when all nodes can be reached"
    return f"but the maps of {', '.join(know)} {rest}" if know else _FORGOTTEN


def _untouched(variables: Mapping[str, Any]) -> str:
    installed = (variables.get("node_prepared") or {}).get("installed")
    return f"only packages were installed: {', '.join(installed)}" if installed else "nothing changed"


def _overlay(variables: Mapping[str, Any]) -> Any:
    return variables.get("ansible_facts", {}).get("overlay")


class FilterModule:
    """Filters ``ebpf.overlay.picture`` and so on; beside this file each has its documentation."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "picture": picture,
            "missing_nodes": missing_nodes,
            "node_plan": node_plan,
            "generation_calls": generation_calls,
            "generation_step": generation_step,
            "already": already,
            "probers": probers,
            "probe_targets": probe_targets,
            "probe_sources": probe_sources,
            "far_targets": far_targets,
            "probe_verdict": probe_verdict,
            "reason": reason,
            "whereabouts": whereabouts,
            "verdicts": verdicts,
            "fleet_report": fleet_report,
            "wiring_report": wiring_report,
        }
