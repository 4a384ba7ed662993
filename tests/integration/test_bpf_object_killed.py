# SPDX-License-Identifier: GPL-3.0-or-later
"""``bpf_object`` killed at any step, then one more run, then a search for what is left over (retina #537).

Killed are all steps in a soak, some of them otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from integration.bpf_object_node import Node
from integration.object_source import PIN_DIR, PREFIX, build, entries, expected, fill, remove
from integration.steps import steps_to_kill

pytest_plugins = ["integration.object_fixtures"]


def test_first_build(ready: Node, source: Path) -> None:
    clean = ready.settled_state(PREFIX)
    total = build(ready, source).steps
    whole = set(ready.state(PREFIX)["pins"])
    remove(ready)
    for number in steps_to_kill(total, 5):
        assert build(ready, source, kill_at=number).killed
        build(ready, source)
        assert not build(ready, source).result["changed"]
        found = ready.settled_state(PREFIX)
        assert set(found["pins"]) == whole, number
        assert (len(found["programs"]), len(found["maps"])) == (2, 2), number
        assert found["files"] == clean["files"], number
        remove(ready)
        assert ready.settled_state(PREFIX) == clean, number


def test_rebuild_with_a_migrated_map(ready: Node, source: Path) -> None:
    """Back to the former build as well as on to the new one."""
    former: dict[str, Any] = {"on_map_change": "migrate"}
    bigger: dict[str, Any] = {**former, "defines": {"CAPACITY": 128, "SECOND": 3}}
    build(ready, source)
    clean = ready.settled_state(PREFIX)
    fill(ready, 5)
    total = build(ready, source, **bigger).steps
    build(ready, source, **former)
    for number in steps_to_kill(total, 4):
        for following in (former, bigger):
            assert build(ready, source, kill_at=number, **bigger).killed
            build(ready, source, **following)
            found = ready.settled_state(PREFIX)
            assert set(found["pins"]) == set(clean["pins"]), number
            assert (len(found["programs"]), len(found["maps"])) == (2, 2), number
            assert found["files"] == clean["files"], number
            assert entries(ready) == expected(5)
            build(ready, source, **former)


def test_removal(ready: Node, source: Path) -> None:
    clean = ready.settled_state(PREFIX)
    build(ready, source)
    total = remove(ready).steps
    for number in steps_to_kill(total, 4):
        build(ready, source)
        assert remove(ready, kill_at=number).killed
        remove(ready)
        assert ready.settled_state(PREFIX) == clean, number


def test_removal_clears_what_a_killed_first_run_left(ready: Node, source: Path) -> None:
    clean = ready.settled_state(PREFIX)
    total = build(ready, source).steps
    remove(ready)
    for number in steps_to_kill(total, 5):
        assert build(ready, source, kill_at=number).killed
        remove(ready)
        assert ready.settled_state(PREFIX) == clean, number


def test_the_search_finds_each_kind_of_residue(ready: Node, source: Path) -> None:
    """Or else the tests above could not fail."""
    clean = ready.settled_state(PREFIX)
    build(ready, source)
    ready.command("mkdir", "/sys/fs/bpf/stray")
    ready.command("mv", f"{PIN_DIR}/{PREFIX}first", f"/sys/fs/bpf/stray/{PREFIX}first")
    remove(ready)
    found = ready.settled_state(PREFIX)
    assert set(found["pins"]) - set(clean["pins"]) == {"/sys/fs/bpf/stray", f"/sys/fs/bpf/stray/{PREFIX}first"}
    assert len(found["programs"]) == 1
    assert len(found["maps"]) == 1, "the program holds the map that it uses"
    ready.command("rm", "-r", "/sys/fs/bpf/stray")
    for path in ("/run/ebpf-overlay.lock", "/run/ebpf-overlay-headers-1"):
        ready.command("touch", path)
        assert ready.settled_state(PREFIX)["files"] != clean["files"]
        ready.command("rm", path)
    assert ready.settled_state(PREFIX) == clean
