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
from .pace import best, chosen, undisturbed

MANY = 500
WARM_UP = 500
TRIPS = 400  # of a slice: some six milliseconds, in which the pace seldom changes
CPU = max(os.sched_getaffinity(0))

_BLIND = ("blind_request", "blind_reply")

# The pace and the p50 (ns) of every slice of a round; contender -> rounds.
Round = list[tuple[float, int]]
Samples = dict[str, list[Round]]


@dataclass(frozen=True)
class Contender:
    name: str
    title: str
    loaded: Loaded | None = None
    programs: tuple[str, ...] = ("from_uplink", "from_workload", "to_workload", "to_uplink")
    """At ingress of uplink and workload; at egress of workload and uplink, if there are more."""
    rules: int = 0
    """How many more than three, in each of two chains."""
    mode: str = "on"
    direct: bool = False
    bypassed: bool = False
    tcx: bool = False
    counted: bool = False
    """It has the map ``stats``."""


def contenders(empty: Loaded, blind: Loaded, original: Loaded, neigh: Loaded, peer: Loaded) -> list[Contender]:
    return [
        Contender("direct", "direct veth pair (floor)", direct=True),
        Contender("kernel", "kernel, 3 rules"),
        Contender("kernel_rules", "kernel, 2 × 500 rules", rules=MANY),
        Contender("empty", "kernel, 3 rules, empty programs attached", loaded=empty, programs=("empty",) * 4),
        Contender("off", "kernel, 3 rules, attached, mode off", loaded=peer, mode="off", counted=True),
        Contender("blind", "redirect without looking", loaded=blind, programs=_BLIND, bypassed=True),
        Contender("blind_tcx", "the same through TCX", loaded=blind, programs=_BLIND, bypassed=True, tcx=True),
        Contender(
            "original", "original design (neigh/neigh)", loaded=original, programs=("request", "reply"), bypassed=True
        ),
        Contender("neigh", "overlay, neigh/neigh", loaded=neigh, bypassed=True, counted=True),
        Contender("peer", "overlay, peer/neigh", loaded=peer, bypassed=True, counted=True),
        Contender("peer_tcx", "overlay, peer/neigh, through TCX", loaded=peer, bypassed=True, counted=True, tcx=True),
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


def _round(contender: Contender, rr: str, slices: int) -> Round:
    """Raises BenchError when the packets did not go the way that this contender stands for."""
    loaded = contender.loaded
    with contextlib.ExitStack() as stack:
        topology.filter_packets(contender.rules)
        if loaded:
            if contender.counted:
                topology.set_mode(loaded, contender.mode)
            request, reply, *watchers = (loaded.programs[name] for name in contender.programs)
            stack.enter_context(topology.attached(request, reply, contender.tcx, watchers))
        before = loaded.counters() if loaded and contender.counted else {}
        address = topology.DIRECT_WORKLOAD if contender.direct else topology.WORKLOAD_IPV4
        numbers = map(str, (topology.PORT, CPU, WARM_UP, slices, TRIPS))
        with subprocess.Popen(
            [rr, topology.CLIENT, topology.WORKLOAD, address, *numbers],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            assert process.stdout
            assert process.stdin
            assert process.stderr
            lines: list[str] = []
            while not lines or lines[-1] != "done\n":
                lines.append(process.stdout.readline())
                if not lines[-1]:
                    raise BenchError(f"{contender.title}: {process.stderr.read().strip()}")
            known = topology.tracked(int(lines[0]))
            after = loaded.counters() if loaded and contender.counted else {}
            process.stdin.close()
    _check(contender, slices * TRIPS + WARM_UP, known, {label: after[label] - before[label] for label in after})
    return [(float(pace), int(p50)) for pace, p50 in map(str.split, lines[1:-1])]


def _check(contender: Contender, trips: int, known: bool, packets: dict[str, int]) -> None:
    counted = {label: count for label, count in packets.items() if count}
    # The overlay leaves the connection to conntrack; the others that redirect do without.
    if not contender.direct and known == (contender.bypassed and not contender.counted):
        does = "knows" if known else "does not know"
        raise BenchError(f"{contender.title}: conntrack {does} the connection; the counters say {counted or 'nothing'}")
    if not contender.counted:
        return
    # Besides the bytes there are a few acknowledgements; heartbeats are not counted there.
    least, most = (trips * 0.98, trips * 2 + 10) if contender.bypassed else (0, 0)
    for label in ("uplink.to_workload", "workload.to_uplink"):
        if not least <= packets[label] <= most:
            raise BenchError(f"{contender.title}: {counted}, {least} packets each way expected")


def best_pace(found: Samples) -> float:
    return best(pace for rounds in found.values() for slices in rounds for pace, __ in slices)


def p50s(rounds: list[Round], pace: float) -> list[float]:
    """The p50 of each round that has enough undisturbed slices: their median."""
    kept = [undisturbed(slices, pace) for slices in rounds]
    return [statistics.median(good) for good, slices in zip(kept, rounds) if len(good) * 4 >= len(slices)]


def measure(everyone: list[Contender], rounds: int, slices: int, limit: float) -> Samples:
    """As many rounds as it takes for ``rounds`` undisturbed ones of each, or until ``limit`` seconds have passed."""
    found: Samples = {contender.name: [] for contender in everyone}
    end = time.monotonic() + limit
    with _program() as rr:
        while True:
            # In a new order each time, so that nobody always follows the same neighbour.
            for contender in random.sample(everyone, len(everyone)):
                found[contender.name].append(_round(contender, rr, slices))
            pace = best_pace(found)
            if min(len(p50s(done, pace)) for done in found.values()) >= rounds:
                return found
            if len(found[everyone[0].name]) >= rounds and time.monotonic() > end:
                return found


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """The caller, and what it starts, on the processor on which the round trips run, and before all others there."""
    home, policy, priority = os.sched_getaffinity(0), os.sched_getscheduler(0), os.sched_getparam(0)
    os.sched_setaffinity(0, {CPU})
    with contextlib.suppress(PermissionError):  # in some containers; the pace then tells what was disturbed
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, priority)
        os.sched_setaffinity(0, home)


def medians(found: Samples) -> dict[str, float]:
    """Contender -> median over the rounds of their p50, ns; on a machine that is never quiet, of the best slices."""
    pace = best_pace(found)
    result = {}
    for name, rounds in found.items():
        every_slice = [one for slices in rounds for one in slices]
        few = max(len(every_slice) // 10, 1)
        result[name] = statistics.median(p50s(rounds, pace) or chosen(every_slice, pace, few))
    return result


def figures(found: Samples) -> dict[str, float]:
    p50 = medians(found)
    overhead = p50["kernel"] - p50["direct"]
    result = {f"rr.p50_us.{name}": value / 1000 for name, value in p50.items()}
    for name in ("peer", "peer_tcx", "neigh", "original", "blind", "blind_tcx"):
        result[f"rr.overhead_removed.{name}"] = (p50["kernel"] - p50[name]) / overhead
    result["rr.rules_p50_change"] = p50["peer_rules"] / p50["peer"] - 1
    result["rr.kernel_rules_p50_change"] = p50["kernel_rules"] / p50["kernel"] - 1
    result["rr.empty_change"] = p50["empty"] / p50["kernel"] - 1
    result["rr.off_change"] = p50["off"] / p50["kernel"] - 1
    return result
