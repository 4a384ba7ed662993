# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: measure what is asked for, print a table, write build/bench-exact.json, draw the chart."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Sequence
from typing import Any

from lab import paths
from lab.paths import LabError
from vm import image
from vm.systems import SYSTEMS

from ..objects import ROOT, BenchError
from . import choice, machine, report

OUTPUT = ROOT / "build" / "bench-exact.json"
LOGS = ROOT / "build" / "bench-exact"


def _measure(wanted: choice.Wanted) -> tuple[dict[str, float], dict[str, str], dict[str, dict[str, Any]]]:
    """Figures, errors, and how each figure came about, by SUITE.KIND.PATH."""
    figures: dict[str, float] = {}
    errors: dict[str, str] = {}
    runs: dict[str, dict[str, Any]] = {}
    systems = {system.suite: system for system in SYSTEMS}
    with image.lock():
        image.ensure([systems[suite] for suite in wanted])
    LOGS.mkdir(parents=True, exist_ok=True)
    for suite, entries in wanted.items():
        log, began = LOGS / f"{suite}.log", time.monotonic()
        print(f"{systems[suite].title}: booting; its console is in {log.relative_to(ROOT)}", flush=True)
        for found in machine.measure(systems[suite], entries, log):
            key = f"{suite}.{found.pop('kind')}.{found.pop('path')}"
            if "error" in found:
                errors[key] = found["error"]
            else:
                figures[key] = found.pop("instructions")
                runs[key] = found
            told = f"{figures[key]:,.0f}" if key in figures else f"ERROR, {errors[key]}"
            print(f"  {time.monotonic() - began:4.0f} s  {key}: {told}", flush=True)
    return figures, errors, runs


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 1 where a figure is an error, 2 where nothing could be measured."""
    options = [one for one in arguments if one.startswith("-")]
    if {"-h", "--help"} & set(options):
        print(choice.USAGE, end="")
        return 0
    begun = time.monotonic()
    try:
        wanted = choice.wanted([one for one in arguments if one not in options])
        paths.require_root()
        if platform.machine() != "x86_64":
            raise LabError(f"the guests are of type x86_64, and this machine is {platform.machine()}")
        figures, errors, runs = _measure(wanted)
    except (ValueError, LabError, BenchError, OSError) as error:
        print(f"bench-exact: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench-exact: interrupted", file=sys.stderr)
        return 130
    result = {"figures": figures, "errors": errors, "runs": runs}
    OUTPUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(*report.table(figures, errors), sep="\n")
    if "--charts" in options:
        (ROOT / "docs" / "bench-exact.svg").write_text(report.chart(figures), encoding="utf-8")
    print(f"\n{OUTPUT.relative_to(ROOT)} written, {time.monotonic() - begun:.0f} s")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
