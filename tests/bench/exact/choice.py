# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be measured, and what a run is asked for. Pure; known to the machine outside and to the guest."""

from __future__ import annotations

from collections.abc import Sequence

SUITES = ("trixie", "bookworm")
# Kind -> what a trip is.
KINDS = {
    "rr": "one byte there and back",
    "connect": "connect, one byte, close",
    "bulk": "a megabyte, the mean of there and back",
}
# Path -> title, in the order in which they are measured.
PATHS = {
    "direct": "direct veth pair (floor)",
    "kernel": "kernel, 3 rules",
    "kernel_rules": "kernel, 2 × 500 rules",
    "flowtable": "kernel, 3 rules, nft flowtable",
    "original": "original design (neigh/neigh)",
    "blind": "redirect without looking",
    "blind_tcx": "the same through TCX",
    "empty_clsact": "kernel, 3 rules, empty programs",
    "empty_tcx": "the same through TCX",
    "off_clsact": "kernel, 3 rules, overlay off",
    "off_tcx": "the same through TCX",
    "clsact": "overlay",
    "tcx": "the same through TCX",
}
# Measured only when they are named: ways to and from the workload, without looking (studies.c).
STUDIES = {
    f"{towards}_{back}": f"without looking: {towards} to the workload, {back} back"
    for towards in ("peer", "neigh", "frame")
    for back in ("neigh", "frame")
}
NEEDS_TCX = ("blind_tcx", "empty_tcx", "off_tcx", "tcx")
NO_TCX = ("bookworm",)

# Suite -> (kind, path) in order.
Wanted = dict[str, list[tuple[str, str]]]

USAGE = f"""\
usage: bench-exact [SUITES:KINDS:PATHS]...        (make bench-exact BENCH_EXACT="SUITES:KINDS:PATHS ...")

Each part is a list with commas, or empty for all of them, such as `trixie:rr:tcx,clsact,flowtable,kernel,direct`.
The overhead in the table needs `kernel` and `direct` beside the path in question.

SUITES  {" ".join(SUITES)}
KINDS   {" ".join(KINDS)}
PATHS   {" ".join(PATHS)}
        only when named: {" ".join(STUDIES)}
"""


def wanted(specifications: Sequence[str]) -> Wanted:
    """What the specifications ask for; all of it without any. Raises ValueError with a sentence about a wrong one."""
    found: Wanted = {}
    for specification in specifications or ("",):
        parts = [*specification.split(":"), "", ""][:3]
        if specification.count(":") > 2:
            raise ValueError(f"{specification!r} has more than the three parts SUITES:KINDS:PATHS")
        suites = _named(parts[0], SUITES, "suites")
        kinds = _named(parts[1], tuple(KINDS), "kinds")
        paths = _named(parts[2], tuple(PATHS), "paths", tuple(STUDIES))
        for suite in suites:
            entries = found.setdefault(suite, [])
            fresh = [(kind, path) for kind in kinds for path in paths if not (suite in NO_TCX and path in NEEDS_TCX)]
            entries += [entry for entry in fresh if entry not in entries]
    return {suite: entries for suite, entries in found.items() if entries}


def _named(text: str, known: tuple[str, ...], what: str, more: tuple[str, ...] = ()) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    for name in names:
        if name not in known + more:
            raise ValueError(f"{name!r} is none of the {what}: {', '.join(known + more)}")
    return names or known
