# SPDX-License-Identifier: GPL-3.0-or-later
"""The status of the fleet as one page of HTML that needs nothing else: no script, no font, no network.

The page is ``page.html.j2``, in which everything that comes from nodes or from the inventory is escaped.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from .document import share_text
from .picture import DENSE, SPARSE, picture

STATES = {
    "overlaid": ("●", "as confirmed"),
    "drifted": ("▲", "drifted"),
    "bare": ("○", "no overlay"),
    "unreachable": ("×", "unreachable"),
    "failed": ("?", "not readable"),
}
KINDS = {
    "missing": "missing",
    "changed": "changed",
    "extra": "extra",
    "hidden": "never runs",
    "ahead": "runs second",
    "unknown": "not comparable",
}


MOST_ITEMS = 12  # of drift, on one node


def page(fleet: Mapping[str, Any]) -> str:
    """The page for a document of ``fleet_status``."""
    return _template().render(
        fleet=fleet,
        picture=picture(fleet) if fleet["nodes"] else None,
        troubled=[node for node in fleet["nodes"] if node["reason"] or node["drift"] or node["pending"]],
        detailed=[node for node in fleet["nodes"] if node["workloads"] or node["counters"]],
    )


@functools.cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.globals.update(
        STATES=STATES, KINDS=KINDS, MOST_ITEMS=MOST_ITEMS, DENSE=DENSE, SPARSE=SPARSE, TAU=math.tau
    )
    for render in (_amount, _counters, _filters, _percent, _programs, _size, _workloads):
        environment.filters[render.__name__[1:]] = render
    environment.filters.update(share=share_text, px="{:.1f}".format)
    return environment.get_template("page.html.j2")


# --- rows of the lists of a node --------------------------------------------------------------------------------------


def _workloads(node: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(workload["interface"], ", ".join(workload["addresses"])) for workload in node["workloads"]]


def _filters(node: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (f"{item['interface']} {item['direction']}", f"{item['program']}, {_slot(item)}")
        for item in node["attachments"]
    ]


def _slot(item: Mapping[str, Any]) -> str:
    if item["mechanism"] == "tcx":
        return "TCX link"
    return f"priority {item['priority']}, handle {item['handle']:#x}"


def _counters(node: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The largest first."""
    counters = sorted(node["counters"].items(), key=lambda item: -item[1]["packets"])
    return [(label, f"{_amount(count['packets'])} packets, {_size(count['bytes'])}") for label, count in counters]


# --- words and numbers ------------------------------------------------------------------------------------------------


def _programs(node: Mapping[str, Any]) -> str:
    """What is attached, and how often: ``2\u00a0×\u00a0from_uplink``."""
    counts = Counter(item["program"] for item in node["attachments"])
    return ", ".join(f"{count}\u00a0×\u00a0{name}" for name, count in sorted(counts.items()))


def _percent(share: float, digits: int = 0) -> str:
    return f"{share:.{digits}%}"


def _amount(number: int) -> str:
    return f"{number:,}".replace(",", "\u202f")


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if number >= 100 or unit == "B" else f"{number:.1f} {unit}"
