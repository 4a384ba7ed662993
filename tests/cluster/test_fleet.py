# SPDX-License-Identifier: GPL-3.0-or-later
"""A roll-out that fails: the canary holds, and every node goes back to what it was.

The tests of this file build on one another, in this order.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from fleet import play, state
from fleet.datapath import AT_ONCE, full
from fleet.generation import STATE, dump, history, recorded, settled, takes_the_overlay
from lab.api import Lab
from lab.paths import PREFIX

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
    assert {host for host, _task in done.changes} == {f"{PREFIX}n1"}
    settled(lab, 10)  # whoever watches an attempt sees within a second that it is over
    for node in lab.nodes.values():
        after = state.observe(node)
        former = before[node.name]
        assert (after.qdiscs, after.filters, after.pins) == (former.qdiscs, former.filters, former.pins)
        assert history(node)["number"] == 0
        assert [line for line in after.files if "ebpf-overlay" in line] == []
    assert f"{PREFIX}n1: FAILED at 'Fail'" in done.output
    assert f"{PREFIX}n2: not reached by the roll-out" in done.output


def numbers(lab: Lab) -> set[int]:
    """The generations that the nodes are at."""
    return {history(node)["number"] for node in lab.nodes.values()}


def test_failure_in_a_later_batch_takes_the_canary_back_too(lab: Lab, tmp_path: Path) -> None:
    probe = probe_file(
        tmp_path, f"- name: Fail\n  ansible.builtin.assert: {{that: inventory_hostname != '{PREFIX}n2'}}\n"
    )
    done = play.playbook(SITE, variables=probe)
    assert done.code != 0
    assert {host for host, _task in done.changes} == {node.name for node in list(lab.nodes.values())[: full(6, 2)]}
    assert numbers(lab) == {0}
    assert f"{PREFIX}n1: was rolled out, and taken back" in done.output


def test_nothing_to_probe_fails_where_a_probe_is_required(lab: Lab) -> None:
    nobody_listens = {"overlay_services": [{"port": 9}], "overlay_probe_required": True}
    done = play.playbook(SITE, variables=nobody_listens)
    told = " ".join(done.output.split()).replace("''", "'")
    assert done.code != 0
    assert f"{PREFIX}n1: FAILED at 'Say what was probed'" in told
    assert "Nothing was probed: 10.244.1.11:9" in told
    assert "refused the connection, and overlay_probe_required is set" in told
    assert numbers(lab) == {0}


def test_source_that_does_not_compile_leaves_the_former_generation(lab: Lab, tmp_path: Path) -> None:
    predicted = play.playbook(SITE, "--check", "--diff").succeeded()
    assert play.playbook(SITE, variables=AT_ONCE).succeeded().changes == predicted.changes
    before = {node.name: dump(node) for node in lab.nodes.values()}
    assert before[f"{PREFIX}n1"]["history"]["number"] == 1
    (tmp_path / "overlay.c").write_text("int from_uplink(void *ctx) { return nothing; }\n", encoding="utf-8")
    done = play.playbook(SITE, variables={"node_source": str(tmp_path / "overlay.c")})
    assert done.code != 0
    assert f"{PREFIX}n1: FAILED at 'Build and load the datapath'" in done.output
    assert {node.name: recorded(dump(node)) for node in lab.nodes.values()} == {
        name: recorded(seen) for name, seen in before.items()
    }
    assert play.playbook(SITE, "--check", "--diff").succeeded().changes == set()


LOCK = "/run/ebpf-overlay.lock"
LIBRARIES = "/usr/lib/python3/dist-packages"


def test_disable_switches_off_a_node_that_is_otherwise_broken(lab: Lab) -> None:
    """Pins lost, record corrupt, a lock that nobody releases, no library: off all the same, and enable.yml repairs."""
    nodes = lab.nodes
    # Filters outlive their pins, links do not.
    play.playbook(SITE, variables={**AT_ONCE, "overlay_mechanism": "clsact"}).succeeded()
    assert all(takes_the_overlay(node, nodes[number % len(nodes) + 1]) for number, node in nodes.items())
    nodes[1].run(["rm", "-r", "/sys/fs/bpf/ebpf-overlay"])
    nodes[2].run(["sh", "-c", f"cd {STATE}; cp confirmed.json /root/; echo '{{' >confirmed.json; : >{LOCK}"])
    holder = nodes[2].popen(["flock", LOCK, "sleep", "600"])
    nodes[3].run(["sh", "-c", f"cd {LIBRARIES}; mv bcc bcc.away; mv pyroute2 pyroute2.away"])
    try:
        predicted = play.playbook("playbooks/disable.yml", "--check", "--diff")
        assert takes_the_overlay(nodes[1], nodes[2])
        done = play.playbook("playbooks/disable.yml").succeeded()
        assert {host for host, _task in done.changes} == {node.name for node in nodes.values()}
        assert {host for host, _task in predicted.changes} == {host for host, _task in done.changes}
        assert "The pins in /sys/fs/bpf/ebpf-overlay are gone" in " ".join(done.output.split())
        assert not any(takes_the_overlay(node, nodes[number % len(nodes) + 1]) for number, node in nodes.items())
        assert play.playbook("playbooks/disable.yml").succeeded().changes == set()
    finally:
        nodes[3].run(["sh", "-c", f"cd {LIBRARIES}; mv bcc.away bcc; mv pyroute2.away pyroute2"])
        nodes[2].run(["pkill", "-x", "sleep"], check=False)
        nodes[2].run(["mv", "/root/confirmed.json", f"{STATE}/"])
        holder.wait()
    play.playbook("playbooks/enable.yml", variables=AT_ONCE).succeeded()
    assert all(takes_the_overlay(node, nodes[number % len(nodes) + 1]) for number, node in nodes.items())
