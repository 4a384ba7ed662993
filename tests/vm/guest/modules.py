# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the collection's modules from the packed runtime, and holds them to what they promise."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ansible.module_utils import basic

from ansible_collections.ebpf.overlay.plugins import modules
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf

Result = dict[str, Any]
# Where pins, generations and records are kept.
FOLDERS = ("/sys/fs/bpf", "/var/lib/ebpf-overlay", "/run/ebpf-overlay", "/etc/sysctl.d")
PATIENCE = 30.0  # seconds; freed objects vanish from the kernel's lists some time after they were closed


class BrokenError(Exception):
    """Something is not as it must be."""


def expect(condition: object, text: str) -> None:
    """Raises BrokenError with ``text``."""
    if not condition:
        raise BrokenError(text)


def preload() -> None:
    """Import the modules, so that not every run of one, which is a child of this process, compiles its source again."""
    for found in pkgutil.iter_modules(modules.__path__, f"{modules.__name__}."):
        importlib.import_module(found.name)


def outcome(module: str, arguments: dict[str, Any], check: bool) -> Result:
    """What the module returns. In a child, since a module ends its process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        given = {**arguments, "_ansible_check_mode": check, "_ansible_diff": True}
        vars(basic).update(_ANSIBLE_ARGS=json.dumps({"ANSIBLE_MODULE_ARGS": given}).encode(), _ANSIBLE_PROFILE="legacy")
        printed = open(writer, "w", encoding="utf-8")  # noqa: SIM115 (until the child ends)
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            importlib.import_module(f"{modules.__name__}.{module}").main()
        printed.flush()
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as stream:
        told = stream.read()
    os.waitpid(child, 0)
    expect(told.strip(), f"{module} ended without a result")
    result: Result = json.loads(told.strip().splitlines()[-1])
    return result


def run(module: str, check: bool = False, **arguments: Any) -> Result:
    """One run that must succeed; returns what the module returns."""
    result = outcome(module, arguments, check)
    expect(not result.get("failed"), f"{module}{' (dry run)' if check else ''} failed: {result.get('msg')}")
    return result


def made(module: str, changes: bool = True, **arguments: Any) -> Result:
    """Dry run, real run, dry run, real run: the first predicts the second and changes nothing, as do the others.

    Returns what the first real run returned.
    """
    before = state()
    predicted = run(module, check=True, **arguments)
    settled(before, f"a dry run of {module}")
    real = run(module, **arguments)
    warned = f", warning {real['warnings']}" if real.get("warnings") else ""
    expect(real["changed"] == changes, f"{module} reports changed={real['changed']}{warned}")
    for key in ("changed", "diff"):
        expect(
            timeless(predicted.get(key)) == timeless(real.get(key)),
            f"{module}: the dry run's {key} is {predicted.get(key)}, the real one's {real.get(key)}",
        )
    after = at_rest()
    for check in (True, False):
        again = run(module, check=check, **arguments)
        expect(not again["changed"], f"a second run of {module} (dry run: {check}) changes: {again.get('diff')}")
    settled(after, f"a second run of {module}")
    return real


def refused(module: str, *words: str, **arguments: Any) -> str:
    """Dry and real run fail alike, name ``words``, and change nothing. Returns the message."""
    before, messages = state(), []
    for check in (True, False):
        result = outcome(module, arguments, check)
        expect(result.get("failed"), f"{module} (dry run: {check}) should have failed")
        messages.append(str(result["msg"]))
        for word in words:
            expect(word in messages[-1], f"{module}: {word!r} is not in the message: {messages[-1]}")
    expect(
        timeless(messages[0]) == timeless(messages[1]),
        f"{module}: the dry run says {messages[0]!r}, the real one {messages[1]!r}",
    )
    settled(before, f"{module}, refused,")
    return messages[0]


def timeless(told: object) -> str:
    """What is told without the seconds in it, which go on between two runs."""
    return re.sub(r"\b[0-9.]+ s\b", "… s", str(told))


def state() -> dict[str, Any]:
    """Everything that the modules could change on this machine, in a form that can be compared."""
    return {
        "hooks": hooks(),
        "programs": list(ids(bpf.next_prog_id)),
        "maps": list(ids(bpf.next_map_id)),
        "links": list(ids(bpf.next_link_id)),
        "files": [path for folder in FOLDERS for path in tree(folder)],
        "bpffs": [line for line in Path("/proc/self/mounts").read_text().splitlines() if " bpf " in line],
    }


def tree(folder: str) -> list[str]:
    """What is in it. pathlib of Python 3.9 stumbles over a link that leads to a long name, as the record of a build."""
    found = os.walk(folder)
    return sorted(os.path.join(path, name) for path, folders, files in found for name in [*folders, *files])


def settled(wanted: dict[str, Any], after: str) -> None:
    """Raises BrokenError when the state is still another after a while."""
    deadline = time.monotonic() + PATIENCE
    while (now := state()) != wanted:
        if time.monotonic() > deadline:
            changes = {key: (wanted[key], now[key]) for key in wanted if wanted[key] != now[key]}
            raise BrokenError(f"{after} changed (before, after): {changes}")
        time.sleep(0.1)


def at_rest() -> dict[str, Any]:
    """The state once nothing vanishes any more of what was freed."""
    found = state()
    while True:
        time.sleep(0.5)
        found, before = state(), found
        if found == before:
            return found


def ids(following: Callable[[int], int | None]) -> Iterator[int]:
    number = following(0)
    while number is not None:
        yield number
        number = following(number)


def hooks() -> str:
    """What tc says about qdiscs and about the filters on both sides of every interface."""
    names = sorted(path.name for path in Path("/sys/class/net").iterdir())
    commands = [f"filter show dev {name} {direction}" for name in names for direction in ("ingress", "egress")]
    batch = "\n".join(["qdisc show", *commands, ""])
    # An interface without hooks is an error to tc.
    done = subprocess.run(["tc", "-force", "-batch", "-"], input=batch, capture_output=True, text=True, check=False)
    return done.stdout
