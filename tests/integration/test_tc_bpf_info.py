# SPDX-License-Identifier: GPL-3.0-or-later
"""``tc_bpf_info`` on real hooks, beside what the kernel really runs. Needs root."""

from __future__ import annotations

import json

from integration.tc_checks import TCX_ATTACH, foreign_state, parts
from integration.tc_sandbox import PINS, Sandbox, at, returns

pytest_plugins = ["integration.tc_fixtures"]


def test_info_flags_what_never_runs_aws_network_policy_agent_480(node: Sandbox) -> None:
    foreign_state(node)
    node.load("ends", returns(0, padding=8))
    node.python(TCX_ATTACH, "/sys/fs/bpf/foreign/link", "eth0", "46", f"{PINS}/theirs")
    node.sh(f"tc filter add dev eth0 ingress prio 30 handle 1 protocol all bpf da pinned {PINS}/ends")
    node.attach(at("eth0", "one"), mechanism="tcx")
    (expected,) = node.attach(at("eth0", "two", priority=40), mechanism="clsact")["attachments"]
    before = node.state()
    found = node.module("tc_bpf_info", interface=["eth0", "cali*"])
    assert not found["changed"]
    assert node.state() == before
    assert [entry["name"] for entry in found["interfaces"]] == ["cali1", "cali2", "eth0"]
    eth0 = found["interfaces"][2]
    assert [(qdisc["kind"], qdisc["ours"]) for qdisc in eth0["qdiscs"]][-1] == ("clsact", False)
    hook = eth0["ingress"]
    assert [(entry["mechanism"], entry["priority"], entry["kind"]) for entry in hook if entry["kind"] == "bpf"] == [
        ("tcx", None, "bpf"),
        ("tcx", None, "bpf"),
        *[("clsact", priority, "bpf") for priority in (1, 10, 30, 40, 50, 49152)],
    ]
    assert [entry["name"] for entry in hook[:2]] == ["theirs", "ebpf.overlay:one"]
    assert [entry["owner"] for entry in hook if entry["owner"]] == ["ebpf.overlay"] * 2
    ours = next(entry for entry in hook if entry["name"] == "ebpf.overlay:two")
    assert (ours["program_id"], ours["tag"], ours["handle"]) == (expected["program_id"], expected["tag"], 1)
    assert ours["hidden_by"].startswith("bpf filter priority 30 handle 0x1 ends")
    assert all(bool(entry["hidden_by"]) == ((entry["priority"] or 0) > 30) for entry in hook)
    u32 = next(entry for entry in hook if entry["kind"] == "u32")
    assert (u32["priority"], u32["protocol"], u32["program_id"]) == (20, "ip", None)
    assert eth0["egress"][-1]["kind"] == "u32"


def test_info_agrees_with_traffic(node: Sandbox) -> None:
    """What is called hidden counts no packet, what runs before it counts all."""
    node.load("ends", returns(0, padding=8))
    node.attach(
        at("eth0", "one", priority=1), at("eth0", "ends", priority=2), at("eth0", "two", priority=3), mechanism="clsact"
    )
    node.sh("ip link set eth0 up; ip link set p0 up")
    runs = json.loads(node.python(SEND_AND_COUNT, *[f"{PINS}/{name}" for name in ("one", "ends", "two")]))
    hook = node.module("tc_bpf_info", interface=["eth0"])["interfaces"][0]["ingress"]
    assert [bool(entry["hidden_by"]) for entry in hook] == [False, False, True]
    assert runs[0] >= 10
    assert runs[1] >= 10
    assert runs[2] == 0


def test_info_agrees_with_traffic_through_links_and_filters(node: Sandbox) -> None:
    """A link that says OK keeps packets from later links and from every filter; one that says STOLEN, which TCX does
    not know, from later links only."""
    node.sh("ip link set eth0 up; ip link set p0 up")
    node.load("stolen", returns(4, padding=9))
    node.load("ends", returns(0, padding=8))
    node.attach(at("eth0", "one"), mechanism="clsact")
    names = ["stolen", "two", "ends", "one"]

    def hidden_and_silent() -> tuple[list[str], list[str]]:
        """By the module, and by traffic."""
        before, after = (json.loads(node.python(SEND_AND_COUNT, *[f"{PINS}/{n}" for n in names])) for __ in range(2))
        hook = node.module("tc_bpf_info", interface=["eth0"])["interfaces"][0]["ingress"]
        told = [entry["name"].replace("ebpf.overlay:", "") for entry in hook if entry["hidden_by"]]
        there = [entry["name"].replace("ebpf.overlay:", "") for entry in hook]
        return told, [n for n, old, new in zip(names, before, after) if n in there and new - old < 10]

    for name in ("stolen", "two"):
        node.python(TCX_ATTACH, f"/sys/fs/bpf/foreign/{name}", "eth0", "46", f"{PINS}/{name}")
    assert hidden_and_silent() == (["two"], ["two"])
    node.sh("rm /sys/fs/bpf/foreign/stolen")
    assert hidden_and_silent() == ([], [])
    node.python(TCX_ATTACH, "/sys/fs/bpf/foreign/ends", "eth0", "46", f"{PINS}/ends")
    assert hidden_and_silent() == (["one"], ["one"])


# BPF_ENABLE_STATS (32) lasts as long as its descriptor, and is nobody else's business.
SEND_AND_COUNT = """
import json, socket, sys
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.call import attribute, bpf as call
stats = call(32, attribute("I", 0))
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sock.bind(("p0", 0))
for _ in range(10):
    sock.send(b"\\xff" * 6 + b"\\x02" * 6 + b"\\x88\\xb5" + bytes(46))
print(json.dumps([bpf.prog_info(bpf.obj_get(pin)).run_cnt for pin in sys.argv[1:]]))
"""


def test_info_of_an_interface_that_does_not_exist(node: Sandbox) -> None:
    assert parts(node.module("tc_bpf_info", interface=["eth9"]))["errno"] == "ENODEV"
    assert node.module("tc_bpf_info", interface=["tap*"])["interfaces"] == []
