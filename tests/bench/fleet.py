# SPDX-License-Identifier: GPL-3.0-or-later
"""What the plays cost for many nodes: a run without changes on the lab, and the picture of a simulated cluster."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.paths import CONNECTIONS, INVENTORY

from .objects import ROOT, BenchError

LAB = ROOT / "tests/lab/lab"
PLAYS = Path(__file__).parent / "simulated"
ALL_AT_ONCE = {"overlay_batches": ["100%"]}


@dataclass(frozen=True)
class Cost:
    """``cpu``: seconds of the controller and its children; ``memory``: the largest process, in MB."""

    wall: float
    cpu: float
    memory: float


def play(inventory: Path, name: str | Path, variables: Mapping[str, object] | None = None, *options: str) -> Cost:
    """Run a playbook. Raises BenchError if it fails."""
    command = [ROOT / ".venv/bin/ansible-playbook", "-i", inventory, name, "-e", json.dumps(variables or {}), *options]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "PYTHONPATH": ""}
    with tempfile.TemporaryFile("w+") as output:
        began = time.monotonic()
        process = subprocess.Popen(
            list(map(str, command)), cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        _pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - began
        if process.returncode:
            output.seek(0)
            raise BenchError(f"{name} ended with {process.returncode}: {output.read()[-2000:]}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


@contextmanager
def lab(nodes: int) -> Iterator[None]:
    command = [LAB, "up", "--nodes", str(nodes), "--workloads", "1", "--base", "ready"]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        subprocess.run([str(LAB), "down"], check=True, stdout=subprocess.DEVNULL)


def cold(name: str | Path, *options: str) -> Cost:
    """Run a play on the lab as the first command of a day: no connection of an earlier one is open."""
    for connection in CONNECTIONS.glob("*"):
        connection.unlink()
    return play(INVENTORY, name, None, *options)


def noop_and_gather(nodes: int, rounds: int) -> list[tuple[Cost, Cost, Cost]]:
    """A play that only gathers network facts, a run that changes nothing, and its dry run; in turns."""
    with lab(nodes):
        play(INVENTORY, "site.yml", ALL_AT_ONCE)
        return [(cold(PLAYS / "gather.yml"), cold("site.yml"), cold("site.yml", "--check")) for __ in range(rounds)]


@contextmanager
def simulated(nodes: int) -> Iterator[Path]:
    """The inventory of a cluster that there is not."""
    hosts = {f"node{number}": {"number": number} for number in range(1, nodes + 1)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "inventory.json")
        path.write_text(json.dumps({"overlay_nodes": {"hosts": hosts}}), encoding="utf-8")
        yield path


def once_and_handed(nodes: int, rounds: int) -> list[tuple[Cost, Cost]]:
    """The picture alone with as many tasks, and the picture with every node's plan; in turns."""
    with simulated(nodes) as inventory:
        return [(play(inventory, PLAYS / "once.yml"), play(inventory, PLAYS / "handed.yml")) for __ in range(rounds)]


def handed(nodes: int) -> Cost:
    with simulated(nodes) as inventory:
        return play(inventory, PLAYS / "handed.yml")


def entries(nodes: int) -> int:
    """Of all nodes' maps: 30 workloads, two per peer, its own address."""
    return nodes * (30 + 2 * (nodes - 1) + 1)


def measure(quick: bool) -> tuple[dict[str, float], dict[str, object]]:
    """Figures, and the costs that they are of. A quick run takes fewer nodes."""
    rounds = 1 if quick else 3
    lab_turns = noop_and_gather(3 if quick else 20, rounds)
    picture_turns = once_and_handed(60 if quick else 300, rounds)
    few, many = (100, 200) if quick else (500, 1000)
    half, whole = handed(few), handed(many)
    more = entries(many) / entries(few)
    found = {
        "fleet.noop_over_gather": statistics.median(noop.wall / gather.wall for gather, noop, __ in lab_turns),
        "fleet.dry_run_over_noop": statistics.median(dry.wall / noop.wall for __, noop, dry in lab_turns),
        # CPU time: no node is waited for.
        "fleet.picture_300_over_once": statistics.median(plans.cpu / once.cpu for once, plans in picture_turns),
        "fleet.picture_1000_seconds": whole.wall,
        "fleet.picture_1000_mb": whole.memory,
        "fleet.picture_time_growth": whole.cpu / half.cpu / more,
        "fleet.picture_memory_growth": whole.memory / half.memory / more,
    }
    runs: dict[str, object] = {
        "title": "plays: wall clock and CPU time of the controller, s, and its largest process, MB",
        "gather, site.yml without changes, its dry run": [list(map(asdict, turn)) for turn in lab_turns],
        "picture, and picture with plans": [list(map(asdict, turn)) for turn in picture_turns],
        "growth": {few: asdict(half), many: asdict(whole)},
    }
    return found, runs
