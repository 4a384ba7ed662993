# SPDX-License-Identifier: GPL-3.0-or-later
"""A roll-out that goes wrong: the canary holds, nodes go back, one that is cut off goes back by itself.

The tests of this file build on one another, in this order.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fleet import play, state
from lab.api import Lab, Node

SITE = "site.yml"
STATE = "/var/lib/ebpf-overlay"
TWO_SERVICES = {"overlay_services": [{"port": 8080}, {"port": 9090}]}
# The node drops SSH, as a firewall that lost its rules would: nothing is refused.


def history(node: Node) -> dict[str, Any]:
    """Number and digest that the node is confirmed to be at; number 0 without any record."""
    script = f"cat {STATE}/confirmed.json 2>/dev/null || echo '{{\"number\": 0}}'"
    number = json.loads(node.run(["sh", "-c", script]).stdout)["number"]
    if not number:
        return {"number": 0, "digest": ""}
    manifest = json.loads(node.run(["cat", f"{STATE}/generations/{number}/manifest.json"]).stdout)
    return {"number": number, "digest": manifest["digest"]}


def pending(node: Node) -> bool:
    """Whether an attempt waits for confirmation, or a process for the attempt."""
    script = f"ls {STATE}/attempt.json; grep -sl runtime[.]zip /proc/[0-9]*/cmdline"
    listed = node.run(["sh", "-c", script], check=False)
    return bool(listed.stdout.strip())


def seen(lab: Lab) -> dict[str, Any]:
    return {node.name: (state.observe(node), history(node)) for node in lab.nodes.values()}


def dump(node: Node) -> dict[str, Any]:
    """Filters, pins and the entries of every map that a run fills."""
    observed = state.observe(node)
    maps = {
        name: play.module(node.name, "ebpf.overlay.bpf_map_info", {"map": f"/sys/fs/bpf/ebpf-overlay/{name}"}).result[
            "entries"
        ]
        for name in ("ifindex_map", "services", "peers", "devices")
    }
    return {"pins": observed.pins, "qdiscs": observed.qdiscs, "maps": maps}


def probe_file(folder: Path, tasks: str) -> dict[str, str]:
    path = folder / "probe.yml"
    path.write_text(tasks, encoding="utf-8")
    return {"overlay_probe_tasks": str(path)}


@pytest.fixture(scope="module")
def lab(ready_lab: Lab) -> Lab:
    return ready_lab


def test_canary_that_fails_its_probe_goes_back_and_no_other_node_changes(lab: Lab, tmp_path: Path) -> None:
    before = seen(lab)
    probe = probe_file(tmp_path, "- name: Fail\n  ansible.builtin.assert: {that: false}\n")
    done = play.playbook(SITE, variables=probe)
    assert done.code != 0
    assert {host for host, _task in done.changes} == {"ovl-n1"}
    for node in lab.nodes.values():
        after = state.observe(node)
        former = before[node.name][0]
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
    before = {node.name: (history(node), dump(node)) for node in lab.nodes.values()}
    assert before["ovl-n1"][0]["number"] == 1
    (tmp_path / "overlay.c").write_text("int from_uplink(void *ctx) { return nothing; }\n", encoding="utf-8")
    done = play.playbook(SITE, variables={"node_source": str(tmp_path / "overlay.c")})
    assert done.code != 0
    assert "ovl-n1: FAILED at 'Build and load the datapath'" in done.output
    assert {node.name: (history(node), dump(node)) for node in lab.nodes.values()} == before
    assert play.playbook(SITE).succeeded().changes == set()


@pytest.mark.usefixtures("lab")
def test_generation_that_is_not_kept_is_an_error_that_says_so() -> None:
    done = play.playbook("rollback.yml", variables={"overlay_rollback_to": "7"})
    assert done.code != 0
    assert "no history" in done.output
    assert done.changes == set()
