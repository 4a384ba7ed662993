# SPDX-License-Identifier: GPL-3.0-or-later
"""How many nodes a roll-out takes at a time: as many as are done before their lease ends. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.plugin_utils import _steps

DEFAULT: tuple[Any, ...] = (1, "25%", "100%")

# All nodes of a batch take each step before any of them takes the next one. So many steps, each as long as gathering
# the facts of these nodes, lie between the first node that is switched on and the last one that is confirmed, and
# between the first one that begins and the last one that is confirmed. On the lab: 4 to 6, and 11.
LEASE_STEPS = 4
APPLY_STEPS = 12
# Where the batches are left to this module, half of the time is kept for what takes longer than usual.
ROOM = 0.5


@dataclass(frozen=True)
class Pace:
    """``forks``: how many nodes Ansible works on at once. ``gathered``: from when to when each node's facts were
    gathered in this run, in seconds of any clock. ``lease``, ``timeout``: overlay_lease and overlay_apply_timeout,
    in seconds.
    """

    forks: int
    gathered: Sequence[Sequence[float]]
    lease: float
    timeout: float

    @property
    def wave(self) -> float:
        """How long gathering took for as many nodes as there are forks, in seconds."""
        if not self.gathered:
            return 0.0
        wall = max(ended for __, ended in self.gathered) - min(began for began, __ in self.gathered)
        return wall / self.waves(len(self.gathered))

    def waves(self, nodes: int) -> int:
        return math.ceil(nodes / max(self.forks, 1))

    def step(self, nodes: int) -> float:
        """How long one step takes for a batch of so many nodes, in seconds."""
        return self.waves(nodes) * self.wave

    def fits(self, nodes: int, room: float = 1.0) -> bool:
        step = self.step(nodes)
        return LEASE_STEPS * step <= self.lease * room and APPLY_STEPS * step <= self.timeout * room


def plan_batches(wanted: Sequence[Any] | None, total: int, pace: Pace) -> list[int]:
    """The sizes of the batches of ``total`` nodes. ``wanted``: as ``serial`` takes them, None for the default, which is
    cut into smaller ones where the lease asks for that.

    Raises :class:`OverlayError`, with the sum, for batches that would not be confirmed in time.
    """
    try:
        sizes = _steps.batches(total, list(wanted or DEFAULT))
    except ValueError:
        raise OverlayError(
            "accept a variable",
            f"overlay_batches: {wanted!r}",
            "these are no batches",
            "Give a list of numbers and shares, such as [1, 25%, 100%].",
        ) from None
    largest = max(sizes, default=0)
    if not wanted:
        cut = largest
        while cut > 1 and not pace.fits(cut, ROOM):
            cut -= 1
        sizes, largest = _cut(sizes, cut), min(largest, cut)
    if largest and not pace.fits(largest):
        raise _too_slow(largest, pace)
    return sizes


def _cut(sizes: Sequence[int], most: int) -> list[int]:
    found: list[int] = []
    for size in sizes:
        found += [most] * (size // most) + [size % most] * bool(size % most)
    return found


def _too_slow(size: int, pace: Pace) -> OverlayError:
    step = pace.step(size)
    steps, limit, setting = LEASE_STEPS, pace.lease, "overlay_lease"
    if steps * step <= limit:
        steps, limit, setting = APPLY_STEPS, pace.timeout, "overlay_apply_timeout"
    fitting = max((nodes for nodes in range(1, size) if pace.fits(nodes)), default=0)
    forks = math.ceil(size / max(int(limit / (steps * pace.wave)), 1))
    ways = [f"batches of at most {fitting} node(s) (overlay_batches)"] if fitting else []
    ways += [f"at least {forks} forks (forks in ansible.cfg, or -f)"] if forks > pace.forks else []
    ways += [f"{setting} of {math.ceil(2 * steps * step)} s"]
    return OverlayError(
        "roll out in these batches",
        f"{_steps.nodes(size)} at a time with {pace.forks} fork(s)",
        f"{pace.waves(size)} wave(s) of nodes, {steps} steps each, {pace.wave:.1f} s for a step of a wave (as long as "
        f"gathering the facts took), make {steps * step:.0f} s, and {setting} is {limit:g} s: it would be over before "
        "the last node is confirmed, and all would go back",
        f"Nothing was changed. Take {', or '.join(ways)}.",
    )
