# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet as a picture: where everything is in ``picture.svg.j2``. Pure.

Nodes stand on a circle, each a ring that is filled by its share of traffic on the fast path, with its workloads
outside of it. Lines are open flows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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


def picture(fleet: Mapping[str, Any]) -> dict[str, Any]:
    """What ``picture.svg.j2`` draws: lines first, then the nodes over their ends. For a fleet with nodes."""
    nodes: Sequence[Mapping[str, Any]] = fleet["nodes"]
    layout = _Layout(len(nodes))
    places = {node["name"]: layout.at(angle, layout.radius) for node, angle in zip(nodes, layout.angles)}
    outside = any(link["remote"] == ELSEWHERE for link in fleet["links"])
    if outside:
        places[ELSEWHERE] = layout.centre if len(nodes) > 2 else (layout.centre[0], layout.top + layout.height - 22)
    return {
        "dense": layout.dense,
        "box": " ".join(f"{number:.0f}" for number in (layout.left, layout.top, layout.width, layout.height)),
        "lines": [_line(layout, places, pair) for pair in _pairs(fleet, layout)],
        "nodes": [_node(layout, node, angle) for node, angle in zip(nodes, layout.angles)],
        "outside": places.get(ELSEWHERE),
    }


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


def _line(layout: _Layout, places: Mapping[str, Point], pair: tuple[str, str, int, int]) -> dict[str, Any]:
    """``count``: the larger number of flows, written ``at`` a place on the line; 0 where none is."""
    one, other, near, far = pair
    start, end = places[one], places[other]
    middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    pull = 0.0 if ELSEWHERE in (one, other) else 0.55 if layout.dense else 0.3
    bend = tuple(point + (centre - point) * pull for point, centre in zip(middle, layout.centre))
    path = f"M{start[0]:.1f} {start[1]:.1f}Q{bend[0]:.1f} {bend[1]:.1f} {end[0]:.1f} {end[1]:.1f}"
    if not near and not far:
        return {"kind": "idle", "width": 0, "path": path, "told": f"{one} – {other}: no open flow", "count": 0}
    both = bool(near and far)
    told = "; ".join(
        f"{name} redirects {flows} open flow{'s' if flows > 1 else ''} with {peer}"
        for name, peer, flows in ((one, other, near), (other, one, far))
        if flows
    )
    # At a quarter of the curve for the end that redirects alone, else in the middle.
    place = 0.5 if both else 0.36 if near else 0.64
    return {
        "kind": "flow both" if both else "flow one",
        "width": min(1.2 + 1.1 * math.log2(1 + max(near, far)), 4.0 if layout.dense else 9.0),
        "path": path,
        "told": told,
        "count": max(near, far) if layout.sparse else 0,
        "at": _on_curve(start, bend, end, place),
    }


def _on_curve(start: Point, bend: Sequence[float], end: Point, place: float) -> Point:
    rest = 1 - place
    x, y = (rest * rest * a + 2 * rest * place * b + place * place * c for a, b, c in zip(start, bend, end))
    return x, y


# --- nodes ------------------------------------------------------------------------------------------------------------


def _node(layout: _Layout, node: Mapping[str, Any], angle: float) -> dict[str, Any]:
    """``share``: how much of its ring is filled, ``value``: what is written in it, ``told``: in words."""
    sign = {"unreachable": "×", "failed": "?", "bare": "–"}.get(node["state"], "")
    traffic, workloads = node["traffic"], len(node["workloads"])
    return {
        "state": node["state"],
        "at": layout.at(angle, layout.radius),
        "reach": layout.reach,
        "stroke": 5.0 if layout.dense else 9.0,
        "share": (traffic or {}).get("share"),
        "value": sign or ("" if layout.dense else share_text(traffic).replace(" ", "")),
        "told": f"{node['name']}: {node['state']}, {workloads} workloads, fast path {share_text(traffic)}",
        **(_outward(layout, node, angle) if layout.dense else _beside(layout, node, angle)),
    }


def _outward(layout: _Layout, node: Mapping[str, Any], angle: float) -> dict[str, Any]:
    """Name and number of workloads, written along the ray."""
    x, y = layout.at(angle, layout.radius + layout.reach + 9)
    left = math.cos(angle) < -1e-9
    name = {
        "text": _short(node["name"], 22),
        "count": len(node["workloads"]),
        "anchor": "end" if left else "start",
        "at": (x, y + 4),
        "around": (x, y),
        "turned": math.degrees(angle) + (180 if left else 0),
    }
    return {"name": name, "dots": [], "more": None}


def _beside(layout: _Layout, node: Mapping[str, Any], angle: float) -> dict[str, Any]:
    """Name and workloads on the side that looks away from the centre."""
    x, y = layout.at(angle, layout.radius)
    dots = node["workloads"][:_MOST_DOTS]
    more = len(node["workloads"]) - len(dots)
    name = {"text": _short(node["name"], 22), "count": 0, "anchor": "", "turned": None}
    if layout.radius and abs(math.sin(angle)) < 0.45:
        side = 1 if math.cos(angle) > 0 else -1
        edge = x + side * (layout.reach + 14)
        row, line = y + 12, y - 3 if dots else y + 5
        left = edge + 4.5 if side > 0 else edge - 4.5 - 14 * (len(dots) - 1) - (24 if more else 0)
        name.update(anchor="start" if side > 0 else "end", at=(edge, line))
    else:
        above = math.sin(angle) < 0 and layout.radius > 0
        row = y - layout.reach - 17 if above else y + layout.reach + 17
        line = row + (-14 if above else 24) if dots else row + 4
        left = x - 7 * (len(dots) - 1) - (9 if more else 0)
        name.update(at=(x, line))
    return {
        "name": name,
        "dots": [
            {"at": (left + 14 * place, row), "told": f"{', '.join(one['addresses'])} on {one['interface']}"}
            for place, one in enumerate(dots)
        ],
        "more": {"at": (left + 14 * len(dots) + 6, row + 4), "count": more} if more else None,
    }


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
