# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever the user's settings are and wherever they stand: they hold, or the run refuses them by name beforehand.

The tests of this file build on one another, in this order.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from fleet import play
from fleet.datapath import AT_ONCE
from lab import paths
from lab.api import Lab
from lab.paths import INVENTORY, PREFIX

SITE = "site.yml"


def said(done: play.Run) -> str:
    """What a person saw, in one line."""
    return " ".join(done.output.split()).replace("''", "'")


def refused(done: play.Run, *words: str) -> None:
    """The run ended before the first change, and said why."""
    assert done.code != 0, done.output
    assert done.changes == set(), done.output
    for word in words:
        assert word in said(done), done.output


def inventory(folder: Path, **hosts: dict[str, Any]) -> Path:
    """The lab's inventory, with further variables of hosts (``n2``), or of the group as ``group``."""
    found = yaml.safe_load(paths.INVENTORY.read_text(encoding="utf-8"))
    group = found["overlay_nodes"]
    group["vars"] |= {"ansible_ssh_private_key_file": str(paths.KEY), **hosts.pop("group", {})}
    for name, values in hosts.items():
        group["hosts"][f"{paths.PREFIX}{name}"] |= values
    path = folder / "inventory.yml"
    path.write_text(json.dumps(found), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def lab(ready_lab: Lab) -> Lab:
    return ready_lab


@pytest.mark.usefixtures("lab")
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("overlay_probe_required=maybe", ("overlay_probe_required: 'maybe'", "neither true nor false")),
        ("overlay_lease=soon", ("overlay_lease: 'soon'", "it is no number")),
        (
            'overlay_services=[{"port": 80}]',
            ("overlay_services. Reason: '[{\"port\":' is no list", "line as -e"),
        ),
        ("overlay_services=8080", ("overlay_services. Reason: 8080 is no list", "Give a list")),
        ("overlay_redirect=quick", ("overlay_redirect: 'quick'", "none of auto, peer")),
        ("overlay_batches=some", ("overlay_batches: ['some']", "these are no batches")),
    ],
)
def test_value_given_as_text_that_means_nothing_is_refused_by_name(given: str, words: tuple[str, ...]) -> None:
    refused(play.playbook(SITE, "-e", given), *words)


@pytest.mark.usefixtures("lab")
def test_probe_file_is_looked_for_before_the_first_change(tmp_path: Path) -> None:
    """A relative one from where the user stands, not in the role, whose own file has that name too."""
    refused(
        play.playbook(SITE, "-e", "overlay_probe_tasks=probe.yml"),
        f"Cannot read the probe's tasks: {play.ROOT}/probe.yml. Reason: there is no such file",
    )
    (tmp_path / "tasks.yml").write_text("no: list\n", encoding="utf-8")
    refused(play.playbook(SITE, "-e", f"overlay_probe_tasks={tmp_path}/tasks.yml"), "it holds no list of tasks")


@pytest.mark.usefixtures("lab")
def test_batches_of_the_inventory_hold_or_are_refused(tmp_path: Path) -> None:
    different = inventory(tmp_path, n2={"overlay_batches": [2]})
    refused(
        play.playbook(SITE, inventory=different),
        "Cannot accept a variable: overlay_batches. Reason: it is one setting of the whole run, and differs",
        f"[2] for {PREFIX}n2",
    )
    done = play.playbook(SITE, inventory=inventory(tmp_path, group={"overlay_batches": [2, "100%"]})).succeeded()
    assert "batch 1 of 2 · 2 nodes" in done.output


def test_values_given_as_text_mean_what_they_say(lab: Lab, tmp_path: Path) -> None:
    """A flag that is ``false``, batches and services in JSON, a lease, a probe relative to the working directory."""
    probe = play.ROOT / "build" / f"{tmp_path.name}.yml"
    probe.parent.mkdir(exist_ok=True)
    probe.write_text("- name: A probe of the user's\n  ansible.builtin.debug: {msg: 'seen here'}\n", encoding="utf-8")
    try:
        done = play.playbook(
            SITE, "-e", "overlay_probe_required=false overlay_batches=100% overlay_lease=45",
            "-e", "overlay_services=" + json.dumps([{"port": 9}], separators=(",", ":")).replace('"', '\\"'),
            "-e", f"overlay_probe_tasks=build/{probe.name}",
        ).succeeded()  # fmt: skip
    finally:
        probe.unlink()
    assert "batch 1 of" not in done.output
    assert f"{PREFIX}n1: Nothing was probed: 10.244.1.11:9" in said(done)
    assert done.output.count("seen here") == len(lab.nodes)


@pytest.mark.usefixtures("lab")
def test_batch_that_would_outlast_its_lease_is_refused_with_the_sum() -> None:
    slow = ("--forks", "1")
    done = play.playbook(SITE, *slow, variables={"overlay_batches": ["100%"], "overlay_lease": 3})
    refused(
        done, "Cannot roll out in these batches: 3 nodes at a time with 1 fork(s). Reason: 3 wave(s) of nodes, 4 steps",
        "and overlay_lease is 3 s", "forks in ansible.cfg", "overlay_lease of",
    )  # fmt: skip
    refused(
        play.playbook(SITE, *slow, variables={**AT_ONCE, "overlay_apply_timeout": 5}),
        "12 steps each", "overlay_apply_timeout is 5 s",
    )  # fmt: skip


@pytest.mark.usefixtures("lab")
def test_batches_that_nobody_set_follow_from_forks_and_lease() -> None:
    """A lease that is enough for one node after the other, and not for all of them."""
    dry = play.playbook(SITE, "--forks", "1", "--check").succeeded()
    facts = [result.result["ansible_facts"]["overlay"] for result in dry.of("Gather the overlay's facts")]
    wall = max(node["gathering"][1] for node in facts) - min(node["gathering"][0] for node in facts)
    done = play.playbook(SITE, "--forks", "1", variables={"overlay_lease": 10 * wall / len(facts)}).succeeded()
    assert "batch 1 of 3 · 1 node" in done.output


@pytest.mark.usefixtures("lab")
def test_part_of_the_play_is_refused() -> None:
    done = play.playbook(SITE, "--start-at-task", "Take the steps")
    refused(done, "Cannot roll out a part of the play: --start-at-task", "Nothing was changed")
    command = [play.BIN / "ansible-playbook", "-i", INVENTORY, SITE, "--step"]
    stepped = subprocess.run(
        list(map(str, command)), cwd=play.ROOT, text=True, input="c\n" * 9, capture_output=True, check=False
    )
    assert stepped.returncode != 0
    assert "Cannot roll out a part of the play: --step" in " ".join((stepped.stdout + stepped.stderr).split())


@pytest.mark.usefixtures("lab")
def test_tags_and_lists_change_nothing_of_what_is_done(tmp_path: Path) -> None:
    assert "Switch the overlay off" in play.playbook("playbooks/disable.yml", "--list-tasks").succeeded().output
    assert "Begin" not in play.playbook(SITE, "--list-tasks").succeeded().output
    done = play.playbook(SITE, "--tags", "other", variables={**AT_ONCE, "overlay_services": [{"port": 7070}]})
    assert f"{PREFIX}n3: rolled out and confirmed" in done.succeeded().output
    retry = tmp_path / "site.retry"
    retry.write_text(f"{PREFIX}n1\n{PREFIX}n2\n{PREFIX}n3\n", encoding="utf-8")
    assert play.playbook(SITE, "--limit", f"@{retry}", variables=AT_ONCE).succeeded().code == 0


def test_every_machine_is_dialled_by_its_own_arguments_and_everybody_else_s(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\necho "$*" >>{log}\nexec ssh "$@"\n', encoding="utf-8")
    ssh.chmod(0o755)
    monkeypatch.setenv("ANSIBLE_SSH_EXTRA_ARGS", "-o ConnectionAttempts=2")
    own = inventory(
        tmp_path,
        group={"ansible_ssh_executable": str(ssh), "ansible_ssh_args": "-o ControlMaster=no"},
        n2={"ansible_ssh_extra_args": "-o ConnectionAttempts=3"},
    )
    play.playbook(SITE, variables={**AT_ONCE, "overlay_services": [{"port": 6060}]}, inventory=own).succeeded()
    calls = [line for line in log.read_text(encoding="utf-8").splitlines() if "198.18.0." in line]
    assert len(calls) >= 10 * len(lab.nodes)
    for number, node in lab.nodes.items():
        ours = [line for line in calls if f" {node.ipv4} " in line]
        attempts = {line.partition("ConnectionAttempts=")[2].partition(" ")[0] for line in ours}
        assert attempts == {"3" if number == 2 else "2"}
        assert all("ServerAliveInterval=5" in line for line in ours)
