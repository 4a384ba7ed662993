# SPDX-License-Identifier: GPL-3.0-or-later
"""What every plan has in common. Pure: no kernel, no clock, no files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Plan:
    """An ordered list of operations that leads from the observed state to the desired one.

    ``operations``: frozen dataclasses, in the order in which they must be applied; empty: nothing is to be done.
    ``before``, ``after``: the state in text, one line per object, for people (``--diff``).
    ``unmet``: what must hold before the operations can be applied and does not, each a full sentence with advice.
    A real run stops at it before its first change; a dry run warns, since an earlier task may be about to provide it.
    ``warnings``: full sentences that never stop a run.
    ``result``: return values that follow from the plan alone, so that a dry run and a real run return the same.
    """

    operations: tuple[Any, ...] = ()
    before: str = ""
    after: str = ""
    unmet: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def diff(self) -> dict[str, str]:
        return {"before": self.before, "after": self.after}
