# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet that changes while it is rolled out, and nodes that leave it."""

from __future__ import annotations

import pytest
from fleet import play
from fleet.datapath import Datapath
from fleet.generation import history, settled
from lab.api import Lab
from lab.paths import PREFIX

SITE = "site.yml"
N1, N2, N3 = (f"{PREFIX}n{number}" for number in (1, 2, 3))


@pytest.fixture(scope="module")
def lab(ready_lab: Lab) -> Lab:
    return ready_lab


def said(done: play.Run) -> str:
    return " ".join(done.output.split()).replace("''", "'")


def test_node_that_reboots_or_is_rebuilt_before_its_turn_is_refused(lab: Lab) -> None:
    """What was planned for it follows from facts of another life, or of another machine."""
    play.playbook(SITE, variables={"overlay_batches": ["100%"]}).succeeded()
    before = {node.name: history(node)["number"] for node in lab.nodes.values()}
    identity = lab.nodes[3].run(["cat", "/etc/machine-id"]).stdout

    def change(task: str) -> None:
        if task == "Confirm the generation" and not changed:
            changed.append(task)
            lab.nodes[2].stop()
            lab.nodes[2].start()
            write_identity(lab, "0123456789abcdef0123456789abcdef\n")

    changed: list[str] = []
    variables = {"overlay_services": [{"port": 8080}, {"port": 9090}], "overlay_batches": [1, "100%"]}
    try:
        done = play.playbook(SITE, variables=variables, begun=change)
    finally:
        write_identity(lab, identity)
    assert done.code != 0
    assert changed
    step = "FAILED at 'Compare with what the node is, and begin a generation if it differs'"
    assert f"{N1}: was rolled out, and taken back because of the failure elsewhere" in said(done)
    assert f"{N2}: {step}: Cannot begin a generation: {N2}. Reason: it has started anew since" in said(done)
    assert f"{N3}: {step}: Cannot begin a generation: {N3}. Reason: it is another machine now" in said(done)
    settled(lab, 60)
    assert {node.name: history(node)["number"] for node in lab.nodes.values()} == before
    play.playbook(SITE, variables=variables).succeeded()


def write_identity(lab: Lab, text: str) -> None:
    script = "chmod 644 /etc/machine-id; cat > /etc/machine-id"
    lab.nodes[3].run(["sh", "-c", script], stdin=text)


def test_retiring_with_a_limit_is_refused_before_any_change(lab: Lab) -> None:
    before = {node.name: history(node) for node in lab.nodes.values()}
    done = play.playbook(SITE, "--limit", f"{N1},{N3}", variables={"overlay_retire": [N3]})
    assert done.code != 0
    assert f"Cannot retire nodes: overlay_retire: {N3}. Reason: --limit leaves out {N2}" in said(done)
    assert {node.name: history(node) for node in lab.nodes.values()} == before


def test_nodes_that_still_know_who_left_are_named_until_they_do_not(lab: Lab) -> None:
    """Who could not be reached; and everybody else, who keeps what he knows while somebody is missing."""
    variables = {"overlay_batches": ["100%"], "overlay_unreachable_policy": "keep", "overlay_retire": [N3]}
    play.playbook(SITE, variables={"overlay_batches": ["100%"]}).succeeded()
    lab.nodes[2].stop()
    try:
        done = play.playbook(SITE, variables=variables)
        assert knows(lab, 1, 3)
    finally:
        lab.nodes[2].start()
    told = f"{N3}: was retired: the overlay is off, but the maps of {N1}, {N2} name the node still"
    assert told in said(done)
    done = play.playbook(SITE, variables=variables).succeeded()
    assert f"{N3}: was retired: the overlay is off, and the other nodes' maps do not name" in said(done)
    assert not knows(lab, 1, 3)
    assert not knows(lab, 2, 3)


def knows(lab: Lab, number: int, other: int) -> bool:
    """Whether a node's map of peers names another node."""
    return f"{lab.nodes[other].ipv4}/32" in {str(key) for key, _value in Datapath(lab.nodes[number]).entries("peers")}
