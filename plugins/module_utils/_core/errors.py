# SPDX-License-Identifier: GPL-3.0-or-later
"""The one exception type of the collection."""

from __future__ import annotations

import errno as errno_names
import os


class OverlayError(Exception):
    """Something that could not be done, told in the four parts that a person needs.

    ``doing``: the action in the infinitive, "attach a filter".
    ``target``: what it was done to: interface and direction, map and key, pin, file.
    ``reason``: what the kernel, the compiler or the verifier said. OSError: "ENODEV (No such device)".
    ``advice``: what the person can do next, a full sentence.
    """

    def __init__(self, doing: str, target: str, reason: object, advice: str) -> None:
        self.doing = doing
        self.target = target
        self.errno = getattr(reason, "errno", None) or getattr(reason, "code", None)
        self.reason = describe_errno(self.errno) if isinstance(self.errno, int) else str(reason)
        self.advice = advice
        super().__init__(doing, target, self.reason, advice)

    def __str__(self) -> str:
        reason = self.reason.strip().rstrip(".")
        return f"Cannot {self.doing}: {self.target}. Reason: {reason}. {self.advice}"

    def parts(self) -> dict[str, object]:
        """The same as data, returned by a failing module as ``error``."""
        return {
            "doing": self.doing,
            "target": self.target,
            "reason": self.reason,
            "advice": self.advice,
            "errno": errno_names.errorcode.get(self.errno) if isinstance(self.errno, int) else None,
        }


def describe_errno(number: int) -> str:
    """``19`` -> ``ENODEV (No such device)``."""
    number = abs(number)
    return f"{errno_names.errorcode.get(number, f'errno {number}')} ({os.strerror(number)})"
