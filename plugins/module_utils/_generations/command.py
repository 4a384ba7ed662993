# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `overlayctl` on the node, and the unit that calls it after a reboot, as a resource."""

from __future__ import annotations

import base64
import hashlib
import os
import zipfile
from dataclasses import dataclass
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.lock import one_run
from ansible_collections.ebpf.overlay.plugins.module_utils._core.plan import Item, Plan, compare
from ansible_collections.ebpf.overlay.plugins.module_utils._core.records import remove, told, write
from ansible_collections.ebpf.overlay.plugins.module_utils._core.resource import Params, Warn, converge
from ansible_collections.ebpf.overlay.plugins.module_utils._core.resource import told as told_plan

from . import boot_unit
from .stored_runtime import FORMAT_FILE
from .watchdog import python

NAME = "overlayctl"
PATH = f"/usr/local/sbin/{NAME}"

SPEC: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    # Kept out of the node's log, where it would be two hundred kilobytes of noise.
    "runtime": {"type": "str", "no_log": True},
}


@dataclass(frozen=True)
class Observed:
    """``digest``: of the code, "" where no file is. ``foreign``: the file is somebody else's. ``read_only``: the file
    system takes no files. ``unit``: the text of the unit for reboots, "" where it is not enabled."""

    digest: str = ""
    unit: str = ""
    foreign: bool = False
    read_only: bool = False


@dataclass(frozen=True)
class WriteCommand:
    pass


@dataclass(frozen=True)
class RemoveCommand:
    pass


@dataclass(frozen=True)
class WriteUnit:
    text: str


@dataclass(frozen=True)
class RemoveUnit:
    pass


def digest(path: str = PATH) -> str:
    """SHA-256 of the code in the file, without the line that names its interpreter; "" where it cannot be read."""
    try:
        with open(path, "rb") as stream:
            stream.readline()
            return hashlib.sha256(stream.read()).hexdigest()
    except OSError:
        return ""


def as_wanted(code: str, path: str = PATH) -> bool:
    """Whether the command is of ``code`` (a SHA-256), and is called after a reboot."""
    return digest(path) == code and boot_unit.read() == boot_unit.wanted(path)


def _read_only(path: str) -> bool:
    try:
        return bool(os.statvfs(os.path.dirname(path)).f_flag & os.ST_RDONLY)
    except OSError:
        return False


class Command:
    def __init__(self, params: Params, path: str = PATH) -> None:
        self.path = path
        self.present = params["state"] == "present"
        if self.present and not params["runtime"]:
            raise OverlayError(
                "install overlayctl", self.path, "its code was not given",
                "Call the module from a task: its action plugin brings the code along.",
            )  # fmt: skip
        self.code = base64.b64decode(params["runtime"] or "")
        self.wanted = hashlib.sha256(self.code).hexdigest() if self.present else ""

    def observe(self) -> Observed:
        unit, read_only = boot_unit.read(), _read_only(self.path)
        if not os.path.lexists(self.path):
            return Observed(unit=unit, read_only=read_only)
        return Observed(digest(self.path), unit, not _is_ours(self.path), read_only)

    def plan(self, seen: Observed) -> Plan:
        there = "" if seen.foreign else seen.digest
        unit = boot_unit.wanted(self.path) if self.present else ""
        operations: tuple[Any, ...] = ()
        # The unit is there only while the command is.
        if seen.unit and not unit:
            operations += (RemoveUnit(),)
        if there != self.wanted:
            operations += (WriteCommand() if self.present else RemoveCommand(),)
        if unit and seen.unit != unit:
            operations += (WriteUnit(unit),)
        before, after = _items(there, seen.unit), _items(self.wanted, unit)
        warnings: tuple[str, ...] = ()
        if seen.read_only and operations:
            operations, after = (), before
            warnings = (f"{self.path} is on a file system that is read-only: it stays as it is.",)
        unmet: tuple[str, ...] = ()
        if seen.foreign and self.present:
            unmet = (f"{self.path} is there and not of this collection. Move it away.",)
        return Plan(operations, compare(before, after), unmet, warnings, {"path": self.path})

    def apply(self, operations: tuple[Any, ...]) -> None:
        for operation in operations:
            with told("install or remove overlayctl", self.path):
                if isinstance(operation, RemoveCommand):
                    remove(self.path)
                elif isinstance(operation, WriteCommand):
                    os.makedirs(os.path.dirname(self.path), mode=0o755, exist_ok=True)
                    write(self.path, f"#!{python()}\n".encode() + self.code, 0o755)
                    os.chmod(self.path, 0o755)  # whatever the umask is
                elif isinstance(operation, RemoveUnit):
                    boot_unit.uninstall()
                else:
                    boot_unit.install(operation.text)


def _is_ours(path: str) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return FORMAT_FILE in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def _items(code: str, unit: str) -> list[Item]:
    found = [Item("command", NAME, f"{NAME} {code[:12]}")] if code else []
    if unit:
        text = f"unit {boot_unit.NAME} {hashlib.sha256(unit.encode()).hexdigest()[:12]}"
        found.append(Item("unit", boot_unit.NAME, text))
    return found


def ensure(params: Params, check: bool, warn: Warn) -> dict[str, Any]:
    with one_run():
        return told_plan(converge(Command(params), check, warn))


def content(path: str) -> bytes:
    """The code of the program at ``path``, as it lies with a generation. Raises :class:`OverlayError`."""
    try:
        with open(path, "rb") as stream:
            found = stream.read()
    except OSError as error:
        raise OverlayError("read the code of this command", path, error, "Run site.yml to install it anew.") from error
    return found.partition(b"\n")[2] if found.startswith(b"#!") else found
