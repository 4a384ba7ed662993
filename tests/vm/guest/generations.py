# SPDX-License-Identifier: GPL-3.0-or-later
"""A roll-out as the playbooks make it, and the ways back from it."""

from __future__ import annotations

import copy
import time
from typing import Any

from .modules import PATIENCE, expect, run, settled
from .story import Story
from .traffic import fast_path

HOUR = 3600  # seconds; a busy machine must not be taken for one where nobody confirms


def generation(story: Story) -> None:
    """One generation is confirmed; the next, which nobody confirms, the node takes back; then back to 0."""
    calls = story.calls()
    attempt = roll_out(story, calls, number=1, lease=HOUR)
    run("overlay_generation", state="confirmed", number=1, attempt=attempt)
    fast_path(story.network)
    confirmed(story, calls)

    others = copy.deepcopy(calls)
    services = next(call for call in others if call["arguments"].get("map", "").endswith("/services"))
    services["arguments"]["entries"].append({"key": 9090, "value": 1})
    roll_out(story, others, number=2, lease=1)
    deadline = time.monotonic() + 3 * PATIENCE
    while (told := run("overlay_generation_info"))["pending"] or told["differences"]:
        expect(time.monotonic() < deadline, f"the node did not go back by itself: {told}")
        time.sleep(1)
    confirmed(story, calls)
    fast_path(story.network)

    taken_back(story)


def taken_back(story: Story) -> None:
    """To generation 0: what was there before is what is left."""
    back: dict[str, Any] = {"state": "restored", "to": "0", "drain_timeout": 1, "runtime": story.runtime}
    expect(run("overlay_generation", check=True, **back)["changed"], "the dry run foretells no way back to 0")
    run("overlay_generation", **back)
    expect(not run("overlay_generation", **back)["changed"], "the way back to 0 changes something twice")
    settled(story.pristine, "a generation")


def roll_out(story: Story, calls: list[dict[str, Any]], number: int, lease: float) -> str:
    """Take every step but the confirmation, for which there are ``lease`` seconds; returns the attempt."""
    begin: dict[str, Any] = {"state": "begun", "calls": calls, "timeout": HOUR, "runtime": story.runtime}
    foretold = run("overlay_generation", check=True, **begin)
    begun = run("overlay_generation", **begin)
    for told in (foretold, begun):
        expect(told["changed"] and told["number"] == number, f"generation {number} begins with {told}")
    for call in calls:
        run(call["module"], **call["arguments"])
    run("overlay_mode", mode="on", lease=lease, generation=number)
    return str(begun["attempt"])


def confirmed(story: Story, calls: list[dict[str, Any]]) -> None:
    """A second roll-out has nothing to do."""
    told = run("overlay_generation", state="begun", calls=calls, runtime=story.runtime)
    expect(not told["changed"], f"a second roll-out finds differences: {told['differences']}")
