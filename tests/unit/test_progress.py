# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person sees of a run: pure parts, and a real run on this machine with its output read line by line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.ebpf.overlay.plugins.plugin_utils import _steps

ROOT = Path(__file__).resolve().parent.parent.parent
PLAY = Path(__file__).parent / "progress"


def run(*options: str) -> tuple[int, list[str]]:
    """Exit code and lines, without the seconds."""
    command = [
        Path(sys.executable).parent / "ansible-playbook",
        "-i",
        PLAY / "inventory.yml",
        PLAY / "play.yml",
        *options,
    ]
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, text=True, capture_output=True, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"},
    )  # fmt: skip
    return done.returncode, re.sub(r" \([\d.]+ s\)| · \d+ s$", "", done.stdout, flags=re.MULTILINE).splitlines()


@pytest.fixture(scope="module")
def shown() -> tuple[int, list[str]]:
    return run()


def test_exit_code_is_ansibles_own(shown: tuple[int, list[str]]) -> None:
    assert shown[0] == 4


def test_batches_steps_and_counts(shown: tuple[int, list[str]]) -> None:
    lines = shown[1]
    assert "batch 1 of 2 · 1 node · step 1 of 5 Change something … 1/1 ok, 1 changed" in lines
    assert "batch 2 of 2 · 3 nodes · step 1 of 5 Change something … 3/3 ok, 3 changed" in lines
    assert "batch 2 of 2 · 3 nodes · step 2 of 5 Fail on one … 0/3 ok, 2 skipped, 1 failed" in lines
    assert "batch 2 of 2 · 3 nodes · step 5 of 5 Look twice … 2/2 ok" in lines
    assert lines.index("Work in batches") < lines.index("Reach everybody") < lines.index("Run freely")
    assert not [line for line in lines if "Nobody does this" in line]


def test_failures_are_told_whole_with_node_step_and_reason(shown: tuple[int, list[str]]) -> None:
    lines = shown[1]
    place = lines.index("FAILED w3 · Fail on one (handled by the play): first line")
    assert lines[place + 1] == "    second line"
    assert lines[place + 2].startswith(f"    in {PLAY}/play.yml:")
    assert "FAILED w4 · Do several things: false: non-zero return code" in lines


def test_messages_are_shown_as_they_are(shown: tuple[int, list[str]]) -> None:
    assert "  w3: wholly: 'so'" in shown[1]


def test_unreachable_node_is_shown_and_leaves_the_counts(shown: tuple[int, list[str]]) -> None:
    lines = shown[1]
    assert [line for line in lines if line.startswith("UNREACHABLE gone · Reach: ")]
    # w4 failed before.
    assert "4 nodes · step 1 of 2 Reach … 3/4 ok, 1 unreachable" in lines


def test_strategy_free_counts_each_step_once(shown: tuple[int, list[str]]) -> None:
    lines = shown[1]
    assert lines.count("3 nodes · step 1 of 2 Be free … 3/3 ok") == 1
    assert lines.count("3 nodes · step 2 of 2 Be free again … 3/3 ok") == 1
    assert {f"  w{number}: free as w{number}" for number in (1, 2, 3)} <= set(lines)


def test_recap(shown: tuple[int, list[str]]) -> None:
    lines = shown[1][shown[1].index("Recap: 5 nodes · 4 changed · 2 failed or unreachable") :]
    assert lines[1] == "  gone  unreachable, unchanged"
    assert lines[-3:] == [
        "  w3  changed 1, rescued 1",
        "  w4  FAILED, changed 1",
        "      Do several things: false: non-zero return code",
    ]


def test_nothing_but_text_goes_into_a_pipe(shown: tuple[int, list[str]]) -> None:
    assert not [line for line in shown[1] if "\x1b" in line or "\r" in line]


def test_dry_run_says_would() -> None:
    lines = run("--check", "--limit", "w1")[1]
    assert "Work in batches (dry run)" in lines
    assert "1 node · step 1 of 5 Change something … 1/1 ok, 1 would change" in lines
    assert "  w1  would change 1" in lines


# --- pure parts -------------------------------------------------------------------------------------------------------


def test_steps_of_the_roll_out_are_foreseen() -> None:
    role = ROOT / "roles" / "node"
    task = {"name": "Roll out", "ansible.builtin.include_role": {"name": "ebpf.overlay.node"}}
    steps = _steps.listed([task], str(role / "tasks"), {"ebpf.overlay.node": str(role)})
    order = ["Install bcc, pyroute2 and the UAPI headers", "Build and load the datapath", "Confirm the generation"]
    assert [step for step in steps if step in order] == order
    assert "Note the failure" not in steps


def test_file_that_is_named_by_a_template_counts_as_one_step() -> None:
    assert _steps.listed([{"name": "Probe", "include_tasks": "{{ file }}"}], "/", {}) == ["Probe"]


@pytest.mark.parametrize(
    ("total", "serial", "sizes"),
    [
        (3, [], [3]),
        (3, [1, "25%", "100%"], [1, 1, 1]),
        (50, [1, "25%", "100%"], [1, 12, 37]),
        (5, [2], [2, 2, 1]),
        (5, [0], [5]),
        (0, [1], []),
    ],
)
def test_batches(total: int, serial: list[Any], sizes: list[int]) -> None:
    assert _steps.batches(total, serial) == sizes


@given(st.integers(0, 400), st.lists(st.one_of(st.integers(0, 50), st.integers(1, 100).map("{}%".format)), max_size=4))
def test_every_node_is_in_one_batch(total: int, serial: list[Any]) -> None:
    assert sum(_steps.batches(total, serial)) == total


def test_repeated_and_unforeseen_steps_have_no_number() -> None:
    place = _steps.Place(["a", "b", "c"])
    assert [place.number(name) for name in ("a", "x", "c", "b")] == [1, None, 3, None]


def test_recap_of_many_nodes_names_only_the_troubled() -> None:
    well = {"changed": 8, "failures": 0, "unreachable": 0, "rescued": 0, "ignored": 0}
    rows = [(f"n{number}", well) for number in range(300)] + [("bad", {**well, "failures": 1})]
    lines = _steps.recap(rows, {"bad": "Build: it failed"}, check=False)
    assert lines == [
        "301 nodes · 301 changed · 1 failed or unreachable",
        "  bad  FAILED, changed 8",
        "      Build: it failed",
        "  300 nodes: changed 8",
    ]


def test_everything_that_a_failed_task_said() -> None:
    assert _steps.reason({"msg": "MODULE FAILURE", "module_stderr": "Traceback\nboom\n"}).endswith("Traceback\nboom")
    loop = {"results": [{"item": "a"}, {"item": "b", "failed": True, "msg": "no"}], "msg": "One or more items failed"}
    assert _steps.reason(loop) == "b: no"
    assert _steps.reason({}) == "it failed"
