# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a run is: steps of a play, its batches, how the hosts fared in each step. Reads the task files, no more."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

_FOLLOWED = ("include_tasks", "import_tasks")
_ROLES = ("include_role", "import_role")
_SILENT = ("meta",)
# Of a run on more nodes, the recap names only those that are not well.
_MOST_ROWS = 12


def listed(tasks: Any, folder: str, roles: Mapping[str, str], within: tuple[str, ...] = ()) -> list[str]:
    """The names of the steps that a list of tasks takes when nothing goes wrong, as written in the files.

    ``folder``: where files that it includes lie. ``roles``: name of a role -> its folder. What cannot be followed (a
    file whose name is a template, another role) counts as one step; so does a file that includes itself. ``within``:
    the files that this list is included by.
    """
    steps: list[str] = []
    for task in tasks if isinstance(tasks, list) else []:
        if not isinstance(task, Mapping):
            continue
        if "block" in task:
            steps += listed(task["block"], folder, roles, within) + listed(task.get("always"), folder, roles, within)
            continue
        actions = {str(key).rpartition(".")[2]: value for key, value in task.items()}
        if any(name in actions for name in _SILENT):
            continue
        path = _included(actions, folder, roles)
        follow = path is not None and path not in within
        inner = listed(_load(path), os.path.dirname(path), roles, (*within, path)) if path and follow else []
        steps += inner or [str(task.get("name", ""))]
    return steps


def _included(actions: Mapping[str, Any], folder: str, roles: Mapping[str, str]) -> str | None:
    for name in _FOLLOWED:
        if name in actions:
            value = actions[name]
            file = str(value.get("file", "") if isinstance(value, Mapping) else value)
            return None if "{{" in file or not file else os.path.join(folder, file)
    for name in _ROLES:
        arguments = actions.get(name)
        if isinstance(arguments, Mapping) and arguments.get("name") in roles:
            start = str(arguments.get("tasks_from", "main"))
            return os.path.join(roles[arguments["name"]], "tasks", start if start.endswith(".yml") else f"{start}.yml")
    return None


def _load(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as stream:
            return yaml.safe_load(stream)
    except (OSError, yaml.YAMLError):
        return None


def batches(total: int, serial: Sequence[Any]) -> list[int]:
    """The sizes of a play's batches; one for a play without ``serial``."""
    sizes: list[int] = []
    left, place = total, 0
    wanted = [_batch(item, total) for item in serial] or [total]
    while left > 0:
        size = wanted[min(place, len(wanted) - 1)]
        size = min(left, size) if size > 0 else left
        sizes.append(size)
        left, place = left - size, place + 1
    return sizes


def _batch(item: Any, total: int) -> int:
    text = str(item)
    if text.endswith("%"):
        return max(int(total * float(text[:-1]) / 100), 1)
    return int(text)


class Place:
    """Numbers steps as they begin, by the list of all steps; a repeated or unforeseen one has no number."""

    def __init__(self, steps: Sequence[str]) -> None:
        self.steps = steps
        self._next = 0

    def number(self, name: str) -> int | None:
        for place in range(self._next, len(self.steps)):
            if self.steps[place] == name:
                self._next = place + 1
                return place + 1
        return None


@dataclass
class Step:
    """A task as it goes through the hosts. ``began``: seconds of any clock."""

    name: str
    began: float
    number: int | None = None
    of: int = 0
    validates: bool = False
    started: set[str] = field(default_factory=set)
    ok: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    skipped: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    unreachable: set[str] = field(default_factory=set)

    @property
    def done(self) -> set[str]:
        return self.ok | self.skipped | self.failed | self.unreachable

    @property
    def dull(self) -> bool:
        """Whether no host did anything."""
        return not self.ok and not self.failed and not self.unreachable

    def line(self, scope: str, now: float, check: bool) -> str:
        """``batch 2 of 3 · 5 nodes · step 4 of 9 Attach the programs … 5/5 ok, 1 changed (3.2 s)``."""
        step = f"step {self.number} of {self.of} {self.name}" if self.number else self.name
        total = len(self.started | self.done)
        told = [f"{len(self.ok)}/{total} ok"]
        if self.changed:
            told.append(f"{len(self.changed)} {'would change' if check else 'changed'}")
        for word in ("skipped", "failed", "unreachable"):
            if getattr(self, word):
                told.append(f"{len(getattr(self, word))} {word}")
        return f"{scope} · {step} … {', '.join(told)} ({now - self.began:.1f} s)"


def nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def reason(result: Mapping[str, Any]) -> str:
    """What a failed task said, whole; of a loop, what each failed item said."""
    items = [item for item in result.get("results") or () if isinstance(item, Mapping)]
    broken = [item for item in items if item.get("failed") or item.get("unreachable")]
    if broken:
        return "\n".join(f"{_item(item)}{_said(item)}" for item in broken)
    return _said(result)


def _item(item: Mapping[str, Any]) -> str:
    variable = item.get("ansible_loop_var", "item")
    label = item.get("_ansible_item_label", item.get(str(variable)))
    return "" if label is None or isinstance(label, (dict, list)) else f"{label}: "


def _said(result: Mapping[str, Any]) -> str:
    message = result.get("msg")
    parts = ["\n".join(map(str, message)) if isinstance(message, (list, tuple)) else str(message or "it failed")]
    for stream in ("module_stderr", "module_stdout", "stderr", "stdout"):
        text = str(result.get(stream) or "").strip()
        if text and text not in parts[0]:
            parts.append(f"{stream}: {text}")
    return "\n".join(part.strip() for part in parts)


def recap(rows: Iterable[tuple[str, Mapping[str, int]]], trouble: Mapping[str, str], check: bool) -> list[str]:
    """The last lines of a run. ``rows``: Ansible's own counts by host; ``trouble``: what was last wrong, by host."""
    rows = list(rows)
    word = "would change" if check else "changed"
    bad = {name for name, counts in rows if counts["failures"] or counts["unreachable"]}
    head = [nodes(len(rows)), f"{sum(1 for _name, counts in rows if counts['changed'])} {word}"]
    if bad:
        head.append(f"{len(bad)} failed or unreachable")
    lines = [" · ".join(head)]
    alike: dict[str, int] = {}
    for name, counts in rows:
        told = [f"{word} {counts['changed']}" if counts["changed"] else "unchanged"]
        told += [f"{key} {counts[key]}" for key in ("rescued", "ignored") if counts[key]]
        if name in bad:
            told.insert(0, "unreachable" if counts["unreachable"] else "FAILED")
        text = ", ".join(told)
        if name in bad or len(rows) <= _MOST_ROWS:
            lines.append(f"  {name}  {text}")
        else:
            alike[text] = alike.get(text, 0) + 1
        if name in bad and name in trouble:
            lines.append(f"      {trouble[name]}")
    return lines + [f"  {nodes(count)}: {text}" for text, count in sorted(alike.items())]
