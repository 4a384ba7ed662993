# SPDX-License-Identifier: GPL-3.0-or-later
"""A roll-out that fails: the canary holds, and every node goes back to what it was.

The tests of this file build on one another, in this order.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from fleet import play, state
from fleet.generation import dump, history, pending, recorded
from lab.api import Lab

SITE = "site.yml"


def probe_file(folder: Path, tasks: str) -> dict[str, str]:
    path = folder / "probe.yml"
    path.write_text(tasks, encoding="utf-8")
    return {"overlay_probe_tasks": str(path)}


@pytest.fixture(scope="module")
def lab(ready_lab: Lab) -> Lab:
    return ready_lab


def test_canary_that_fails_its_probe_goes_back_and_no_other_node_changes(lab: Lab, tmp_path: Path) -> None:
    before = {node.name: state.observe(node) for node in lab.nodes.values()}
    probe = probe_file(tmp_path, "- name: Fail\n  ansible.builtin.assert: {that: false}\n")
    done = play.playbook(SITE, variables=probe)
    assert done.code != 0
    assert {host for host, _task in done.changes} == {"ovl-n1"}
    for node in lab.nodes.values():
        after = state.observe(node)
        former = before[node.name]
        assert (after.qdiscs, after.filters, after.pins) == (former.qdiscs, former.filters, former.pins)
        assert history(node)["number"] == 0
        assert not pending(node)
        assert [line for line in after.files if "ebpf-overlay" in line] == []
    assert "ovl-n1: FAILED at 'Fail'" in done.output
    assert "ovl-n2: not reached by the roll-out" in done.output


def test_failure_in_a_later_batch_takes_the_canary_back_too(lab: Lab, tmp_path: Path) -> None:
    probe = probe_file(tmp_path, "- name: Fail\n  ansible.builtin.assert: {that: inventory_hostname != 'ovl-n2'}\n")
    done = play.playbook(SITE, variables=probe)
    assert done.code != 0
    assert {host for host, _task in done.changes} == {"ovl-n1", "ovl-n2"}
    assert [history(node)["number"] for node in lab.nodes.values()] == [0, 0, 0]
    assert "ovl-n1: was rolled out, and taken back" in done.output


def test_source_that_does_not_compile_leaves_the_former_generation(lab: Lab, tmp_path: Path) -> None:
    play.playbook(SITE).succeeded()
    before = {node.name: dump(node) for node in lab.nodes.values()}
    assert before["ovl-n1"]["history"]["number"] == 1
    (tmp_path / "overlay.c").write_text("int from_uplink(void *ctx) { return nothing; }\n", encoding="utf-8")
    done = play.playbook(SITE, variables={"node_source": str(tmp_path / "overlay.c")})
    assert done.code != 0
    assert "ovl-n1: FAILED at 'Build and load the datapath'" in done.output
    assert {node.name: recorded(dump(node)) for node in lab.nodes.values()} == {
        name: recorded(seen) for name, seen in before.items()
    }
    assert play.playbook(SITE).succeeded().changes == set()
