# SPDX-License-Identifier: GPL-3.0-or-later
"""Which measurements were taken while the processor ran at its best pace.

In a virtual machine, whoever shares the core makes everything a quarter slower, for milliseconds or for minutes. So a
fixed piece of work is timed just before and just after each short measurement; those with a slow neighbour are set
aside, by the pace and never by their own value.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import TypeVar

from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf

BEST = 1.06
_CALLS = 50

Value = TypeVar("Value", int, float)


class Pace:
    """The fixed piece of work: a program that does nothing, called many times on the processor of the caller."""

    def __init__(self, program: int) -> None:
        self._program = program
        self._packet = bytes(64)

    def now(self) -> float:
        """ns per run; takes about half a millisecond."""
        took = sorted(bpf.prog_test_run(self._program, self._packet, 200)[2] for __ in range(_CALLS))
        return statistics.fmean(took[_CALLS // 4 : _CALLS - _CALLS // 4])


def undisturbed(samples: Sequence[tuple[float, Value]], best: float) -> list[Value]:
    """The values of the samples (pace, value) that were taken at the ``best`` pace."""
    return [value for pace, value in samples if pace <= best * BEST]


def chosen(samples: Sequence[tuple[float, Value]], best: float, count: int) -> list[Value]:
    """The undisturbed values; where there are not ``count`` of them, the ``count`` with the best pace."""
    values = undisturbed(samples, best)
    return values if len(values) >= count else [value for __, value in sorted(samples, key=lambda one: one[0])[:count]]


def best(paces: Iterable[float]) -> float:
    """A pace that the processor reaches again and again: the fastest hundredth is left out."""
    ordered = sorted(paces)
    return ordered[len(ordered) // 100]
