# SPDX-License-Identifier: GPL-3.0-or-later
"""The node's own way back where systemd runs: in a unit of its own, and over a reboot.

The tests of this file build on one another, in this order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from fleet import play
from fleet.cut import cut_at, mend
from fleet.generation import dump, pending, recorded, takes_the_overlay
from lab.api import Lab, Node, wait_until
from lab.paths import PREFIX

from .conftest import bring_up, take_down

SITE = "site.yml"
UPGRADE = {"overlay_services": [{"port": 8080}, {"port": 9090}]}
GRACE = 120  # seconds for a busy machine to restore a generation, which takes two or three


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    lab = bring_up("ready", 2, 1, "--systemd")
    play.playbook(SITE, variables={"overlay_batches": ["100%"]}).succeeded()
    yield lab
    for node in lab.nodes.values():
        mend(node)
    take_down()


def units(node: Node) -> list[str]:
    """The way back's unit files, and its units that are active; systemd forgets one without a file when it next
    reloads."""
    system = "/etc/systemd/system"
    files = node.run(["sh", "-c", f"ls -d {system}/*/ebpf-overlay-way* {system}/ebpf-overlay-way*"], False)
    listed = node.run(["systemctl", "list-units", "--no-legend", "--plain", "ebpf-overlay-way*"])
    return [*files.stdout.split(), *listed.stdout.splitlines()]


def has_booted(node: Node) -> bool:
    return node.run(["systemctl", "is-active", "multi-user.target"], check=False).stdout == "active\n"


def seen(lab: Lab) -> dict[str, Any]:
    return {node.name: recorded(dump(node)) for node in lab.nodes.values()}


def test_node_that_is_cut_off_is_restored_by_a_unit_of_its_own(lab: Lab) -> None:
    before, node = seen(lab), lab.nodes[1]
    times = {"overlay_lease": 10, "overlay_apply_timeout": 60}
    watched: list[list[str]] = []

    with cut_at(node, "Read the overlay's counters over a new connection") as begun:

        def look(task: str) -> None:
            begun(task)
            if task == "Read the overlay's counters over a new connection":
                watched.append(units(node))

        assert play.playbook(SITE, variables={**UPGRADE, **times}, begun=look).code != 0
        wait_until(lambda: not pending(node), GRACE, "the node is back")
        assert seen(lab) == before
        assert takes_the_overlay(node, lab.nodes[2])
    # While the lease ran: two files for the boot, and a unit that watches.
    assert len(watched[0]) == 3, watched
    assert "running" in watched[0][2]
    wait_until(lambda: units(node) == [], GRACE, "no unit is left")


def test_node_that_reboots_before_it_is_confirmed_has_its_former_generation_bpfman_341(lab: Lab) -> None:
    before, node = seen(lab), lab.nodes[1]
    times = {"overlay_lease": 900, "overlay_apply_timeout": 900}  # so that nothing but the reboot ends the attempt
    with cut_at(node, "Read the overlay's counters over a new connection") as begun:
        assert play.playbook(SITE, variables={**UPGRADE, **times}, begun=begun).code != 0
        assert pending(node)
        former = node.pid
        node.run(["systemctl", "reboot"], check=False)
        wait_until(lambda: node.pid not in (None, former), GRACE, "the node boots")
        wait_until(lambda: has_booted(node), GRACE, "the node has booted")
        wait_until(lambda: not pending(node), GRACE, "the node is back")
    after, former_state = seen(lab)[f"{PREFIX}n1"], before[f"{PREFIX}n1"]
    assert {key: after[key] for key in ("history", "control")} == {
        key: former_state[key] for key in ("history", "control")
    }
    # The network namespace and the interfaces have other numbers since, which the names of links' pins begin with.
    pins, were_pinned = (
        sorted(re.sub(r"(/links/[^/]+/)[^-]+-\d+-", r"\1", pin) for pin in told["pins"])
        for told in (after, former_state)
    )
    assert pins == were_pinned
    assert takes_the_overlay(node, lab.nodes[2])
    # The same entries have other bytes for the same reason.
    entries, were = ({name: text.split()[0] for name, text in told["maps"].items()} for told in (after, former_state))
    assert entries == were
    wait_until(lambda: units(node) == [], GRACE, "no unit is left")
