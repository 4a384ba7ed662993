# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the checks and tells the outcome on the console, one line each: ``@matrix NAME ok`` or ``failed``."""

from __future__ import annotations

import base64
import json
import os
import time
import traceback
from pathlib import Path

from . import checks, wired
from .modules import preload
from .network import Network
from .story import Story
from .wirings import WIRINGS

FOLDER = Path("/run/matrix")


def tell(text: str) -> None:
    """In one write and on a line of its own, since the kernel writes to the same console."""
    os.write(1, f"\n@matrix {text}\n".encode())


def main() -> None:
    """A check that fails ends the run only if nothing else can pass without it."""
    preload()
    expected = json.loads((FOLDER / "expected.json").read_text())
    runtime = base64.b64encode((FOLDER / "runtime.zip").read_bytes()).decode()
    story = Story(expected, (FOLDER / "bundle").read_text(), runtime)
    name = (FOLDER / "wiring").read_text()
    if name:
        story.network = Network(WIRINGS[name])
    for check in wired.checks_of(WIRINGS[name]) if name else checks.CHECKS:
        name, began, outcome = check.__name__, time.monotonic(), "ok"
        try:
            check(story)
        except Exception:
            traceback.print_exc()
            outcome = "failed"
        tell(f"{name} {outcome} {time.monotonic() - began:.1f}")
        if outcome == "failed" and check in (*checks.FOUNDATIONS, *wired.FOUNDATIONS):
            break
    tell("end")


main()
