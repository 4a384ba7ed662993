# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that read the user's settings: variables of any kind, batches, and the arguments of SSH."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible import constants, context
from ansible.errors import AnsibleError, AnsibleFilterError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.yaml import yaml_load
from ansible.parsing.dataloader import DataLoader

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import exclusions, peers, services
from ansible_collections.ebpf.overlay.plugins.plugin_utils import _batches, _settings
from ansible_collections.ebpf.overlay.plugins.plugin_utils._filters import or_filter_error, raw_variables

SPECIFICATION = Path(__file__).resolve().parents[2] / "roles/node/meta/argument_specs.yml"
# Read with this file, which a play loads before it forks, and not again for each node.
OPTIONS: dict[str, Any] = yaml_load(SPECIFICATION.read_text())["argument_specs"]["main"]["options"]
# At once, after 1 and after 3 seconds.
RETRIES = 3
SERVER_ALIVE = "-o ServerAliveInterval=5 -o ServerAliveCountMax=2"


def setting(value: Any, name: str) -> Any:
    """The value of a variable of the user's, as its specification wants it."""
    return or_filter_error(lambda: _settings.convert(name, value, OPTIONS[name]))


def settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Variables by name -> those of the user's, converted and checked."""

    def checked() -> dict[str, Any]:
        found = _settings.converted(values, OPTIONS)
        wrong = ArgumentSpecValidator(OPTIONS).validate(copy.deepcopy(found)).error_messages
        if wrong:
            raise OverlayError("accept the variables", "; ".join(wrong)[:600], "see there", "Correct what is named.")
        if "overlay_services" in found:
            services.parse_services(found["overlay_services"])
        if "overlay_peers" in found:
            peers.parse_peers(found["overlay_peers"])
        if "overlay_exclude" in found:
            exclusions.parse_exclude(found["overlay_exclude"])
        if found.get("overlay_probe_tasks"):
            probe_file(found["overlay_probe_tasks"])
        return found

    found: dict[str, Any] = or_filter_error(checked)
    return found


def probe_file(path: str) -> str:
    """The user's file of probe tasks, absolute; it is looked for from where the user stands."""

    def found() -> str:
        absolute = _settings.from_where_the_user_stands(path, os.getcwd())
        if absolute:
            _check_tasks(absolute)
        return absolute

    absolute: str = or_filter_error(found)
    return absolute


@functools.lru_cache(maxsize=8)
def _check_tasks(path: str) -> None:
    try:
        tasks = DataLoader().load_from_file(path)
    except AnsibleError as error:
        there = os.path.isfile(path)
        reason: object = " ".join(str(error).split()) if there else "there is no such file"
    else:
        if isinstance(tasks, list):
            return
        reason = "it holds no list of tasks"
    raise OverlayError(
        "read the probe's tasks",
        path,
        reason,
        f"overlay_probe_tasks names a file on the controller, seen from {os.getcwd()}. Nothing was changed.",
    )


def roll_out_batches(names: Iterable[str], hostvars: Mapping[str, Any], forks: int) -> list[int]:
    """The nodes that stay, in the order in which the roll-out takes them -> the sizes of its batches. Those that are
    what they must be already are in none."""
    names = list(names)
    found = {name: raw_variables(hostvars, name).get("node_settings") for name in names}
    known = {name: values for name, values in found.items() if values is not None}
    facts = [raw_variables(hostvars, name).get("ansible_facts", {}).get("overlay", {}) for name in known]
    gathered = [node["gathering"] for node in facts if node.get("gathering")]

    def planned() -> list[int]:
        for name in ("overlay_unreachable_policy", "overlay_facts_max_age"):
            _settings.agreed({node: values.get(name) for node, values in known.items()}, name)
        batches, lease, timeout = (
            {node: values.get(name) for node, values in known.items()}
            for name in ("overlay_batches", "overlay_lease", "overlay_apply_timeout")
        )
        pace = _batches.Pace(
            int(forks),
            gathered,
            min(_or_default("overlay_lease", lease.values()), default=0.0),
            min(_or_default("overlay_apply_timeout", timeout.values()), default=0.0),
        )
        left = [name for name in names if (raw_variables(hostvars, name).get("node_verdict") or {}) == {}]
        return _batches.plan_batches(_settings.agreed(batches, "overlay_batches"), len(left), pace)

    sizes: list[int] = or_filter_error(planned)
    return sizes


def _or_default(name: str, values: Iterable[Any]) -> list[float]:
    return [float(OPTIONS[name]["default"] if value is None else value) for value in values]


def batches(hostvars: Mapping[str, Any], names: Iterable[str], dry_run: bool) -> list[Any]:
    """How many nodes a run takes at a time; a dry run, which changes nothing that a canary could show, takes all."""
    for option, name in (("start_at_task", "--start-at-task"), ("step", "--step")):
        if context.CLIARGS.get(option):
            error = OverlayError(
                "roll out a part of the play",
                name,
                "what its tasks do follows from those before them, and a lease does not wait for a person",
                f"Nothing was changed. Leave {name} out; nodes that are done are not touched again.",
            )
            raise AnsibleFilterError(str(error))
    planned = next((sizes for name in names if (sizes := raw_variables(hostvars, name).get("node_batches"))), None)
    return ["100%"] if dry_run or not planned else list(planned)  # none are planned where plays are only listed


def ssh_retries(name: str, hostvars: Mapping[str, Any]) -> int:
    """``reconnection_retries`` for one host: its own, that of everybody, or what a bastion needs that refuses some of
    many connections at once."""
    own = hostvars[name].get("ansible_ssh_retries") if name in hostvars else None
    if own is not None:
        return int(own)
    found, origin = constants.config.get_config_value_and_origin(
        "reconnection_retries", plugin_type="connection", plugin_name="ssh"
    )
    return RETRIES if origin == "default" else int(found)


def ssh_pipelining(name: str, hostvars: Mapping[str, Any]) -> Any:
    """``pipelining`` for one host: its own, that of everybody, or on: then modules need no file on the node, whose disk
    may be full."""
    own = hostvars[name].get("ansible_pipelining") if name in hostvars else None
    if own is not None:
        return own
    found, origin = constants.config.get_config_value_and_origin(
        "pipelining", plugin_type="connection", plugin_name="ssh"
    )
    return True if origin == "default" else found


def ssh_arguments(name: str, hostvars: Mapping[str, Any], ours: Any = None) -> str:
    """``ssh_extra_args`` for one host: its own or else those of everybody (the command line, the environment,
    ansible.cfg), and after them ``ours``, or what notices a dead connection."""
    own = hostvars[name].get("ansible_ssh_extra_args") if name in hostvars else None
    if own is None:
        own = constants.config.get_config_value("ssh_extra_args", plugin_type="connection", plugin_name="ssh")
    return f"{own or ''} {SERVER_ALIVE if ours is None else ours}".strip()


class FilterModule:
    """Filters ``ebpf.overlay.setting`` and so on; beside this file each has its documentation."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "setting": setting,
            "settings": settings,
            "probe_file": probe_file,
            "roll_out_batches": roll_out_batches,
            "batches": batches,
            "ssh_arguments": ssh_arguments,
            "ssh_pipelining": ssh_pipelining,
            "ssh_retries": ssh_retries,
        }
