# SPDX-License-Identifier: GPL-3.0-or-later
"""Charts in docs/ from build/bench.json: ``bench --charts`` after a run, or this file as a program without one."""

from __future__ import annotations

import json
import sys
from html import escape
from pathlib import Path
from typing import Any

WIDTH, LABEL, VALUE, BAR, GAP, TOP = 760, 270, 90, 22, 8, 48
GREY, BLUE, LIGHT, ORANGE = "#9aa0a6", "#1f6feb", "#8ab4f8", "#d97706"


def bars(title: str, unit: str, rows: list[tuple[str, float, str]], mark: tuple[float, str] | None = None) -> str:
    """Horizontal bars from zero; ``mark``: a dashed line with its label."""
    height = TOP + len(rows) * (BAR + GAP) + 30
    room = WIDTH - LABEL - VALUE
    # One far outlier must not flatten the rest: it is cut off, and says so.
    ordered = sorted(value for __, value, __ in rows)
    top = max(ordered[-1], mark[0] if mark else 0.0)
    if len(ordered) > 2 and ordered[-1] > 2 * ordered[-2]:
        top = ordered[-2] * 1.35
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
        ' font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="12" y="26" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    for number, (label, value, colour) in enumerate(rows):
        y = TOP + number * (BAR + GAP)
        length = max(min(value, top) / top * room, 1)
        cut = " (bar cut off)" if value > top else ""
        out += [
            f'<text x="{LABEL - 8}" y="{y + 16}" text-anchor="end">{escape(label)}</text>',
            f'<rect x="{LABEL}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>',
        ]
        if cut:
            out.append(
                f'<text x="{LABEL + length - 6:.1f}" y="{y + 16}" text-anchor="end" fill="white">'
                f"{value:.1f} {escape(unit)}{cut}</text>"
            )
        else:
            out.append(f'<text x="{LABEL + length + 6:.1f}" y="{y + 16}">{value:.1f} {escape(unit)}</text>')
    if mark:
        x = LABEL + mark[0] / top * room
        bottom = TOP + len(rows) * (BAR + GAP)
        out += [
            f'<line x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{bottom}" stroke="#444" stroke-dasharray="4 3"/>',
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle" fill="#444">{escape(mark[1])}</text>',
        ]
    return "\n".join([*out, "</svg>", ""])


def draw(result: dict[str, Any], folder: Path) -> None:
    """Write bench-latency.svg, bench-overhead.svg and bench-program.svg into ``folder``."""
    figures, titles = result["figures"], result["runs"]["rr"]["titles"]
    colours = {"direct": GREY, "original": ORANGE, "neigh": LIGHT, "peer": BLUE, "peer_tcx": BLUE, "peer_rules": BLUE,
               "blind": LIGHT, "blind_tcx": LIGHT}  # fmt: skip
    latency = [(title, figures[f"rr.p50_us.{name}"], colours.get(name, GREY)) for name, title in titles.items()]
    floor = figures["rr.p50_us.direct"], "floor"
    (folder / "bench-latency.svg").write_text(
        bars("One byte there and back, p50", "µs", latency, floor), encoding="utf-8"
    )
    removed = [
        (titles[name], figures[f"rr.overhead_removed.{name}"] * 100, colours[name])
        for name in ("original", "neigh", "peer", "peer_tcx", "blind", "blind_tcx")
    ]
    (folder / "bench-overhead.svg").write_text(
        bars("Share of the kernel path's overhead that is removed", "%", removed, (75, "75 %")), encoding="utf-8"
    )
    cost = [
        (title, figures[f"prog.{name}_ns"], colour)
        for title, name, colour in (
            ("original design, to the workload", "original.in", ORANGE),
            ("original design, to the uplink", "original.out", ORANGE),
            ("overlay, IPv4 hit, to the workload", "peer.hit.in", BLUE),
            ("overlay, IPv4 hit, to the uplink", "peer.hit.out", BLUE),
            ("overlay, IPv6 hit, to the workload", "peer.hit6.in", LIGHT),
            ("overlay, IPv6 hit, to the uplink", "peer.hit6.out", LIGHT),
            ("overlay, not ours: UDP", "miss.udp.in", GREY),
            ("overlay, not ours: other port", "miss.tcp.in", GREY),
        )
    ]
    (folder / "bench-program.svg").write_text(
        bars("Cost of one run above an empty program", "ns", cost), encoding="utf-8"
    )


if __name__ == "__main__":
    root = Path(__file__).resolve().parents[2]
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else root / "build" / "bench.json"
    draw(json.loads(source.read_text(encoding="utf-8")), root / "docs")
