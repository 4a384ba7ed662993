# SPDX-License-Identifier: GPL-3.0-or-later
"""The program in the guest: measures what it was asked for, and tells each figure on the console, a line each."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import topology
from ..objects import BenchError
from . import contenders

FOLDER = Path("/run/matrix")
# Kind -> (trips before the first slice, slices, trips of a slice, divisor of a trip).
SLICES = {"rr": (400, 3, 100, 1), "connect": (100, 3, 50, 1), "bulk": (40, 3, 4, 2)}


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
        with _ends(one.address, warm_up, slices, trips, kind) as (port, took):
            packets = contenders.check(one, kind, before, contenders.look(one), port)
    # The instructions of a trip, in the middle of three slices.
    return {
        "instructions": sorted(took)[slices // 2] / parts,
        "slices": [each / parts for each in took],
        "packets": round(packets / (warm_up + slices * trips) / parts, 2),
    }


@contextlib.contextmanager
def _ends(address: str, warm_up: int, slices: int, trips: int, kind: str) -> Iterator[tuple[int, list[int]]]:
    """Client and server make all trips; the client's port and each slice's median. Inside, they are still connected."""
    numbers = map(str, (topology.PORT, 0, warm_up, slices, trips))
    with subprocess.Popen(
        [str(FOLDER / "rr"), topology.CLIENT, topology.WORKLOAD, address, *numbers, kind],
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
        yield int(lines[0]), [int(line.split()[1]) for line in lines[1:-1]]
        process.stdin.close()


def _keep_neighbours() -> None:
    """Neighbours stay known. One that aged while a program was compiled costs 250 instructions a round trip more."""
    for address in (topology.DIRECT_WORKLOAD, topology.WORKLOAD_IPV4):
        with _ends(address, 10, 1, 10, "rr"):
            pass
    for namespace in (topology.CLIENT, topology.NODE, topology.WORKLOAD):
        done = subprocess.run(["ip", "-n", namespace, "-j", "neigh"], capture_output=True, text=True, check=True)
        for entry in json.loads(done.stdout):
            if "lladdr" in entry:
                place = (entry["dst"], "lladdr", entry["lladdr"], "dev", entry["dev"])
                topology.ip("-n", namespace, "neigh", "replace", *place, "nud", "permanent")


def main() -> None:
    """One figure after the other; one that fails is told as an error, and the next one follows."""
    wanted = json.loads((FOLDER / "wanted.json").read_text(encoding="utf-8"))
    # No process but the two ends runs between their packets; ksoftirqd, once awake, before them (see Seen.deferred).
    Path("/proc/sys/kernel/sched_rt_runtime_us").write_text("-1", encoding="ascii")
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    os.sched_setscheduler(contenders.ksoftirqd(), os.SCHED_FIFO, os.sched_param(60))
    with topology.network():
        _keep_neighbours()
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
