# SPDX-License-Identifier: GPL-3.0-or-later
"""A compiled C file with its programs and maps pinned in a folder, as a resource."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.libraries import importable
from ansible_collections.ebpf.overlay.plugins.module_utils._core.lock import one_run
from ansible_collections.ebpf.overlay.plugins.module_utils._core.plan import Plan
from ansible_collections.ebpf.overlay.plugins.module_utils._core.resource import STATE, Params, Warn, converge, told
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpffs

from . import compiler, headers, pins, source
from .plan import decide_maps, intact, plan_object
from .state import Desired, Observed

# Also what calls on disk are checked by, of earlier releases too: nothing is taken away or made stricter.
SPEC: dict[str, Any] = {
    "src": {"type": "path"},
    "remote_src": {"type": "bool", "default": False},
    "pin_dir": {"type": "path", "required": True},
    "programs": {"type": "list", "elements": "str"},
    "defines": {"type": "dict", "default": {}},
    "on_map_change": {"type": "str", "choices": ["refuse", "migrate", "replace"], "default": "refuse"},
    "state": STATE,
    "bundle": {"type": "str"},
}
REQUIRED_IF = [("state", "present", ("programs",)), ("state", "present", ("src", "bundle"), True)]


def read_source(params: Params) -> tuple[str, str]:
    """(name for messages, the whole text)."""
    if params["bundle"]:
        bundle = source.unpack(params["bundle"])
        return bundle.main, source.flatten(bundle)
    path = params["src"]
    if not path:
        raise OverlayError("read the source", "src", "it is not given", "Set src, or state to absent.")
    if not os.path.isabs(path):
        where = "remote_src is true" if params["remote_src"] else "the controller has no such file"
        raise OverlayError(
            "read the source", path, f"{where}, and a path on the target must be absolute", "Check the name."
        )
    return os.path.basename(path), source.flatten(source.read_bundle(path))


def identify(text: str, flags: list[str]) -> str | None:
    """The digest of the build; None while the compiler or the headers are missing, since they are part of it."""
    version = compiler.compiler_version()
    if version is None or headers.missing():
        return None
    included = source.system_headers(text, headers.ROOTS, headers.resolve)
    return source.digest(text, [*compiler.FLAGS, *flags], {**included, **headers.FIXED}, version, os.uname().machine)


def observe_pins(folder: str) -> Observed:
    mount, trees = bpffs.find_bpffs(folder), headers.leftovers()
    if mount is None:
        return Observed(folder, None, (bpffs.not_on_bpffs(folder),), trees=trees)
    bpffs.check_folder(folder, mount.point)
    return Observed(folder, pins.read_folder(folder), trees=trees)


class Present:
    """``state: present``: the pins and, when they are not those of the source, what the source compiles to."""

    def __init__(self, params: Params) -> None:
        compiler.check_kernel()
        self.folder = os.path.normpath(params["pin_dir"])
        self.name, self.text = read_source(params)
        self.flags = source.define_flags(params["defines"])
        self.desired = Desired(
            True, tuple(params["programs"]), identify(self.text, self.flags), params["on_map_change"]
        )
        self.rehearsal: compiler.Rehearsal | None = None

    def wants_compiler(self) -> bool:
        return self.desired.digest is not None and not intact(observe_pins(self.folder), self.desired)

    def observe(self) -> Observed:
        observed = observe_pins(self.folder)
        if intact(observed, self.desired):
            return observed
        missing = tuple(sentence for sentence in (self._missing_compiler(), headers.missing()) if sentence)
        if missing:
            return replace(observed, unmet=observed.unmet + missing)
        if self.rehearsal is None:
            self.rehearsal = self._rehearse(observed)
        return replace(observed, built=self.rehearsal.built)

    def _missing_compiler(self) -> str | None:
        return None if importable("bcc") else compiler.MISSING

    def _rehearse(self, observed: Observed) -> compiler.Rehearsal:
        """Compile and load, pin nothing: the same in a dry run, so that it meets the same refusals."""
        compiled = compiler.compile_source(self.text, self.name, self.flags, self.desired.programs)
        decisions = decide_maps(observed, compiler.fresh_layouts(compiled), self.desired.on_map_change)
        return compiler.load(compiled, decisions, self.folder, self.name)

    def plan(self, observed: Observed) -> Plan:
        return plan_object(observed, self.desired)

    def apply(self, operations: tuple[Any, ...]) -> None:
        pins.apply(self.folder, operations, self.rehearsal.descriptors if self.rehearsal else {})


class Absent:
    """``state: absent``."""

    def __init__(self, params: Params) -> None:
        self.folder = os.path.normpath(params["pin_dir"])

    def observe(self) -> Observed:
        return replace(observe_pins(self.folder), unmet=())

    def plan(self, observed: Observed) -> Plan:
        return plan_object(observed, Desired(False))

    def apply(self, operations: tuple[Any, ...]) -> None:
        pins.apply(self.folder, operations, {})


def wanted_of(params: Params) -> Present | Absent:
    return Absent(params) if params["state"] == "absent" else Present(params)


class _Seen:
    """A resource that keeps its last plan, which knows the ids of what was applied."""

    def __init__(self, resource: Present | Absent) -> None:
        self._resource = resource
        self.observe, self.apply = resource.observe, resource.apply
        self.last = Plan()

    def plan(self, seen: Observed) -> Plan:
        self.last = self._resource.plan(seen)
        return self.last


def settle(wanted: Present | Absent, check: bool, warn: Warn) -> dict[str, Any]:
    seen = _Seen(wanted)
    with one_run():
        planned = converge(seen, check, warn)
    # How the maps began only the first plan knows.
    fresh = {item["name"]: item["fresh"] for item in planned.result["maps"]}
    return {
        **told(planned),
        **seen.last.result,
        "maps": [{**item, "fresh": fresh.get(item["name"], False)} for item in seen.last.result["maps"]],
        "compiled": planned.result["compiled"],
    }


def ensure(params: Params, check: bool, warn: Warn) -> dict[str, Any]:
    return settle(wanted_of(params), check, warn)
