# SPDX-License-Identifier: GPL-3.0-or-later
"""The program in the guest: measures what it was asked for, and tells each figure on the console, a line each."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import topology
from ..objects import BenchError
from . import contenders

FOLDER = Path("/run/matrix")
# Kind -> (trips before the first slice, slices, trips of a slice, divisor of a trip).
SLICES = {"rr": (400, 3, 100, 1), "connect": (100, 3, 50, 1), "bulk": (20, 3, 10, 2)}


def tell(kind: str, path: str, found: Mapping[str, Any]) -> None:
    """In one write and on a line of its own, since the kernel writes to the same console."""
    os.write(1, f"\n@exact {json.dumps({'kind': kind, 'path': path, **found})}\n".encode())


def measure(kind: str, path: str) -> dict[str, Any]:
    """Instructions of a trip in each slice, and packets of a trip. Raises BenchError when packets went another way."""
    warm_up, slices, trips, parts = SLICES[kind]
    one = contenders.contender(path)
    with contenders.in_place(one):
        subprocess.run(["conntrack", "-F"], capture_output=True, check=True)
        before = contenders.look(one)
        numbers = map(str, (topology.PORT, 0, warm_up, slices, trips))
        with subprocess.Popen(
            [str(FOLDER / "rr"), topology.CLIENT, topology.WORKLOAD, one.address, *numbers, kind],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            assert process.stdout
            assert process.stdin
            assert process.stderr
            lines: list[str] = []
            while not lines or lines[-1] != "done\n":
                lines.append(process.stdout.readline())
                if not lines[-1]:
                    raise BenchError(process.stderr.read().strip())
            packets = contenders.check(one, kind, before, contenders.look(one), int(lines[0]))
            process.stdin.close()
    took = [int(line.split()[1]) for line in lines[1:-1]]
    # The instructions of a trip, in the middle of three slices.
    return {
        "instructions": sorted(took)[slices // 2] / parts,
        "slices": [one / parts for one in took],
        "packets": round(packets / (warm_up + slices * trips) / parts, 2),
    }


def main() -> None:
    """One figure after the other; one that fails is told as an error, and the next one follows."""
    wanted = json.loads((FOLDER / "wanted.json").read_text(encoding="utf-8"))
    # No process but the two ends runs between their packets; ksoftirqd, once awake, before them (see Seen.deferred).
    Path("/proc/sys/kernel/sched_rt_runtime_us").write_text("-1", encoding="ascii")
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    os.sched_setscheduler(contenders.ksoftirqd(), os.SCHED_FIFO, os.sched_param(60))
    with topology.network():
        for kind, path in wanted:
            try:
                tell(kind, path, measure(kind, path))
            except (BenchError, OSError) as error:
                tell(kind, path, {"error": str(error)})
    os.write(1, b"\n@exact end\n")


if __name__ == "__main__":
    with contextlib.suppress(Exception):
        try:
            main()
        except Exception:
            traceback.print_exc()
            sys.stderr.flush()
