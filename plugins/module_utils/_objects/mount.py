# SPDX-License-Identifier: GPL-3.0-or-later
"""The bpffs on which objects are pinned: it is mounted where nobody did, and unmounted where it was us."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.lock import one_run
from ansible_collections.ebpf.overlay.plugins.module_utils._core.plan import Item, Plan, compare
from ansible_collections.ebpf.overlay.plugins.module_utils._core.resource import Params, Warn, converge, told
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpffs

# Also what calls on disk are checked by, of earlier releases too: nothing is taken away or made stricter.
SPEC: dict[str, Any] = {
    "path": {"type": "path", "default": "/sys/fs/bpf"},
    "state": {"type": "str", "choices": ["mounted", "unmounted"], "default": "mounted"},
    "emptied": {"type": "list", "elements": "path", "default": []},
}


@dataclass(frozen=True)
class Observed:
    """``source``: that of the bpffs mounted here, None if there is none. ``pins``: what is still on it."""

    source: str | None
    pins: tuple[str, ...] = ()


@dataclass(frozen=True)
class MountBpffs:
    pass


@dataclass(frozen=True)
class UnmountBpffs:
    pass


def observe(path: str) -> Observed:
    mount = bpffs.find_bpffs(path)
    if not os.path.isdir(path):
        raise OverlayError("look at the bpffs", path, "there is no such folder", "Make the folder first.")
    if mount is None or mount.point != path:
        return Observed(None)
    # A name with a dot is the kernel's own (maps.debug, progs.debug): nobody else can make one.
    mark = os.path.join(path, bpffs.MARK)
    files = (os.path.join(folder, name) for folder, _folders, names in os.walk(path) for name in names)
    pins = sorted(name for name in files if "." not in name[len(path) :] and name != mark)
    return Observed(bpffs.source(mount), tuple(pins))


def plan(path: str, state: str, emptied: Sequence[str], observed: Observed) -> Plan:
    operations: tuple[Any, ...] = ()
    warnings: tuple[str, ...] = ()
    unmet: tuple[str, ...] = ()
    after = observed.source
    if state == "mounted" and observed.source is None:
        operations, after = (MountBpffs(),), bpffs.SOURCE
    elif state == "unmounted" and observed.source == bpffs.SOURCE:
        going = tuple(f"{os.path.normpath(folder)}/" for folder in emptied)
        staying = [pin for pin in observed.pins if not pin.startswith(going)]
        if staying:
            warnings = (f"The bpffs on {path} stays mounted: {staying[0]} is still pinned on it.",)
        else:
            operations, after = (UnmountBpffs(),), None
            unmet = tuple(f"The bpffs on {path} is not empty: {pin} is pinned on it." for pin in observed.pins[:1])
    return Plan(
        operations,
        changes=compare(_items(path, observed.source), _items(path, after)),
        unmet=unmet,
        warnings=warnings,
        result={"path": path, "mounted": after is not None, "ours": after == bpffs.SOURCE},
    )


def _items(path: str, source: str | None) -> list[Item]:
    return [] if source is None else [Item("bpffs", f"bpffs {path}", f"bpffs on {path}, source {source}")]


def apply(path: str, operations: tuple[Any, ...]) -> None:
    for operation in operations:
        if isinstance(operation, MountBpffs):
            bpffs.mount(path)
        else:
            bpffs.unmount(path)


class Mount:
    def __init__(self, params: Params) -> None:
        self._path, self._params = os.path.normpath(params["path"]), params

    def observe(self) -> Observed:
        return observe(self._path)

    def plan(self, seen: Observed) -> Plan:
        return plan(self._path, self._params["state"], self._params["emptied"], seen)

    def apply(self, operations: tuple[Any, ...]) -> None:
        apply(self._path, operations)


def ensure(params: Params, check: bool, warn: Warn) -> dict[str, Any]:
    with one_run():
        return told(converge(Mount(params), check, warn))
