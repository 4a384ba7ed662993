# SPDX-License-Identifier: GPL-3.0-or-later
"""``bpf_object`` from generated states: the dry run foretells the real one and changes nothing. Seeds are printed."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

from integration.bpf_object_node import Node
from integration.object_source import PIN_DIR, PREFIX, build, fill, remove
from integration.steps import SOAK

pytest_plugins = ["integration.object_fixtures"]

STATES = 500 if SOAK else 5


def some_build(dice: random.Random) -> dict[str, Any]:
    defines = {"CAPACITY": dice.choice([64, 64, 128]), "SECOND": dice.choice([1, 2])}
    programs = dice.choice([[f"{PREFIX}first", f"{PREFIX}second"]] * 2 + [[f"{PREFIX}first"], [f"{PREFIX}second"]])
    return {"defines": defines, "programs": programs, "on_map_change": dice.choice(["refuse", "migrate", "replace"])}


def start(node: Node, source: Path, dice: random.Random) -> list[str]:
    """Nothing, a build of ours, half a build, a stale one, pins that are lost, pins of somebody else."""
    told = []
    for __ in range(dice.choice([0, 1, 1, 2])):
        chosen = some_build(dice)
        kill_at = dice.choice([0, 0, dice.randrange(1, 45)])
        build(node, source, kill_at=kill_at, **chosen)
        told.append(f"build {chosen} killed at {kill_at}")
    if dice.random() < 0.3:
        kill_at = dice.choice([0, dice.randrange(1, 8)])
        remove(node, kill_at=kill_at)
        told.append(f"remove killed at {kill_at}")
    pins = sorted(path for path in node.state(PREFIX)["pins"] if path.startswith(f"{PIN_DIR}/"))
    if f"{PIN_DIR}/{PREFIX}flows" in pins and dice.random() < 0.5:
        fill(node, dice.choice([1, 64]))
        told.append("filled")
    if pins and dice.random() < 0.3:
        lost = dice.choice(pins)
        node.command("rm", lost)
        told.append(f"lost {lost}")
    if dice.random() < 0.2:
        build(node, source, pin_dir="/sys/fs/bpf/foreign")
        name = dice.choice([f"{PREFIX}first", f"{PREFIX}flows", "foreign"])
        node.command("mkdir", "-p", PIN_DIR)
        node.command("mv", f"/sys/fs/bpf/foreign/{PREFIX}flows", f"{PIN_DIR}/{name}")
        node.command("rm", "-r", "/sys/fs/bpf/foreign")
        told.append(f"foreign {name}")
    return told


def test_check_tells_what_the_run_does(ready: Node, source: Path) -> None:
    seed = int(os.environ.get("OVERLAY_SEED", random.randrange(1 << 32)))
    print(f"OVERLAY_SEED={seed}")
    dice = random.Random(seed)
    refused = changed = 0
    clean = ready.settled_state(PREFIX)
    for number in range(STATES):
        told: Any = [f"seed {seed} state {number}", *start(ready, source, dice)]
        wanted = None if dice.random() < 0.2 else some_build(dice)

        def run(dry: bool, wanted: dict[str, Any] | None = wanted) -> Any:
            return remove(ready, dry=dry) if wanted is None else build(ready, source, dry=dry, **wanted)

        told.append(f"then {wanted or 'remove'}")
        before = ready.settled_state(PREFIX)
        dry = run(True)
        assert without_lock(ready.settled_state(PREFIX)) == without_lock(before), told
        real = run(False)
        after = ready.settled_state(PREFIX)
        if real.result.get("failed"):
            refused += 1
            assert dry.result["error"] == real.result["error"], told
            assert without_lock(after) == without_lock(before), told
        else:
            changed += real.result["changed"]
            for key in ("changed", "compiled", "digest", "diff"):
                assert dry.result[key] == real.result[key], (told, key)
            for kind in ("programs", "maps"):
                foretold = [{**item, "id": None} for item in dry.result[kind]]
                assert foretold == [{**item, "id": None} for item in real.result[kind]], (told, kind)
            assert real.result["changed"] == (without_lock(after) != without_lock(before)), told
            again = run(False)
            assert (again.result["changed"], again.changes) == (False, 0), told
            assert ready.settled_state(PREFIX) == after, told
        remove(ready)
        ready.command("rm", "-rf", PIN_DIR)
        assert ready.settled_state(PREFIX) == clean, told
    assert changed
    assert refused < STATES * 0.7


def without_lock(state: dict[str, Any]) -> dict[str, Any]:
    """A dry run takes the lock too, and so removes the file of a killed run."""
    return {**state, "files": [name for name in state["files"] if name != "/run/ebpf-overlay.lock"]}
