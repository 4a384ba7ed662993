# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet as a picture: an SVG for the status page, whose style sheet gives it its colours. Pure.

Nodes stand on a circle, each a ring that is filled by its share of traffic on the fast path, with its workloads
outside of it. Lines are open flows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .document import ELSEWHERE, share_text

# From this number of nodes on, names are written outwards and workloads are counted.
DENSE = 13
# Up to this number, lines carry their counts, and who has no open flow with whom is shown as well.
SPARSE = 6
_MOST_DOTS = 8

Point = tuple[float, float]


class _Layout:
    """Where things are. ``reach``: the radius of a node's ring; all in units of the picture."""

    def __init__(self, count: int) -> None:
        self.dense, self.sparse = count >= DENSE, count <= SPARSE
        self.reach = 13.0 if self.dense else 34.0
        spacing = 40.0 if self.dense else 150.0
        self.radius = 0.0 if count < 2 else max(235.0 if self.dense else 150.0, count * spacing / math.tau)
        margin = 168.0 if self.dense else 92.0
        sideways = margin if self.dense else 210.0
        self.centre: Point = (0.0, 0.0)
        # Two nodes stand side by side, more begin at the top.
        self.angles = [
            math.tau * place / max(count, 1) + (math.pi if count == 2 else -math.pi / 2) for place in range(count)
        ]

        across = [self.radius * math.cos(angle) for angle in self.angles]
        along = [self.radius * math.sin(angle) for angle in self.angles]
        self.left, self.top = min(across) - sideways, min(along) - margin
        self.width, self.height = max(across) + sideways - self.left, max(along) + margin - self.top

    def at(self, angle: float, distance: float) -> Point:
        return self.centre[0] + distance * math.cos(angle), self.centre[1] + distance * math.sin(angle)


def picture(fleet: Mapping[str, Any]) -> str:
    """The SVG; empty without nodes."""
    nodes: Sequence[Mapping[str, Any]] = fleet["nodes"]
    if not nodes:
        return ""
    layout = _Layout(len(nodes))
    places = {node["name"]: layout.at(angle, layout.radius) for node, angle in zip(nodes, layout.angles)}
    outside = any(link["remote"] == ELSEWHERE for link in fleet["links"])
    if outside:
        places[ELSEWHERE] = layout.centre if len(nodes) > 2 else (layout.centre[0], layout.top + layout.height - 22)
    parts = [_line(layout, places, pair) for pair in _pairs(fleet, layout)]
    parts += [_node(layout, node, angle) for node, angle in zip(nodes, layout.angles)]
    if outside:
        x, y = places[ELSEWHERE]
        parts.append(f'<g class="outside"><rect x="{x - 46:.1f}" y="{y - 13:.1f}" width="92" height="26" rx="13"/>'
                     f'<text x="{x:.1f}" y="{y + 4:.1f}">elsewhere</text></g>')  # fmt: skip
    box = " ".join(f"{number:.0f}" for number in (layout.left, layout.top, layout.width, layout.height))
    label = f"{len(nodes)} nodes and the open flows between them"
    return (
        f'<svg class="map{" dense" if layout.dense else ""}" viewBox="{box}" '
        f'role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


# --- lines ------------------------------------------------------------------------------------------------------------


def _pairs(fleet: Mapping[str, Any], layout: _Layout) -> list[tuple[str, str, int, int]]:
    """(one, other, flows that one redirects, flows that the other redirects), the widest last."""
    found: dict[tuple[str, str], list[int]] = {}
    for link in fleet["links"]:
        one, other = link["node"], link["remote"]
        if one == other:
            continue
        key = (one, other) if (other, one) not in found else (other, one)
        found.setdefault(key, [0, 0])[0 if key == (one, other) else 1] += link["flows"]
    if layout.sparse:
        # Few nodes: show also who would take the fast path to whom.
        ready = [node["name"] for node in fleet["nodes"] if node["state"] in ("overlaid", "drifted")]
        for place, one in enumerate(ready):
            for other in ready[place + 1 :]:
                if (other, one) not in found:
                    found.setdefault((one, other), [0, 0])
    pairs = [(one, other, near, far) for (one, other), (near, far) in found.items()]
    return sorted(pairs, key=lambda pair: max(pair[2:]))


def _line(layout: _Layout, places: Mapping[str, Point], pair: tuple[str, str, int, int]) -> str:
    one, other, near, far = pair
    start, end = places[one], places[other]
    middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    pull = 0.0 if ELSEWHERE in (one, other) else 0.55 if layout.dense else 0.3
    bend = tuple(point + (centre - point) * pull for point, centre in zip(middle, layout.centre))
    path = f"M{start[0]:.1f} {start[1]:.1f}Q{bend[0]:.1f} {bend[1]:.1f} {end[0]:.1f} {end[1]:.1f}"
    if not near and not far:
        return f'<path class="idle" d="{path}"><title>{escape(one)} – {escape(other)}: no open flow</title></path>'
    kind = "both" if near and far else "one"
    width = min(1.2 + 1.1 * math.log2(1 + max(near, far)), 4.0 if layout.dense else 9.0)
    told = "; ".join(
        f"{name} redirects {flows} open flow{'s' if flows > 1 else ''} with {peer}"
        for name, peer, flows in ((one, other, near), (other, one, far))
        if flows
    )
    line = f'<path class="flow {kind}" stroke-width="{width:.1f}" d="{path}"><title>{escape(told)}</title></path>'
    if not layout.sparse:
        return line
    # At a quarter of the curve for the end that redirects alone, else in the middle.
    place = 0.5 if kind == "both" else 0.36 if near else 0.64
    x, y = _on_curve(start, bend, end, place)
    count = str(max(near, far))
    half = 5 + 4 * len(count)
    box = f'<rect x="{x - half:.1f}" y="{y - 10:.1f}" width="{2 * half}" height="20" rx="10"/>'
    return f'{line}<g class="count">{box}<text x="{x:.1f}" y="{y + 4:.1f}">{count}</text></g>'


def _on_curve(start: Point, bend: Sequence[float], end: Point, place: float) -> Point:
    rest = 1 - place
    x, y = (rest * rest * a + 2 * rest * place * b + place * place * c for a, b, c in zip(start, bend, end))
    return x, y


# --- nodes ------------------------------------------------------------------------------------------------------------


def _node(layout: _Layout, node: Mapping[str, Any], angle: float) -> str:
    x, y = layout.at(angle, layout.radius)
    reach, stroke = layout.reach, 5.0 if layout.dense else 9.0
    inner = reach - stroke / 2
    share = (node["traffic"] or {}).get("share")
    parts = [
        f"<title>{escape(_told(node))}</title>",
        f'<circle class="back" cx="{x:.1f}" cy="{y:.1f}" r="{reach + 4:.1f}"/>',
        f'<circle class="track" cx="{x:.1f}" cy="{y:.1f}" r="{inner:.1f}" stroke-width="{stroke}"/>',
    ]
    if share:
        around = math.tau * inner
        parts.append(
            f'<circle class="share" cx="{x:.1f}" cy="{y:.1f}" r="{inner:.1f}" stroke-width="{stroke}" '
            f'stroke-dasharray="{share * around:.2f} {around:.2f}" transform="rotate(-90 {x:.1f} {y:.1f})"/>'
        )
    sign = {"unreachable": "×", "failed": "?", "bare": "–"}.get(node["state"], "")
    text = sign or ("" if layout.dense else share_text(node["traffic"]).replace(" ", ""))
    if text:
        parts.append(
            f'<text class="value" x="{x:.1f}" y="{y + (4 if layout.dense else 4.5):.1f}">{escape(text)}</text>'
        )
    if node["state"] == "drifted":
        parts.append(_mark(x + 0.72 * reach, y - 0.72 * reach, 6.5 if layout.dense else 10.0))
    parts += _outward(layout, node, angle) if layout.dense else _beside(layout, node, x, y, angle)
    return f'<g class="node {escape(node["state"])}">{"".join(parts)}</g>'


def _told(node: Mapping[str, Any]) -> str:
    workloads = len(node["workloads"])
    return f"{node['name']}: {node['state']}, {workloads} workloads, fast path {share_text(node['traffic'])}"


def _mark(x: float, y: float, size: float) -> str:
    """The sign for drift: a triangle with an exclamation mark."""
    points = f"{x:.1f},{y - size:.1f} {x + size:.1f},{y + 0.75 * size:.1f} {x - size:.1f},{y + 0.75 * size:.1f}"
    return (
        f'<polygon class="mark" points="{points}"/><text class="marked" x="{x:.1f}" y="{y + 0.55 * size:.1f}" '
        f'font-size="{1.3 * size:.0f}">!</text>'
    )


def _outward(layout: _Layout, node: Mapping[str, Any], angle: float) -> list[str]:
    """Name and number of workloads, written along the ray."""
    x, y = layout.at(angle, layout.radius + layout.reach + 9)
    turned = math.degrees(angle)
    left = math.cos(angle) < -1e-9
    anchor = "end" if left else "start"
    name = _short(node["name"], 22)
    workloads = f' <tspan class="few">{len(node["workloads"])}</tspan>' if node["workloads"] else ""
    return [
        f'<text class="name" style="text-anchor:{anchor}" x="{x:.1f}" y="{y + 4:.1f}" '
        f'transform="rotate({turned + (180 if left else 0):.1f} {x:.1f} {y:.1f})">{escape(name)}{workloads}</text>'
    ]


def _beside(layout: _Layout, node: Mapping[str, Any], x: float, y: float, angle: float) -> list[str]:
    """Name and workloads on the side that looks away from the centre."""
    workloads = node["workloads"]
    dots = workloads[:_MOST_DOTS]
    more = f"+{len(workloads) - len(dots)}" if len(workloads) > len(dots) else ""
    name = escape(_short(node["name"], 22))
    if layout.radius and abs(math.sin(angle)) < 0.45:
        side = 1 if math.cos(angle) > 0 else -1
        edge = x + side * (layout.reach + 14)
        row, line = y + 12, y - 3 if dots else y + 5
        left = edge + 4.5 if side > 0 else edge - 4.5 - 14 * (len(dots) - 1) - (24 if more else 0)
        parts = [
            f'<text class="name" style="text-anchor:{"start" if side > 0 else "end"}" x="{edge:.1f}" y="{line:.1f}">'
        ]
    else:
        above = math.sin(angle) < 0 and layout.radius > 0
        row = y - layout.reach - 17 if above else y + layout.reach + 17
        line = row + (-14 if above else 24) if dots else row + 4
        left = x - 7 * (len(dots) - 1) - (9 if more else 0)
        parts = [f'<text class="name" x="{x:.1f}" y="{line:.1f}">']
    parts[0] += f"{name}</text>"
    parts += [
        f'<rect class="workload" x="{left + 14 * place - 4.5:.1f}" y="{row - 4.5:.1f}" width="9" height="9" rx="2">'
        f"<title>{escape(', '.join(workload['addresses']))} on {escape(workload['interface'])}</title></rect>"
        for place, workload in enumerate(dots)
    ]
    if more:
        parts.append(f'<text class="few" x="{left + 14 * len(dots) + 6:.1f}" y="{row + 4:.1f}">{more}</text>')
    return parts


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
