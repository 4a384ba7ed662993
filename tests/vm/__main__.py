# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: ``matrix [SUITE...]``. One machine after the other, then a table; exit status 1 when any failed."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lab import paths
from lab.paths import LabError

from . import image, machine
from .systems import SYSTEMS, System

BUILD = machine.TESTS.parent / "build"


@dataclass(frozen=True)
class Boot:
    """One virtual machine: what it is called, its system, and the wiring that is built in it."""

    title: str
    system: System
    wiring: str = ""


def choose(what: str, names: Sequence[str], known: Mapping[str, Boot]) -> list[str]:
    """Raises LabError for a name that is not known."""
    for name in names:
        if name not in known:
            raise LabError(f"{name} is none of the {what}; there are {', '.join(known)}")
    return list(names or known)


def table(outcomes: Mapping[str, machine.Outcome]) -> list[str]:
    """System × check, as lines."""
    checks = list(dict.fromkeys(name for outcome in outcomes.values() for name in outcome.checks))
    rows = [["", *checks, "kernel", "seconds"]]
    for title, outcome in outcomes.items():
        marks = {None: "-", True: "ok", False: "FAILED"}
        row = [title, *(marks[outcome.checks.get(name)] for name in checks)]
        kernel = "FAILED" if outcome.trouble else "ok" if outcome.finished else "NO END"
        rows.append([*row, kernel, f"{outcome.seconds:.0f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def say(check: str, told: str) -> None:
    """Progress, a line for each check."""
    print(f"  {check}: {told}", flush=True)


def main(what: str, names: Sequence[str], known: Mapping[str, Boot]) -> int:
    """Boot those of ``known`` that are named, or all. Logs are in ``build/WHAT/NAME.log``.

    Returns the exit status; every foreseeable failure is one message on standard error and status 2.
    """
    try:
        paths.require_root()
        if platform.machine() != "x86_64":
            raise LabError(f"these are machines of type x86_64 only, and this one is {platform.machine()}")
        chosen = choose(what, names, known)
        (BUILD / what).mkdir(parents=True, exist_ok=True)
        outcomes = {}
        with image.lock():
            image.ensure(list(dict.fromkeys(known[name].system for name in chosen)))
            for name in chosen:
                boot, log = known[name], BUILD / what / f"{name}.log"
                print(f"{boot.title}: booting; its console is in {log}", flush=True)
                outcomes[boot.title] = machine.run(boot.system, log, say, boot.wiring)
    except LabError as error:
        print(f"{what}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{what}: interrupted", file=sys.stderr)
        return 130
    print("", *table(outcomes), sep="\n")
    return 0 if all(outcome.passed for outcome in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main("matrix", sys.argv[1:], {one.suite: Boot(one.title, one) for one in SYSTEMS}))
