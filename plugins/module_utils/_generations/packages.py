# SPDX-License-Identifier: GPL-3.0-or-later
"""Packages of the distribution, as a resource: what is missing is installed by the node's own package manager."""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.plan import Change, Plan
from ansible_collections.ebpf.overlay.plugins.module_utils._core.resource import Params, Warn, converge, told

# Also what calls on disk are checked by, of earlier releases too: nothing is taken away or made stricter.
SPEC: dict[str, Any] = {
    "packages": {"type": "list", "elements": "str", "required": True},
    "state": {"type": "str", "choices": ["present"], "default": "present"},
}
APT_LISTS = "/var/lib/apt/lists/*_Packages*"
# apt-get takes "name-" as an order to remove, so a name must not end in a dash. Characters: Debian policy 5.6.1.
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9+._-]*[A-Za-z0-9+._])?")
ENVIRONMENT = {
    "DEBIAN_FRONTEND": "noninteractive",
    "LC_ALL": "C.UTF-8",
    # Ubuntu would otherwise restart services of the node after an installation.
    "NEEDRESTART_MODE": "l",
}
OUTPUT_LINES = 8
# What apt says when somebody else works with the lists or the archives. Its own timeout is for dpkg's lock only.
LOCKED = ("Could not get lock", "Unable to lock")
LOCK_TIMEOUT = 120  # seconds
LOCK_PAUSE = 2.0


@dataclass(frozen=True)
class Install:
    """Install these packages in one transaction."""

    packages: tuple[str, ...]


class Commands:
    """What runs on the node."""

    def find(self, name: str) -> str | None:
        return shutil.which(name)

    def run(self, command: list[str]) -> tuple[int, str, str]:
        """Exit code, output and errors."""
        environment = {**os.environ, **ENVIRONMENT}
        # pylint: disable-next=ansible-bad-function
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            check=False,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr


@dataclass(frozen=True)
class Apt:
    """Debian and its derivatives."""

    commands: Commands

    def installed(self, packages: list[str]) -> set[str]:
        # Ends with 1 when one of the names is unknown, and prints the others all the same.
        query = ["dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Package}\n", "--", *packages]
        output = self.commands.run(query)[1]
        lines = (line.split() for line in output.splitlines())
        return {words[1] for words in lines if len(words) == 2 and words[0] == "installed"}

    def install(self, packages: tuple[str, ...]) -> None:
        command = ["apt-get", "install", "--yes", "--no-install-recommends", "--no-remove", "-qq"]
        command += ["-o", f"DPkg::Lock::Timeout={LOCK_TIMEOUT}", "-o", "Dpkg::Use-Pty=0", "--", *packages]
        output = ""
        updated = not glob.glob(APT_LISTS)
        if updated:
            output = self._update()
        code, text = self._run(command)
        if code and not updated:
            output = self._update()
            code, text = self._run(command)
        if code:
            raise not_installed("apt-get", packages, output + text)

    def _update(self) -> str:
        # One broken source among several must not keep a package of another one away: installing decides.
        code, text = self._run(["apt-get", "update", "-qq"])
        return text if code else ""

    def _run(self, command: list[str]) -> tuple[int, str]:
        """Code and output; tried again while somebody else has locked what it needs."""
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            code, output, errors = self.commands.run(command)
            text = output + errors
            if not code or not any(words in text for words in LOCKED) or time.monotonic() >= deadline:
                return code, text
            time.sleep(LOCK_PAUSE)


@dataclass(frozen=True)
class Dnf:
    """Fedora, RHEL and their derivatives."""

    commands: Commands

    def installed(self, packages: list[str]) -> set[str]:
        def has(name: str) -> bool:
            query = ["rpm", "--query", "--whatprovides", "--", name]
            return bool(self.commands.run(query)[0] == 0)

        return {name for name in packages if has(name)}

    def install(self, packages: tuple[str, ...]) -> None:
        command = ["dnf", "install", "--assumeyes", "--quiet", "--setopt=install_weak_deps=False", *packages]
        code, output, errors = self.commands.run(command)
        if code:
            raise not_installed("dnf", packages, output + errors)


def not_installed(tool: str, packages: tuple[str, ...], output: str) -> OverlayError:
    last = "; ".join(line.strip() for line in output.strip().splitlines()[-OUTPUT_LINES:] if line.strip())
    names = " ".join(packages)
    return OverlayError(
        "install packages",
        f"{names} with {tool}",
        last.rstrip(".") or f"{tool} failed without a word",
        f"Check the node's package sources and try '{tool} install {names}' there.",
    )


def package_manager(commands: Commands, packages: list[str]) -> Apt | Dnf:
    """The node's own package manager. Raises OverlayError where there is none that this module knows."""
    if commands.find("dpkg-query") and commands.find("apt-get"):
        return Apt(commands)
    if commands.find("rpm") and commands.find("dnf"):
        return Dnf(commands)
    raise OverlayError(
        "install packages",
        ", ".join(packages),
        "neither dpkg-query and apt-get nor rpm and dnf are in PATH",
        "Install them by the means of this distribution, into the image of the nodes if they have one; then run again.",
    )


def plan_packages(wanted: list[str], installed: set[str]) -> Plan:
    """What is missing, in the order in which it was asked for. Pure."""
    names = list(dict.fromkeys(wanted))
    missing = tuple(name for name in names if name not in installed)
    return Plan(
        operations=(Install(missing),) if missing else (),
        changes=tuple(
            Change("package", f"package {name}", "absent" if name in missing else "installed", "installed", f"{name} ")
            for name in names
        ),
        result={"installed": list(missing), "present": [name for name in names if name not in missing]},
    )


def check_names(packages: list[str]) -> None:
    for name in packages:
        if not NAME.fullmatch(name):
            raise OverlayError(
                "install packages",
                f"packages: {name!r}",
                "this is not the name of a package",
                "Use plain names, without options, versions or architectures.",
            )


def check_root(operations: tuple[Any, ...]) -> None:
    if operations and os.geteuid() != 0:
        names = ", ".join(name for operation in operations for name in operation.packages)
        raise OverlayError("install packages", names, "EPERM (not root)", "Run the task with 'become: true'.")


class Packages:
    def __init__(self, params: Params, commands: Commands) -> None:
        self._names = params["packages"]
        check_names(self._names)
        # An image that brings its own has no package manager to ask.
        self._manager = package_manager(commands, self._names) if self._names else None

    def observe(self) -> set[str]:
        return self._manager.installed(self._names) if self._manager else set()

    def plan(self, seen: set[str]) -> Plan:
        planned = plan_packages(self._names, seen)
        check_root(planned.operations)
        return planned

    def apply(self, operations: tuple[Any, ...]) -> None:
        for operation in operations:
            if self._manager:
                self._manager.install(operation.packages)


def ensure(params: Params, check: bool, warn: Warn, commands: Commands | None = None) -> dict[str, Any]:
    return told(converge(Packages(params, commands or Commands()), check, warn))
