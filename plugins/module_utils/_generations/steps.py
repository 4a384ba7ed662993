# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of a roll-out: each is a call with a name, and stands here alone. Pure.

The tasks of `steps.yml` take their arguments from the call of their name. A generation is all of them in this order, so
the way back and the drift report know a step that is added here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable

from .model import Call

PROGRAMS = ("from_uplink", "from_workload", "to_uplink", "to_workload")


@dataclass(frozen=True)
class Wanted:
    """What a node must be. ``maps``: name -> entries, ``attachments``: both of its plan. ``pins``: their folder.

    ``bundle``: packs the C file; only the step that needs it calls it. ``liberal``: whether conntrack may be made so.
    """

    maps: Mapping[str, Any]
    attachments: list[Any]
    pins: str
    packages: list[str]
    bundle: Callable[[], str]
    defines: Mapping[str, Any]
    mechanism: str
    priority: int
    liberal: bool


def _fill(name: str) -> Callable[[Wanted], Call]:
    return lambda wanted: _call("bpf_map_sync", map=f"{wanted.pins}/{name}", entries=wanted.maps[name], purge=True)


def _call(module: str, **arguments: Any) -> Call:
    return {"module": module, "arguments": arguments}


STEPS: Mapping[str, Callable[[Wanted], Call]] = {
    "install": lambda wanted: _call("overlay_packages", packages=list(wanted.packages)),
    "mount": lambda _wanted: _call("bpffs"),
    "build": lambda wanted: _call(
        "bpf_object",
        bundle=wanted.bundle(),
        pin_dir=wanted.pins,
        programs=list(PROGRAMS),
        defines=dict(wanted.defines),
    ),
    "ifindex_map": _fill("ifindex_map"),
    "services": _fill("services"),
    "peers": _fill("peers"),
    "conntrack": lambda wanted: _call("overlay_conntrack", manage=wanted.liberal),
    "attach": lambda wanted: _call(
        "tc_bpf_attach",
        attachments=wanted.attachments,
        mechanism=wanted.mechanism,
        priority=wanted.priority,
        purge=True,
    ),
    "devices": _fill("devices"),
}


def calls(wanted: Wanted) -> list[Call]:
    """The calls that a generation consists of."""
    return [step(wanted) for step in STEPS.values()]
