# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs playbooks and single modules on the lab as a user does, and records every task's result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.paths import INVENTORY

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = Path(sys.executable).parent


TIMEOUT = 900  # seconds

# Called with every line of output.
Follow = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """One task on one host. ``outcome``: ok, failed, skipped, unreachable or ignored."""

    outcome: str
    host: str
    task: str
    result: Mapping[str, Any]

    @property
    def changed(self) -> bool:
        return bool(self.result.get("changed"))


@dataclass(frozen=True)
class Run:
    """What a run did. ``output``: what a person saw."""

    code: int
    output: str
    results: list[Result] = field(repr=False)

    @property
    def changes(self) -> set[tuple[str, str]]:
        """The (host, task) pairs that changed something, or would."""
        return {(result.host, result.task) for result in self.results if result.changed}

    @property
    def visits(self) -> set[tuple[str, str]]:
        """The (host, task) pairs that ran a module on a node."""
        return {(result.host, result.task) for result in self.results if "invocation" in result.result}

    def of(self, task: str, host: str | None = None) -> list[Result]:
        """The results of a task, by name."""
        return [r for r in self.results if r.task == task and host in (None, r.host)]

    def failed(self) -> list[Result]:
        return [result for result in self.results if result.outcome in ("failed", "unreachable")]

    def succeeded(self) -> Run:
        """The run itself; AssertionError with its output if it failed."""
        assert self.code == 0, self.output
        return self


def playbook(
    name: str,
    *options: str,
    variables: Mapping[str, Any] | None = None,
    follow: Follow | None = None,
    begun: Follow | None = None,
    inventory: Path = INVENTORY,
    root: Path = ROOT,
    configured: bool = True,
) -> Run:
    """``ansible-playbook name`` from the clone (or another one at ``root``), by default on the lab's inventory.

    ``configured``: whether the clone's ansible.cfg is named, so that it counts wherever the clone lies. ``begun`` gets
    the name of every task when it begins; the output is then Ansible's own.
    """
    command: list[str | Path] = [BIN / "ansible-playbook", "-i", inventory, name, *options]
    if begun is None:
        return run(*command, variables=variables, follow=follow, root=root, configured=configured)

    def tell(line: str) -> None:
        if line.startswith("TASK ["):
            begun(line.partition("[")[2].rpartition("]")[0].rpartition(" : ")[2])

    return run(*command, variables=variables, follow=tell, callback="default", root=root)


def module(host: str, name: str, arguments: Mapping[str, Any] | None = None, *options: str) -> Result:
    """One module on one host; AssertionError if it gave no result."""
    done = run(BIN / "ansible", "-i", INVENTORY, host, "-m", name, "-a", json.dumps(dict(arguments or {})), *options)
    assert done.results, done.output
    return done.results[-1]


def run(
    *command: str | Path,
    variables: Mapping[str, Any] | None = None,
    follow: Follow | None = None,
    callback: str | None = None,
    root: Path = ROOT,
    configured: bool = True,
) -> Run:
    """A command of Ansible, in the clone's folder, with every result recorded.

    ``callback``: what prints, the clone's own by default. ``follow`` gets every line as it comes. The run is killed
    after TIMEOUT seconds.
    """
    with tempfile.TemporaryDirectory(prefix="ovl-play-") as folder:
        record = Path(folder) / "record"
        extra: list[str] = []
        if variables:
            (Path(folder) / "variables.json").write_text(json.dumps(dict(variables)), encoding="utf-8")
            extra = ["--extra-vars", f"@{folder}/variables.json"]
        environment = {
            **os.environ,
            "ANSIBLE_CALLBACK_PLUGINS": str(Path(__file__).parent / "callbacks"),
            "ANSIBLE_CALLBACKS_ENABLED": "recorder",
            "ANSIBLE_LOAD_CALLBACK_PLUGINS": "1",
            "ANSIBLE_CONFIG": str(root / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "OVERLAY_RECORD": str(record),
            "PYTHONPATH": "",
            **({"ANSIBLE_STDOUT_CALLBACK": callback} if callback else {}),
        }
        if not configured:
            del environment["ANSIBLE_CONFIG"]
        with subprocess.Popen(
            [*map(str, command), *extra], cwd=root, env=environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            watchdog = threading.Timer(TIMEOUT, process.kill)
            watchdog.start()
            output = []
            for line in process.stdout:
                output.append(line)
                if follow:
                    follow(line.rstrip())
            watchdog.cancel()
        lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
        return Run(process.returncode, "".join(output), [Result(**json.loads(line)) for line in lines])
