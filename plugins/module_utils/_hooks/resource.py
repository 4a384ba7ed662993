# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs attached to interfaces, as a resource."""

from __future__ import annotations

from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.lock import one_run
from ansible_collections.ebpf.overlay.plugins.module_utils._core.plan import Plan
from ansible_collections.ebpf.overlay.plugins.module_utils._core.resource import (
    STATE,
    Params,
    Warn,
    converge,
    pinned_by_others,
    told,
)
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.tcx import links_folder

from .apply import apply
from .observe import Watch
from .plan import plan_filters
from .records import namespace_key
from .state import LAST, Observed, Program
from .wish import Attachment, Wish

# Also what calls on disk are checked by, of earlier releases too: nothing is taken away or made stricter.
SPEC: dict[str, Any] = {
    "attachments": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "interface": {"type": "str", "required": True},
            "direction": {"type": "str", "choices": ["ingress", "egress"], "default": "ingress"},
            "program": {"type": "path", "required": True},
            "priority": {"type": "int"},
            "handle": {"type": "int"},
        },
    },
    "programs": pinned_by_others(name="str", tag="str", xlated_size="int"),
    "priority": {"type": "int", "default": LAST},
    "owner": {"type": "str", "default": "ebpf.overlay"},
    "purge": {"type": "bool", "default": False},
    "mechanism": {"type": "str", "choices": ["auto", "clsact", "tcx"], "default": "auto"},
    "state": STATE,
    "bpffs": {"type": "path", "default": "/sys/fs/bpf"},
    "lock_timeout": {"type": "int", "default": 30},
}


def read_wish(params: Params) -> Wish:
    """Raises :class:`OverlayError` for a value that no kernel takes."""
    wish = Wish(
        attachments=tuple(
            Attachment(**{**entry, "priority": params["priority"] if entry["priority"] is None else entry["priority"]})
            for entry in params["attachments"]
        ),
        owner=params["owner"],
        purge=params["purge"],
        mechanism=params["mechanism"],
        present=params["state"] == "present",
        links=links_folder(params["bpffs"], params["owner"]),
        namespace=namespace_key(),
        rebuilt=tuple(
            Program(entry["pin"], None, entry["tag"] or "") for entry in params["programs"] if entry["id"] is None
        ),
    )
    wish.check()
    return wish


class Attachments:
    def __init__(self, params: Params, warn: Warn) -> None:
        self._wish, self._warn = read_wish(params), warn
        self._watch = Watch(self._wish)

    def observe(self) -> Observed:
        return self._watch.observe()

    def plan(self, seen: Observed) -> Plan:
        return plan_filters(self._wish, seen)

    def apply(self, operations: tuple[Any, ...]) -> None:
        apply(operations, self._warn)


def ensure(params: Params, check: bool, warn: Warn) -> dict[str, Any]:
    wanted = Attachments(params, warn)
    with one_run(params["lock_timeout"]):
        return told(converge(wanted, check, warn))
