# SPDX-License-Identifier: GPL-3.0-or-later
"""The style sheet of the status page.

Colours are those of Okabe and Ito, which people who see few colours can tell apart; every colour that means something
comes with a sign or a word.
"""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark;
  --page: #f4f5f7; --card: #fff; --ink: #1b1f24; --soft: #5b6570; --rule: #e1e4e8; --track: #dde2e7;
  --fast: #0072b2; --fast-ink: #005a8d; --warn: #d55e00; --warn-ink: #a84800; --warn-wash: #fdf1e8;
  --lost: #6d4a86; --lost-wash: #f3edf7; --idle: #c3cad2; --note-wash: #f6f3e4; --note-ink: #6b5c00 }
@media (prefers-color-scheme: dark) { :root {
  --page: #101418; --card: #1a2026; --ink: #e8ebee; --soft: #9aa5b0; --rule: #2c343c; --track: #37414a;
  --fast: #56b4e9; --fast-ink: #7cc5ee; --warn: #e98a3f; --warn-ink: #f2a566; --warn-wash: #33261a;
  --lost: #b497cc; --lost-wash: #2a2231; --idle: #424d57; --note-wash: #2c2917; --note-ink: #d9c35a } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 48px }
header { display: flex; align-items: baseline; justify-content: space-between; margin: 0 2px 16px }
h1 { font-size: 24px; margin: 0; letter-spacing: -.01em }
h2 { font-size: 16px; margin: 0 0 12px }
h3 { font-size: 14px; margin: 0 0 8px }
.when, .note { color: var(--soft); font-size: 13px }
.when { margin: 0 }
.tiles { display: grid; grid-template-columns: 1.1fr 1.6fr .8fr .8fr; gap: 14px; margin-bottom: 14px }
.tile, .card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 16px 18px }
.card { margin-bottom: 14px }
.tile h2 { font-size: 13px; font-weight: 500; color: var(--soft); margin: 0 }
.figure { font-size: 32px; line-height: 1.2; font-weight: 650; margin: 2px 0 6px; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums }
.bar { display: inline-block; width: 100%; height: 8px; border-radius: 4px; background: var(--track);
  overflow: hidden;
vertical-align: middle }
.bar i { display: block; height: 100%; background: var(--fast) }
.tile .bar { display: block; margin: 0 0 8px }
td .bar { width: 84px; margin-right: 6px }
.state { display: inline-block; white-space: nowrap; margin-right: 10px; font-size: 13px; color: var(--soft) }
.state b { display: inline-block; width: 1em; text-align: center }
.state.overlaid b { color: var(--fast) }
.state.drifted { color: var(--warn-ink); font-weight: 600 }
.state.unreachable, .state.failed { color: var(--lost); font-weight: 600 }
.calm { margin: 0; color: var(--soft) }
.trouble { padding: 12px 0; border-top: 1px solid var(--rule) }
.trouble:first-of-type { border-top: 0; padding-top: 0 }
.trouble:last-child { padding-bottom: 0 }
.trouble p { margin: 4px 0 }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: 14px }
th, td { text-align: left; padding: 7px 12px 7px 0; border-bottom: 1px solid var(--rule); vertical-align: top }
thead th { color: var(--soft); font-weight: 500; font-size: 13px; white-space: nowrap }
tbody tr:last-child > * { border-bottom: 0 }
.n { text-align: right; font-variant-numeric: tabular-nums }
th[scope=row] { font-weight: 600; white-space: nowrap }
.path { white-space: nowrap; font-variant-numeric: tabular-nums }
.nodes td:not(:nth-child(6)) { white-space: nowrap }
.nodes tr.drifted { background: var(--warn-wash) }
.nodes tr.unreachable, .nodes tr.failed { background: var(--lost-wash) }
.nodes th:first-child { padding-left: 10px }
.nodes td:last-child, .nodes th:last-child { padding-right: 10px }
.drift { table-layout: fixed; min-width: 760px }
.drift td { overflow-wrap: anywhere }
.drift th:nth-child(1) { width: 112px }
.drift th:nth-child(2) { width: 26% }
.drift th:last-child { width: 110px }
.kind { display: inline-block; padding: 0 8px; border-radius: 9px; font-size: 12px; line-height: 19px;
  background: var(--warn-wash); color: var(--warn-ink); border: 1px solid currentColor }
.ahead .kind { background: var(--note-wash); color: var(--note-ink) }
code { font: 12.5px/1.4 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace }
.none { color: var(--soft); font-style: italic }
details { border-top: 1px solid var(--rule); padding: 8px 0 }
details:first-of-type { border-top: 0 }
summary { cursor: pointer; font-weight: 600; font-size: 14px }
.columns { display: grid; gap: 24px; padding: 12px 0 4px;
  grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)) }
.pairs th { font-weight: 400; color: var(--soft) }
.pairs th, .pairs td { padding: 3px 10px 3px 0; font-size: 13px; overflow-wrap: anywhere }
.map { display: block; margin: 0 auto; width: 100%; max-width: 760px; height: auto; font-size: 14px }
.map.dense { max-width: 900px; font-size: 12px }
.map text { fill: var(--ink); text-anchor: middle }
.map text.name { font-weight: 600 }
.map.dense text.name { font-weight: 400 }
.few { fill: var(--soft); font-size: 12px }
.map .few { fill: var(--soft) }
.value { font-size: 13px; font-weight: 600 }
.back { fill: var(--card) }
.track { fill: none; stroke: var(--track) }
.share { fill: none; stroke: var(--fast) }
.workload { fill: var(--soft) }
.flow { fill: none; stroke: var(--fast); stroke-linecap: round; opacity: .55 }
.dense .flow { opacity: .34 }
.flow.one { stroke-dasharray: 7 7; stroke-linecap: butt }
.idle { fill: none; stroke: var(--idle); stroke-width: 1 }
.count rect { fill: var(--card); stroke: var(--fast) }
.map .count text { font-size: 12px; fill: var(--fast-ink); font-weight: 600 }
.outside rect { fill: var(--card); stroke: var(--idle) }
.map .outside text { fill: var(--soft); font-size: 12px }
.mark { fill: var(--warn); stroke: var(--card); stroke-width: 1.5 }
.map .marked { fill: #fff; font-weight: 700 }
.map .drifted .name { fill: var(--warn-ink) }
.unreachable .track, .failed .track { stroke: var(--lost); stroke-dasharray: 4 4 }
.map .unreachable text, .map .failed text { fill: var(--lost) }
.bare .track { stroke-dasharray: 2 5 }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 6px 22px; padding: 0; margin: 14px 0 0;
color: var(--soft); font-size: 13px; justify-content: center }
.legend li { display: flex; align-items: center; gap: 8px }
@media (max-width: 860px) { .tiles { grid-template-columns: 1fr 1fr } }
@media print { body { background: #fff } .card, .tile { break-inside: avoid } }
"""
