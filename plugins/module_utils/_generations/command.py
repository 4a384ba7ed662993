# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `overlayctl` on the node, as a resource: the code that is kept with a generation, as a program."""

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

from .stored_runtime import FORMAT_FILE
from .watchdog import python

NAME = "overlayctl"
PATH = f"/usr/local/sbin/{NAME}"

SPEC: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    # Kept out of the node's log, where it would be two hundred kilobytes of noise.
    "runtime": {"type": "str", "no_log": True},
}
REQUIRED_IF = [("state", "present", ("runtime",))]


@dataclass(frozen=True)
class Observed:
    """``digest``: of the code, "" where no file is. ``foreign``: the file is somebody else's. ``read_only``: the file
    system takes no files."""

    digest: str = ""
    foreign: bool = False
    read_only: bool = False


@dataclass(frozen=True)
class WriteCommand:
    pass


@dataclass(frozen=True)
class RemoveCommand:
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
    """Whether the command is of ``code`` (a SHA-256), or cannot be put there anyway."""
    return digest(path) == code or _read_only(path)


def _read_only(path: str) -> bool:
    try:
        return bool(os.statvfs(os.path.dirname(path)).f_flag & os.ST_RDONLY)
    except OSError:
        return False


class Command:
    def __init__(self, params: Params, path: str = PATH) -> None:
        self.path = path
        self.present = params["state"] == "present"
        self.code = base64.b64decode(params["runtime"] or "")
        self.wanted = hashlib.sha256(self.code).hexdigest() if self.present else ""

    def observe(self) -> Observed:
        if not os.path.lexists(self.path):
            return Observed(read_only=_read_only(self.path))
        return Observed(digest(self.path), not _is_ours(self.path), _read_only(self.path))

    def plan(self, seen: Observed) -> Plan:
        before = "" if seen.foreign else seen.digest
        after = self.wanted
        operations: tuple[Any, ...] = ()
        if before != after:
            operations = (WriteCommand(),) if self.present else (RemoveCommand(),)
        warnings: tuple[str, ...] = ()
        if seen.read_only and operations:
            operations, after = (), before
            warnings = (f"{self.path} is on a file system that is read-only: it stays as it is.",)
        unmet: tuple[str, ...] = ()
        if seen.foreign and self.present:
            unmet = (f"{self.path} is there and not of this collection. Move it away.",)
        return Plan(operations, compare(_items(before), _items(after)), unmet, warnings, {"path": self.path})

    def apply(self, operations: tuple[Any, ...]) -> None:
        for operation in operations:
            with told("install or remove overlayctl", self.path):
                if isinstance(operation, RemoveCommand):
                    remove(self.path)
                    continue
                os.makedirs(os.path.dirname(self.path), mode=0o755, exist_ok=True)
                write(self.path, f"#!{python()}\n".encode() + self.code, 0o755)
                os.chmod(self.path, 0o755)  # whatever the umask is


def _is_ours(path: str) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return FORMAT_FILE in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def _items(code: str) -> list[Item]:
    return [Item("command", NAME, f"{NAME} {code[:12]}")] if code else []


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
