# SPDX-License-Identifier: GPL-3.0-or-later
"""The status of the fleet as one page of HTML that needs nothing else: no script, no font, no network. Pure.

Whatever comes from nodes or from the inventory goes through ``escape``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.wiring import uplink_text
from ansible_collections.ebpf.overlay.plugins.plugin_utils import _connections
from ansible_collections.ebpf.overlay.plugins.plugin_utils._fleet_status import share_text
from ansible_collections.ebpf.overlay.plugins.plugin_utils._status_picture import DENSE, SPARSE, picture
from ansible_collections.ebpf.overlay.plugins.plugin_utils._status_style import STYLE

_MOST_ITEMS = 12
_STATES = {
    "overlaid": ("●", "as confirmed"),
    "drifted": ("▲", "drifted"),
    "bare": ("○", "no overlay"),
    "unreachable": ("×", "unreachable"),
    "failed": ("?", "not readable"),
}
_KINDS = {
    "missing": "missing",
    "changed": "changed",
    "extra": "extra",
    "hidden": "never runs",
    "ahead": "runs second",
    "unknown": "not comparable",
}


def page(fleet: Mapping[str, Any]) -> str:
    """The page for a document of ``fleet_status``."""
    body = "".join(
        (_header(fleet), _figures(fleet), _attention(fleet), _topology(fleet), _table(fleet), _details(fleet))
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>Overlay status</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _header(fleet: Mapping[str, Any]) -> str:
    when = escape(str(fleet["when"]).replace("T", " ").replace("+00:00", " UTC"))
    return f'<header><h1>Overlay status</h1><p class="when">{when}</p></header>\n'


# --- figures ----------------------------------------------------------------------------------------------------------


def _figures(fleet: Mapping[str, Any]) -> str:
    totals = fleet["totals"]
    states = "".join(
        f'<span class="state {state}"><b aria-hidden="true">{sign}</b> {totals[state]} {word}</span>'
        for state, (sign, word) in _STATES.items()
        if totals[state]
    )
    traffic = totals["traffic"]
    fast, kernel = traffic["fast"], traffic["kernel"]
    tiles = (
        ("Nodes", str(totals["nodes"]), states),
        (
            "Traffic of listed services on the fast path",
            share_text(traffic),
            f"{_bar(traffic)}{_count(fast['packets'])} packets ({_size(fast['bytes'])}) past the packet filter, "
            f"{_count(kernel['packets'])} through it",
        ),
        ("Open flows", _count(totals["flows"]), "that the overlay redirects now"),
        ("Workloads", _count(totals["workloads"]), "on nodes that answered"),
    )
    cells = "".join(
        f'<div class="tile"><h2>{title}</h2><p class="figure">{escape(figure)}</p><div class="note">{note}</div></div>'
        for title, figure, note in tiles
    )
    return f'<section class="tiles">{cells}</section>\n'


def _bar(traffic: Mapping[str, Any] | None) -> str:
    share = (traffic or {}).get("share")
    if share is None:
        return ""
    return f'<span class="bar" role="img" aria-label="{share:.0%}"><i style="width:{share * 100:.1f}%"></i></span>'


# --- what differs -----------------------------------------------------------------------------------------------------


def _attention(fleet: Mapping[str, Any]) -> str:
    troubled = [node for node in fleet["nodes"] if node["reason"] or node["drift"] or node["pending"]]
    if not fleet["nodes"]:
        return _calm("There is no node in this run.")
    if not troubled:
        return _calm("Every node that has the overlay is as it was confirmed.")
    blocks = "".join(_trouble(node) for node in troubled)
    return f'<section class="card"><h2>What differs</h2>{blocks}</section>\n'


def _calm(text: str) -> str:
    return f'<section class="card"><p class="calm">{text}</p></section>\n'


def _trouble(node: Mapping[str, Any]) -> str:
    lines = []
    if node["reason"]:
        lines.append(f"<p>{escape(str(node['reason']))}</p>")
    if node["pending"]:
        lines.append(f"<p>Generation {node['pending']} waits for its confirmation.</p>")
    shown = node["drift"][:_MOST_ITEMS]
    if shown:
        rows = "".join(_item(item) for item in shown)
        lines.append(
            '<div class="scroll"><table class="drift"><thead><tr><th></th><th>what</th><th>should be</th><th>is</th>'
            f"<th>its owner</th></tr></thead><tbody>{rows}</tbody></table></div>"
        )
    if len(node["drift"]) > len(shown):
        lines.append(f'<p class="note">and {len(node["drift"]) - len(shown)} more, all in the JSON</p>')
    return f'<div class="trouble"><h3>{_badge(node)} {escape(node["name"])}</h3>{"".join(lines)}</div>'


def _item(item: Mapping[str, Any]) -> str:
    kind = item["kind"] if item["kind"] in _KINDS else "unknown"
    nothing = '<span class="none">nothing</span>'
    wanted = f"<code>{escape(str(item['wanted']))}</code>" if item["wanted"] else nothing
    found = f"<code>{escape(str(item['found']))}</code>" if item["found"] else nothing
    owner = escape(str(item["owner"])) if item["owner"] else "not told" if item["found"] and kind != "extra" else ""
    return (
        f'<tr class="{kind}"><td><span class="kind">{_KINDS[kind]}</span></td><td>{escape(str(item["object"]))}</td>'
        f"<td>{wanted}</td><td>{found}</td><td>{owner}</td></tr>"
    )


# --- picture ----------------------------------------------------------------------------------------------------------


def _topology(fleet: Mapping[str, Any]) -> str:
    drawn = picture(fleet)
    if not drawn:
        return ""
    count = len(fleet["nodes"])
    legend = [
        '<li><svg width="20" height="20"><circle class="track" cx="10" cy="10" r="7" stroke-width="4"/><circle '
        'class="share" cx="10" cy="10" r="7" stroke-width="4" stroke-dasharray="30 44" transform="rotate(-90 10 10)"/>'
        "</svg>a node; filled: its share of traffic on the fast path</li>",
        '<li><svg width="30" height="12"><path class="flow both" stroke-width="4" d="M1 6H29"/></svg>'
        "open flows, redirected on both nodes; wider: more</li>",
        '<li><svg width="30" height="12"><path class="flow one" stroke-width="4" d="M1 6H29"/></svg>'
        "redirected on one node only</li>",
    ]
    if count <= SPARSE:
        legend.append('<li><svg width="30" height="12"><path class="idle" d="M1 6H29"/></svg>no open flow now</li>')
    if count < DENSE:
        legend.append(
            '<li><svg width="12" height="12"><rect class="workload" x="1" y="1" width="9" height="9" rx="2"/></svg>'
            "a workload</li>"
        )
    else:
        legend.append("<li>the number after a name: its workloads</li>")
    return (
        f'<section class="card"><h2>Who talks to whom past the packet filter</h2>{drawn}'
        f'<ul class="legend">{"".join(legend)}</ul></section>\n'
    )


# --- nodes ------------------------------------------------------------------------------------------------------------


def _table(fleet: Mapping[str, Any]) -> str:
    if not fleet["nodes"]:
        return ""
    heads = (
        ("node", ""), ("state", ""), ("generation", ""), ("mode", ""), ("workloads", "n"), ("attached", ""),
        ("open flows", "n"), ("admitted", "n"), ("on the fast path", ""), ("packets, fast", "n"),
        ("packets, kernel", "n"),
    )  # fmt: skip
    head = "".join(f'<th scope="col" class="{kind}">{title}</th>' for title, kind in heads)
    rows = "".join(_row(node) for node in fleet["nodes"])
    return (
        f'<section class="card"><h2>Nodes</h2><div class="scroll"><table class="nodes"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>\n"
    )


def _row(node: Mapping[str, Any]) -> str:
    traffic, flows = node["traffic"], node["flows"]
    programs: dict[str, int] = {}
    for item in node["attachments"]:
        programs[item["program"]] = programs.get(item["program"], 0) + 1
    attached = ", ".join(f"{count}\u00a0×\u00a0{name}" for name, count in sorted(programs.items()))
    generation = ""
    if node["generation"] is not None:
        generation = f"{node['generation']} <code>{escape(str(node['digest'])[:8])}</code>"
    share = f"{_bar(traffic)} {escape(share_text(traffic))}" if traffic and traffic["share"] is not None else "–"
    cells = (
        ("n", str(len(node["workloads"])) if node["state"] != "unreachable" else "–"),
        ("", escape(attached) or "–"),
        ("n", _count(flows["open"]) if flows else "–"),
        ("n", escape(share_text(node["connections"]).replace("-", "–"))),
        ("path", share),
        ("n", _count(traffic["fast"]["packets"]) if traffic else "–"),
        ("n", _count(traffic["kernel"]["packets"]) if traffic else "–"),
    )
    rest = "".join(f'<td class="{kind}">{text}</td>' for kind, text in cells)
    return (
        f'<tr class="{escape(node["state"])}"><th scope="row">{escape(node["name"])}</th><td>{_badge(node)}</td>'
        f"<td>{generation or '–'}</td><td>{escape(node['mode'] or '–')}</td>{rest}</tr>"
    )


def _badge(node: Mapping[str, Any]) -> str:
    sign, word = _STATES.get(node["state"], ("?", node["state"]))
    return f'<span class="state {escape(node["state"])}"><b aria-hidden="true">{sign}</b> {escape(word)}</span>'


def _details(fleet: Mapping[str, Any]) -> str:
    blocks = "".join(_detail(node) for node in fleet["nodes"] if node["workloads"] or node["counters"])
    return f'<section class="card"><h2>Workloads, filters and counters</h2>{blocks}</section>\n' if blocks else ""


def _detail(node: Mapping[str, Any]) -> str:
    workloads = [(workload["interface"], ", ".join(workload["addresses"])) for workload in node["workloads"]]
    attachments = [
        (f"{item['interface']} {item['direction']}", f"{item['program']}, {_slot(item)}")
        for item in node["attachments"]
    ]
    sentences = [*node["notes"], *(_connections.told(node["connections"]) if node["connections"] else ())]
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in sentences)
    uplinks = [uplink_text(one).partition(" ")[::2] for one in (node["wiring"] or {}).get("uplinks", ())]
    counters = sorted(node["counters"].items(), key=lambda item: -item[1]["packets"])
    counted = [(label, f"{_count(count['packets'])} packets, {_size(count['bytes'])}") for label, count in counters]
    return (
        f'<details><summary>{_badge(node)} {escape(node["name"])}</summary>{notes}<div class="columns">'
        f"{_list('Uplinks', uplinks)}{_list('Workloads', workloads)}"
        f"{_list('Our filters', attachments)}{_list('Counters', counted)}"
        "</div></details>"
    )


def _slot(item: Mapping[str, Any]) -> str:
    if item["mechanism"] == "tcx":
        return "TCX link"
    return f"priority {item['priority']}, handle {item['handle']:#x}"


def _list(title: str, rows: Sequence[tuple[str, str]] | Iterable[tuple[str, str]]) -> str:
    lines = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in rows)
    return f'<div><h3>{title}</h3><table class="pairs">{lines or "<tr><td>none</td></tr>"}</table></div>'


def _count(number: int) -> str:
    return f"{number:,}".replace(",", "\u202f")


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if number >= 100 or unit == "B" else f"{number:.1f} {unit}"
