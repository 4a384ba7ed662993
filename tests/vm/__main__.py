# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: ``matrix [SUITE...]``. One system after the other, then a table; exit status 1 when any failed."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence

from lab import paths
from lab.paths import LabError

from . import image, machine
from .systems import SYSTEMS, System

LOGS = machine.TESTS.parent / "build/matrix"


def choose(names: Sequence[str]) -> list[System]:
    """Raises LabError for a suite that is not in the matrix."""
    known = {system.suite: system for system in SYSTEMS}
    for name in names:
        if name not in known:
            raise LabError(f"{name} is no system of the matrix; there are {', '.join(known)}")
    return [known[name] for name in names or known]


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
    print(f"  {check}: {told}", flush=True)


def main(names: Sequence[str]) -> int:
    """Returns the exit status; every foreseeable failure is one message on standard error and status 2."""
    try:
        paths.require_root()
        if platform.machine() != "x86_64":
            raise LabError(f"the matrix knows machines of type x86_64 only, and this one is {platform.machine()}")
        systems = choose(names)
        LOGS.mkdir(parents=True, exist_ok=True)
        outcomes = {}
        with image.lock():
            image.ensure(systems)
            for system in systems:
                log = LOGS / f"{system.suite}.log"
                print(f"{system.title}: booting; its console is in {log}", flush=True)
                outcomes[system.title] = machine.run(system, log, say)
    except LabError as error:
        print(f"matrix: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("matrix: interrupted", file=sys.stderr)
        return 130
    print("", *table(outcomes), sep="\n")
    return 0 if all(outcome.passed for outcome in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
