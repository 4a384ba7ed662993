# SPDX-License-Identifier: GPL-3.0-or-later
"""The status of the fleet: what differs from a generation is named, and so is what could not be read.

The tests of this file build on one another, in this order.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet import play, state
from fleet.datapath import detach
from integration.tc_checks import TCX_ATTACH
from lab.api import Lab, Node
from lab.paths import PREFIX

from .conftest import bring_up, take_down

STATUS = "playbooks/status.yml"
PINS = "/sys/fs/bpf/ebpf-overlay"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    yield bring_up("ready", nodes=2)
    take_down()


def status(folder: Path, *options: str) -> tuple[play.Run, dict[str, Any], str]:
    """The run, the document by node name, and the page."""
    files = {"overlay_status_json": str(folder / "status.json"), "overlay_status_html": str(folder / "status.html")}
    done = play.playbook(STATUS, *options, variables=files)
    document = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    return (
        done,
        {node["name"]: node for node in document["nodes"]},
        (folder / "status.html").read_text(encoding="utf-8"),
    )


def tc(node: Node, command: str) -> None:
    """The machine's tc, on the node's interfaces and with the node's pins."""
    spaces = ["nsenter", f"--target={node.pid}", "--mount", f"--net={node.netns}", "--"]
    node.host_run(["sh", "-c", " ".join(["exec", *spaces, "tc", command])])


def attach_behind(node: Node, interface: str) -> None:
    """A TCX link of somebody else, at the tail."""
    root = f"/proc/{node.pid}/root/sys/fs/bpf"
    python = ["env", f"PYTHONPATH={play.ROOT / 'collections'}", sys.executable, "-c", TCX_ATTACH]
    node.host_run([*python, f"{root}/foreign/link", interface, "46", f"{root}/ebpf-overlay/from_uplink"])


def test_node_that_never_saw_the_overlay_is_bare(lab: Lab, tmp_path: Path) -> None:
    before = state.observe(lab.nodes[1])
    done, nodes, _page = status(tmp_path)
    assert done.succeeded().changes == {
        (f"{PREFIX}n1", "Write the status as JSON"),
        (f"{PREFIX}n1", "Write the status as a page"),
    }
    assert [(node["state"], node["generation"], node["drift"]) for node in nodes.values()] == [("bare", 0, [])] * 2
    state.assert_same(state.observe(lab.nodes[1]), before)


def test_overlay_with_traffic(lab: Lab, tmp_path: Path) -> None:
    play.playbook("site.yml", variables={"overlay_batches": ["100%"]}).succeeded()
    connection = lab.nodes[1].connect(lab.workload(2, 1).ipv4, 8080)
    for __ in range(5):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: workload\r\n\r\n")
        assert connection.recv(4096)
        time.sleep(0.05)
    done, nodes, page = status(tmp_path)
    connection.close()
    assert done.succeeded()
    for node in nodes.values():
        assert (node["state"], node["generation"], node["mode"], node["drift"]) == ("overlaid", 1, "on", [])
        assert sorted(item["program"] for item in node["attachments"]) == [
            "from_uplink",
            *["from_workload"] * 2,
            "to_uplink",
            *["to_workload"] * 2,
        ]
        assert len(node["digest"]) == 64
    served = nodes[f"{PREFIX}n2"]
    assert served["traffic"]["fast"]["packets"] >= 4
    assert served["counters"]["uplink.to_workload"]["packets"] >= 2
    assert {"workload": lab.workload(2, 1).ipv4, "remote": lab.nodes[1].ipv4, "flows": 1} in served["flows"]["pairs"]
    assert f"{PREFIX}n2 redirects 1 open flow with {PREFIX}n1" in page


@pytest.mark.usefixtures("lab")
def test_dry_run_reads_and_writes_nothing(tmp_path: Path) -> None:
    files = {"overlay_status_json": str(tmp_path / "status.json")}
    done = play.playbook(STATUS, "--check", "--diff", variables=files).succeeded()
    assert "overlaid" in done.output
    assert list(tmp_path.iterdir()) == []


def test_every_foreign_change_is_named(lab: Lab, tmp_path: Path) -> None:
    one, other = lab.nodes[1], lab.nodes[2]
    removed, behind = (one.workloads[number].host_interface for number in (1, 2))
    detach(one, removed)
    attach_behind(one, behind)
    tc(one, f"qdisc add dev {one.uplink} clsact")
    tc(one, f"filter add dev {one.uplink} ingress protocol all pref 1 handle 9 bpf da pinned {PINS}/from_workload")
    changed = {"map": f"{PINS}/services", "entries": [{"key": 22, "value": 1}]}
    play.module(other.name, "ebpf.overlay.bpf_map_sync", changed)
    done, nodes, page = status(tmp_path)
    drift = {(item["kind"], item["object"]): item for item in nodes[f"{PREFIX}n1"]["drift"]}
    assert done.succeeded()
    assert set(drift) == {
        ("missing", f"TCX link on {removed} ingress, ebpf.overlay:from_workload"),
        ("changed", f"TCX link on {behind} ingress, ebpf.overlay:from_workload"),
        # Somebody's filter that may take packets: the overlay must run behind it.
        ("extra", f"TCX link on {one.uplink} ingress, ebpf.overlay:from_uplink"),
        ("missing", f"filter on {one.uplink} ingress, priority 60000, handle 0x1"),
    }
    assert drift["missing", f"TCX link on {removed} ingress, ebpf.overlay:from_workload"]["found"] is None
    moved = drift["changed", f"TCX link on {behind} ingress, ebpf.overlay:from_workload"]
    assert ("somebody else" in moved["found"], "somebody else" in moved["wanted"]) == (True, False)
    assert nodes[f"{PREFIX}n2"]["drift"] == [
        {"kind": "extra", "object": "map services, key 22", "wanted": None, "found": "1", "owner": None}
    ]
    assert [node["state"] for node in nodes.values()] == ["drifted", "drifted"]
    for text in (done.output, page):
        assert "map services, key 22" in text
        assert f"TCX link on {removed} ingress" in text


def test_lost_record_does_not_pass_for_a_node_without_drift(lab: Lab, tmp_path: Path) -> None:
    lab.nodes[2].run(["mv", "/var/lib/ebpf-overlay/generations/1/manifest.json", "/root/"])
    done, nodes, _page = status(tmp_path)
    lab.nodes[2].run(["mv", "/root/manifest.json", "/var/lib/ebpf-overlay/generations/1/"])
    assert done.succeeded()
    assert [item["object"] for item in nodes[f"{PREFIX}n2"]["drift"]] == ["record of generation 1"]
    assert nodes[f"{PREFIX}n2"]["state"] == "drifted"
    assert "it is lost or damaged" in done.output


def test_lost_maps_and_a_node_that_is_down(lab: Lab, tmp_path: Path) -> None:
    lab.nodes[1].run(["rm", "-rf", PINS])
    lab.nodes[2].stop()
    done, nodes, page = status(tmp_path, "--timeout", "5")
    assert done.code != 0
    assert [(result.host, result.task) for result in done.failed() if result.outcome == "failed"] == [
        (f"{PREFIX}n2", "Fail for the nodes that could not be read")
    ]
    lost = nodes[f"{PREFIX}n1"]
    assert (lost["state"], lost["generation"], lost["mode"], lost["traffic"]) == ("drifted", 1, None, None)
    assert {f"pin {PINS}/{name}" for name in ("from_uplink", "services")} <= {item["object"] for item in lost["drift"]}
    assert (nodes[f"{PREFIX}n2"]["state"], nodes[f"{PREFIX}n2"]["workloads"]) == ("unreachable", [])
    assert nodes[f"{PREFIX}n2"]["reason"]
    assert 'class="node unreachable"' in page
