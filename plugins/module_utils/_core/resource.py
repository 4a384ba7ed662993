# SPDX-License-Identifier: GPL-3.0-or-later
"""One thing that can be observed, planned and applied, and the one way in which each of them is brought about.

Modules, the node's way back and the drift report use the same resources. No Ansible.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable, Protocol

from .errors import OverlayError
from .plan import Plan

Params = Mapping[str, Any]
"""A module's arguments, as its argument specification leaves them: checked, converted, with all defaults."""
Warn = Callable[[str], None]
"""Takes a full sentence that stops nothing."""


class Resource(Protocol):
    """What the parameters of a module are about.

    ``observe`` reads what is there, ``plan`` says what leads from there to what is wanted (pure), ``apply`` does it.
    All raise :class:`OverlayError`.
    """

    def observe(self) -> Any: ...

    def plan(self, seen: Any, /) -> Plan: ...

    def apply(self, operations: tuple[Any, ...], /) -> None: ...


def converge(resource: Resource, check: bool, warn: Warn) -> Plan:
    """Bring the observed state to the desired one; the only place where check mode differs from a real run.

    Returns the plan that was (or would have been) applied.
    Raises :class:`OverlayError` when a precondition is unmet, or when the state read back still wants changes.
    """
    planned = resource.plan(resource.observe())
    for warning in planned.warnings:
        warn(warning)
    if check:
        for sentence in planned.unmet:
            warn(f"{sentence} A real run stops here unless an earlier task provides it.")
        return planned
    if planned.unmet:
        raise OverlayError("start", "preconditions", " ".join(planned.unmet).rstrip("."), "Nothing was changed.")
    if planned.operations:
        resource.apply(planned.operations)
        left = resource.plan(resource.observe())
        if left.operations:
            raise OverlayError(
                "verify what was applied",
                f"{len(left.operations)} operation(s) still wanted, the first: {left.operations[0]}",
                "the state read back differs from the desired one",
                "Something else changes the same objects at the same time; find it, then run again.",
            )
    return planned


STATE: Mapping[str, Any] = {"type": "str", "choices": ["present", "absent"], "default": "present"}
"""The argument of modules that also take back what they make."""


def pinned_by_others(**members: str) -> dict[str, Any]:
    """The argument that takes what ``bpf_object`` returned, as a dry run needs it: pins, and ``members`` by type."""
    types = {"id": "int", **members}
    return {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {"pin": {"type": "path", "required": True}, **{name: {"type": types[name]} for name in types}},
    }


def told(planned: Plan) -> dict[str, Any]:
    """The return values that all modules have, and those of the plan; and for programs its ``changes``."""
    return {
        "changed": bool(planned.operations),
        "diff": planned.diff,
        **planned.result,
        "changes": planned.changes,
    }


def with_defaults(spec: Mapping[str, Any], given: Params) -> dict[str, Any]:
    """``given`` with the defaults of an argument specification, for whoever uses a resource without Ansible.

    Nothing is checked or converted.
    """
    params: dict[str, Any] = {}
    for name, option in spec.items():
        value = given.get(name, option.get("default"))
        if "options" in option and isinstance(value, (list, tuple)):
            value = [with_defaults(option["options"], item) for item in value]
        params[name] = value
    return params
