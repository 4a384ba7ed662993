# SPDX-License-Identifier: GPL-3.0-or-later
"""Which measurements were taken while the machine did nothing else.

Two processors of a small virtual machine are often two threads of one core: whatever runs on the other one makes
everything here a quarter slower. Such measurements are set aside, by what else ran and never by their own value.
"""

from __future__ import annotations

from pathlib import Path

QUIET = 0.1


def ticks(cpu: int) -> tuple[int, int]:
    """(what the other processors worked, what the hypervisor took from this one), in clock ticks since boot."""
    others = stolen = 0
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        name, *fields = line.split()
        if not name.startswith("cpu") or name == "cpu":
            continue
        numbers = list(map(int, fields))
        if name == f"cpu{cpu}":
            stolen = numbers[7]
        else:
            others += sum(numbers[:8]) - numbers[3] - numbers[4]  # all but idle and waiting for a disk
    return others, stolen


def disturbance(before: tuple[int, int], after: tuple[int, int], seconds: float, ticks_per_second: int) -> float:
    """Share of the time in which something else ran; above 1 when it ran on several processors."""
    return (after[0] - before[0] + after[1] - before[1]) / max(seconds * ticks_per_second, 1)


def quietest(samples: list[tuple[float, int]], count: int) -> list[int]:
    """The values of the ``count`` least disturbed samples of (disturbance, value)."""
    return [value for _, value in sorted(samples, key=lambda sample: sample[0])[:count]]
