# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: measure everything, print a table, write build/bench.json, draw the charts on request."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError

from . import charts, fleet, modules, objects, pace, program_cost, roundtrip, topology

OUTPUT = objects.ROOT / "build" / "bench.json"
REDIRECT_NEIGH, REDIRECT_PEER = 1, 2

# Figure -> (title, factor, unit, bar or None, how it compares).
BARS = {
    "rr.overhead_removed.peer": ("overhead removed, overlay with peer", 100, "%", 0.73, ">="),
    "rr.overhead_removed.peer_tcx": ("overhead removed, overlay with peer through TCX", 100, "%", 0.78, ">="),
    "rr.overhead_removed.neigh": ("overhead removed, overlay with neigh", 100, "%", None, ""),
    "rr.overhead_removed.original": ("overhead removed, original design", 100, "%", None, ""),
    "rr.overhead_removed.blind": ("overhead removed, redirect without looking", 100, "%", None, ""),
    "rr.overhead_removed.blind_tcx": ("overhead removed, the same through TCX", 100, "%", None, ""),
    "rr.rules_p50_change": ("2 × 500 rules: change of the overlay's p50", 100, "%", 0.03, "<"),
    "rr.kernel_rules_p50_change": ("2 × 500 rules: change of the kernel's p50", 100, "%", None, ""),
    "rr.off_change": ("attached with mode off: change of the kernel's p50", 100, "%", 0.03, "<"),
    "rr.empty_change": ("  the same with empty programs", 100, "%", None, ""),
    "prog.hit_ns": ("a hit, IPv4", 1, "ns", 40, "<="),
    "prog.hit6_ns": ("a hit, IPv6", 1, "ns", None, ""),
    "prog.hit_over_original": ("a hit, compared with the original's", 1, "×", 1.4, "<="),
    "prog.miss_ns": ("a packet that is not ours", 1, "ns", 6, "<="),
    "prog.watch_ns": ("at egress, neither handshake nor awaited", 1, "ns", 8, "<="),
    "modules.map_fill_ratio": ("100,000 map entries, over JSON and bare calls", 1, "×", 2.0, "<="),
    "modules.map_noop_ratio": ("  the same with nothing to do", 1, "×", 2.0, "<="),
    "modules.map_noop_peak_mb": ("  and its peak memory", 1, "MB", 80, "<"),
    "modules.attach_noop_ratio": ("250 attached interfaces, over pyroute2's dump", 1, "×", 1.5, "<="),
    "modules.attach_noop_over_raw": ("  over the module's own bare dump", 1, "×", None, ""),
    "modules.conntrack_flag_100k_seconds": ("100,000 connections flagged for a strict conntrack", 1, "s", 5, "<="),
    "fleet.noop_over_gather": ("site.yml without changes on 20 nodes, over gathering", 1, "×", 1.5, "<="),
    "fleet.dry_run_over_noop": ("  its dry run, over that", 1, "×", 1.2, "<="),
    "fleet.picture_300_over_once": ("300 nodes' plans, over building the picture once", 1, "×", 1.3, "<="),
    "fleet.picture_1000_seconds": ("  of 1,000 nodes with 30 workloads each", 1, "s", None, ""),
    "fleet.picture_1000_mb": ("  and its memory", 1, "MB", None, ""),
    "fleet.picture_time_growth": ("  time, 500 to 1,000 nodes, over entries", 1, "×", 1, "<="),
    "fleet.picture_memory_growth": ("  memory, 500 to 1,000 nodes, over entries", 1, "×", 1, "<="),
}


def _measure(quick: bool) -> dict[str, Any]:
    rounds, slices, limit = (3, 6, 20) if quick else (11, 12, 180)
    peer = objects.overlay(OVERLAY_REDIRECT=REDIRECT_PEER)
    neigh = objects.overlay(OVERLAY_REDIRECT=REDIRECT_NEIGH)
    original, empty = objects.original(), objects.empty()
    with topology.network():
        topology.fill_original(original)
        for loaded in (peer, neigh):
            topology.fill_overlay(loaded)
        steady = pace.Pace(empty.programs["empty"])
        with roundtrip.pinned():
            costs = program_cost.measure(program_cost.cases(empty, original, neigh, peer), steady, 10 if quick else 60)
            blind = objects.blind(*topology.ifindexes(), topology.CLIENT_IPV4)
            everyone = roundtrip.contenders(empty, blind, original, neigh, peer)
            round_trips = roundtrip.measure(everyone, rounds, slices, limit)
    of_modules, module_runs = modules.measure(quick)
    of_fleet, fleet_runs = fleet.measure(quick)
    figures = {**roundtrip.figures(round_trips), **program_cost.figures(costs), **of_modules, **of_fleet}
    figures |= {
        f"prog.verified_instructions.{name}": objects.verified_instructions(fd) for name, fd in peer.programs.items()
    }
    return {
        "figures": {name: round(value, 4) for name, value in figures.items()},
        "runs": {
            "machine": {"kernel": platform.release(), "processor": _processor(), "processors": os.cpu_count()},
            "quick": quick,
            "rr": {
                "title": "one byte there and back: of each round, of each slice, the pace and the p50, ns",
                "trips": roundtrip.TRIPS, "best_pace": roundtrip.best_pace(round_trips), "within": pace.BEST,
                "titles": {contender.name: contender.title for contender in everyone},
                "rounds": round_trips,
            },
            "prog": {"title": "cost of a program: of each turn the pace and the cost of one run, ns", "turns": costs},
            "modules": module_runs,
            "fleet": fleet_runs,
        },
    }  # fmt: skip


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _table(result: dict[str, Any]) -> str:
    figures, runs = result["figures"], result["runs"]["rr"]
    lines = [f"{'one byte there and back':45} p50 µs  above the floor   undisturbed rounds"]
    for name, title in runs["titles"].items():
        p50 = figures[f"rr.p50_us.{name}"]
        still = len(roundtrip.p50s(runs["rounds"][name], runs["best_pace"]))
        above = p50 - figures["rr.p50_us.direct"]
        lines.append(f"  {title:43} {p50:6.2f} {above:12.2f} {still:9} of {len(runs['rounds'][name])}")
    lines.append(f"\n{'program, ns above an empty one':45}   in    out")
    for title, name in (
        ("original design, hit", "original"), ("overlay neigh, IPv4 hit", "neigh.hit"),
        ("overlay peer, IPv4 hit", "peer.hit"), ("overlay peer, IPv6 hit", "peer.hit6"),
        ("overlay, UDP", "miss.udp"), ("overlay, other port", "miss.tcp"),
        ("overlay, IPv6 UDP", "miss.udp6"), ("overlay, IPv6 other port", "miss.tcp6"),
    ):  # fmt: skip
        lines.append(f"  {title:43} {figures[f'prog.{name}.in_ns']:5.1f}  {figures[f'prog.{name}.out_ns']:5.1f}")
    lines.append(f"\n{'figure':55}   value       bar")
    for name, (title, factor, unit, limit, sign) in BARS.items():
        verdict = ""
        if limit is not None:
            met = {">=": figures[name] >= limit, "<": figures[name] < limit, "<=": figures[name] <= limit}[sign]
            verdict = f"{sign} {limit * factor:g} {unit}  {'met' if met else 'MISSED'}"
        lines.append(f"  {title:53} {figures[name] * factor:7.2f} {unit:2}  {verdict}")
    return "\n".join(lines)


def main() -> int:
    start = time.monotonic()
    try:
        result = _measure(quick=os.environ.get("BENCH_QUICK", "") not in ("", "0"))
    except (objects.BenchError, OverlayError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(_table(result))
    if "--charts" in sys.argv[1:]:
        charts.draw(result, objects.ROOT / "docs")
    print(f"\n{OUTPUT.relative_to(objects.ROOT)} written, {time.monotonic() - start:.0f} s")
    return 0
