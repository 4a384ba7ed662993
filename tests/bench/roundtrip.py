# SPDX-License-Identifier: GPL-3.0-or-later
"""Latency of one byte there and back, of all contenders in turn, round after round."""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

from . import topology
from .objects import HERE, BenchError, Loaded
from .pace import Pace, chosen, undisturbed

MANY = 500
WARM_UP = 500
CPU = max(os.sched_getaffinity(0))

# Contender -> (pace, p50 in ns) of every round.
Samples = dict[str, list[tuple[float, int]]]


@dataclass(frozen=True)
class Contender:
    name: str
    title: str
    loaded: Loaded | None = None
    programs: tuple[str, str] = ("from_uplink", "from_workload")
    rules: int = 0
    """How many more than three, in each of two chains."""
    mode: str = "on"
    direct: bool = False
    bypassed: bool = False
    tcx: bool = False
    counted: bool = False
    """It has the map ``stats``."""


def contenders(original: Loaded, neigh: Loaded, peer: Loaded) -> list[Contender]:
    return [
        Contender("direct", "direct veth pair (floor)", direct=True),
        Contender("kernel", "kernel, 3 rules"),
        Contender("kernel_rules", "kernel, 2 × 500 rules", rules=MANY),
        Contender("off", "kernel, 3 rules, attached, mode off", loaded=peer, mode="off", counted=True),
        Contender(
            "original", "original design (neigh/neigh)", loaded=original, programs=("request", "reply"), bypassed=True
        ),
        Contender("neigh", "overlay, neigh/neigh", loaded=neigh, bypassed=True, counted=True),
        Contender("peer", "overlay, peer/neigh", loaded=peer, bypassed=True, counted=True),
        Contender(
            "peer_rules", "overlay, peer/neigh, 2 × 500 rules", loaded=peer, rules=MANY, bypassed=True, counted=True
        ),
    ]


@contextlib.contextmanager
def _program() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="ovl-xbench-") as folder:
        path = f"{folder}/rr"
        done = subprocess.run(
            ["gcc", "-O2", "-o", path, str(HERE / "rr.c")], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BenchError(f"gcc: {done.stderr.strip()}")
        yield path


def _round(contender: Contender, rr: str, trips: int, pace: Pace) -> tuple[float, int]:
    """(pace, p50 in nanoseconds). Raises BenchError when the packets did not go the way that this contender stands for."""
    loaded = contender.loaded
    with contextlib.ExitStack() as stack:
        topology.filter_packets(contender.rules)
        if loaded:
            if contender.counted:
                topology.set_mode(loaded, contender.mode)
            stack.enter_context(topology.attached(*(loaded.programs[name] for name in contender.programs), tcx=contender.tcx))
        before = loaded.counters() if loaded and contender.counted else {}
        address = topology.DIRECT_WORKLOAD if contender.direct else topology.WORKLOAD_IPV4
        command = [
            rr,
            topology.CLIENT,
            topology.WORKLOAD,
            address,
            str(topology.PORT),
            str(CPU),
            str(WARM_UP),
            str(trips),
        ]
        worst = pace.now()
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout and process.stdin and process.stderr
            answer = process.stdout.readline().split()
            worst = max(worst, pace.now())
            if not answer:
                raise BenchError(f"{contender.title}: {process.stderr.read().strip()}")
            known = topology.tracked(int(answer[4]))
            after = loaded.counters() if loaded and contender.counted else {}
            process.stdin.close()
    counted = {label: after[label] - before[label] for label in after if after[label] != before[label]}
    if not contender.direct and known == contender.bypassed:
        does = "knows" if known else "does not know"
        raise BenchError(f"{contender.title}: conntrack {does} the connection; the counters say {counted or 'nothing'}")
    if contender.counted:
        expected = trips + WARM_UP if contender.bypassed else 0
        for label in ("uplink.to_workload", "workload.to_uplink"):
            redirected = counted.get(label, 0)
            # Besides the bytes there are the handshake and a few acknowledgements, and never less.
            if not expected <= redirected <= expected * 2 + 10 * bool(expected):
                raise BenchError(f"{contender.title}: {counted}, {expected} packets each way expected")
    return worst, int(answer[0])


def best_pace(found: Samples) -> float:
    return min(pace for samples in found.values() for pace, _ in samples)


def measure(everyone: list[Contender], pace: Pace, rounds: int, trips: int, limit: float) -> Samples:
    """As many rounds as it takes for ``rounds`` undisturbed ones of each, or until ``limit`` seconds have passed."""
    found: Samples = {contender.name: [] for contender in everyone}
    end = time.monotonic() + limit
    with _program() as rr:
        while True:
            # In a new order each time, so that nobody always follows the same neighbour.
            for contender in random.sample(everyone, len(everyone)):
                found[contender.name].append(_round(contender, rr, trips, pace))
            best = best_pace(found)
            if min(len(undisturbed(samples, best)) for samples in found.values()) >= rounds:
                return found
            if len(found[everyone[0].name]) >= rounds and time.monotonic() > end:
                return found


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """On the processor on which the round trips run: the pace is that of the caller's."""
    home = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CPU})
    try:
        yield
    finally:
        os.sched_setaffinity(0, home)


def figures(found: Samples, rounds: int) -> dict[str, float]:
    """From the undisturbed rounds of each contender."""
    best = best_pace(found)
    p50 = {name: statistics.median(chosen(samples, best, rounds)) for name, samples in found.items()}
    overhead = p50["kernel"] - p50["direct"]
    result = {f"rr.p50_us.{name}": value / 1000 for name, value in p50.items()}
    for name in ("peer", "neigh", "original"):
        result[f"rr.overhead_removed.{name}"] = (p50["kernel"] - p50[name]) / overhead
    result["rr.rules_p50_change"] = p50["peer_rules"] / p50["peer"] - 1
    result["rr.kernel_rules_p50_change"] = p50["kernel_rules"] / p50["kernel"] - 1
    result["rr.off_change"] = p50["off"] / p50["kernel"] - 1
    return result
