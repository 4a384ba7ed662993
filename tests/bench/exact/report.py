# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures -> a table and a chart. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from .. import charts
from . import choice

# SUITE.KIND.PATH -> instructions.
Figures = Mapping[str, float]

_COLOURS = {"flowtable": charts.GREY, "original": charts.ORANGE, "clsact": charts.BLUE, "tcx": charts.BLUE}
_RELEASES = {"trixie": "Debian 13", "bookworm": "Debian 12"}


def removed(figures: Figures, suite: str, kind: str, path: str) -> float | None:
    """The share of the kernel path's overhead that is removed; None where a figure for it is missing."""
    kernel, floor = figures.get(f"{suite}.{kind}.kernel"), figures.get(f"{suite}.{kind}.direct")
    value = figures.get(f"{suite}.{kind}.{path}")
    if kernel is None or floor is None or value is None:
        return None
    return (kernel - value) / (kernel - floor)


def table(figures: Figures, errors: Mapping[str, str]) -> list[str]:
    """Suite by suite and kind by kind, as lines."""
    lines = []
    titles = {**choice.PATHS, **choice.STUDIES}
    for suite in choice.SUITES:
        for kind, told in choice.KINDS.items():
            key = f"{suite}.{kind}."
            paths = [path for path in titles if key + path in figures or key + path in errors]
            if not paths:
                continue
            lines += ["", f"{_RELEASES[suite]}, {kind}: {told}"]
            lines.append(f"  {'':15}{'':46} instructions  above floor  removed  of flowtable's")
            lines += [f"  {path:15}{titles[path]:46} {_row(figures, suite, kind, path)}" for path in paths]
    for key, message in errors.items():
        lines += ["", f"{key}: {message}"]
    return lines


def _row(figures: Figures, suite: str, kind: str, path: str) -> str:
    key = f"{suite}.{kind}."
    if key + path not in figures:
        return "       ERROR"
    value, floor, share = figures[key + path], figures.get(key + "direct"), removed(figures, suite, kind, path)
    flowtable = figures.get(key + "flowtable")
    row = f"{value:12,.0f}"
    if floor is not None:
        row += f" {value - floor:12,.0f}"
        row += f" {share:7.1%}" if share is not None and path not in ("direct", "kernel") else f"{'':9}"[:8]
        if flowtable is not None and path != "direct":
            row += f" {(value - floor) / (flowtable - floor):12.2f}"
    return row


def chart(figures: Figures) -> str:
    """An SVG of the share of the kernel path's overhead that is removed, for a round trip."""
    rows = []
    for suite in choice.SUITES:
        for path in ("flowtable", "original", "blind", "blind_tcx", "clsact", "tcx"):
            share = removed(figures, suite, "rr", path)
            if share is not None:
                title = {"flowtable": "nft flowtable", "blind_tcx": "redirect without looking, TCX",
                         "tcx": "overlay, TCX", "clsact": "overlay, clsact"}.get(path, choice.PATHS[path])  # fmt: skip
                rows.append((f"{_RELEASES[suite]}: {title}", share * 100, _COLOURS.get(path, charts.LIGHT)))
    return charts.bars("Share of the kernel path's overhead that is removed, in instructions", "%", rows)
