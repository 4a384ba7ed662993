# SPDX-License-Identifier: GPL-3.0-or-later
"""overlayctl, called on a node as a person calls it, over SSH.

The tests of this file build on one another, in this order; the last one takes the overlay off.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fleet import play, state
from fleet.datapath import AT_ONCE, TALK_PORT, Datapath, bypassed, until_fast
from fleet.generation import STATE, history
from fleet.rules import forward, ruled
from fleet.traffic import Conversations
from lab import paths
from lab.api import Lab, Node
from lab.inventory import SSH_OPTIONS

from .conftest import bring_up, take_down

COMMAND = "/usr/local/sbin/overlayctl"
LIBRARIES = "/usr/lib/python3/dist-packages"
VARIABLES = {**AT_ONCE, "overlay_services": [{"port": 8080}, {"port": TALK_PORT}]}
DOCUMENT = play.ROOT / "docs/node.md"


def ssh(node: Node, command: str) -> subprocess.CompletedProcess[str]:
    options = shlex.split(" ".join(SSH_OPTIONS))
    called = ["ssh", "-i", str(paths.KEY), *options, f"root@{node.ipv4}", command]
    return subprocess.run(called, text=True, capture_output=True, check=False, timeout=60)


def ctl(node: Node, arguments: str, code: int = 0) -> str:
    """What the command printed; AssertionError unless it ended with ``code``."""
    done = ssh(node, f"overlayctl {arguments}")
    assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
    return done.stdout if code != 1 else done.stderr


def told(node: Node, arguments: str, code: int = 0) -> Any:
    done = ssh(node, f"overlayctl {arguments} --json")
    assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def before() -> dict[str, state.NodeState]:
    """What was on the nodes before the overlay, by name."""
    return {}


@pytest.fixture(scope="module")
def lab(before: dict[str, state.NodeState]) -> Iterator[Lab]:
    made = bring_up("ready", nodes=2, workloads=1)
    before.update({node.name: state.observe(node) for node in made.nodes.values()})
    done = play.playbook("site.yml", variables=VARIABLES).succeeded()
    assert {result.outcome for result in done.of("Install overlayctl")} == {"ok"}
    assert len([result for result in done.of("Install overlayctl") if result.changed]) == 2
    yield made
    take_down()


@pytest.fixture
def node(lab: Lab) -> Node:
    return lab.nodes[1]


def test_status_tells_what_the_node_is(node: Node) -> None:
    found = told(node, "status")
    assert (found["mode"], found["number"], found["drift"], found["compared"]) == ("on", 1, [], True)
    assert found["counters"]["uplink.to_workload"] > 0
    words = ctl(node, "status")
    assert "mode        on" in words
    assert "as it should be  yes" in words


def test_status_and_reconcile_tell_of_a_filter_that_is_gone_and_put_it_back(node: Node) -> None:
    node.host_run(["tc", "qdisc", "del", "dev", node.uplink, "clsact"], check=False)
    for pin in ssh(node, f"ls /sys/fs/bpf/ebpf-overlay/links/*/*-{node.uplink}-* 2>/dev/null").stdout.split():
        ssh(node, f"rm {pin}")
    found = told(node, "status", 3)
    assert any(node.uplink in item["object"] for item in found["drift"]), found["drift"]
    assert told(node, "reconcile --check", 3)["changed"]
    assert "restored" in ctl(node, "reconcile")
    assert "as it should be" in ctl(node, "reconcile --check")
    assert told(node, "status")["mode"] == "on"


def test_explain_names_the_rule_that_the_datapath_counts(lab: Lab, node: Node) -> None:
    client, server = lab.nodes[2].ipv4, node.workloads[1].ipv4
    cases = {
        f"{client} {server} 8080": "admitted",
        f"{client} {server} 22": "not_service",
        f"{lab.fabric.ipv4} {server} 8080": "not_peer",
        f"{node.ipv4} {server} 8080": "host_address",
        f"{client} 10.244.1.200 8080": "not_workload",
        f"{server} {lab.workload(2, 1).ipv4} 8080": "admitted",
        f"{lab.nodes[2].ipv6} {node.workloads[1].ipv6} {TALK_PORT}": "admitted",
    }
    for arguments, reason in cases.items():
        assert told(node, f"explain {arguments}", 0 if reason == "admitted" else 3)["decides"] == reason, arguments
    datapath = Datapath(node)
    with datapath.counted() as grown:
        lab.fabric.http_get(server)
    assert grown.get("uplink.not_peer") == 1, grown
    assert "its port is missing" in ctl(node, f"explain {client} {server}", 1)
    assert "10.1.2.3.4" in ctl(node, f"explain 10.1.2.3.4 {server} 80", 1)


def test_a_suspended_flow_lives_on_in_the_kernels_path_and_comes_back(lab: Lab, node: Node) -> None:
    datapath, server = Datapath(node), node.workloads[1]
    with Conversations() as live:
        live.open(lab.nodes[2], server, TALK_PORT)
        until_fast(datapath)
        flow = next(one for one in told(node, f"flows --port {TALK_PORT} --state fast")["flows"])
        ends = f"{flow['remote']}:{flow['remote_port']} {flow['workload']}:{flow['workload_port']}"
        explained = told(node, f"explain {ends}")
        assert [one["state"] for one in explained["flows"]] == ["fast"]
        assert explained["flows"][0]["to_workload"] > 0
        done = told(node, f"suspend --address {server.ipv4}/32 --port {TALK_PORT} --for 6")
        assert len(done["flows"]) == 1
        began = time.monotonic()
        time.sleep(1)
        with datapath.counted() as grown:
            assert [one["state"] for one in told(node, f"explain {ends}")["flows"]] == ["suspended"]
            time.sleep(3.5 - (time.monotonic() - began))
        assert bypassed(grown) == 0, grown
        assert grown["uplink.unknown_flow"] > 5, grown
        time.sleep(6.5 - (time.monotonic() - began))
        until_fast(datapath)
        live.report().unharmed(stall=1)
    rates = [json.loads(line) for line in ctl(node, "top --count 2 --interval 0.5 --json").splitlines()]
    assert [rate["mode"] for rate in rates] == ["on", "on"]


def test_cut_has_the_packet_filter_decide_anew(lab: Lab, node: Node) -> None:
    datapath, server = Datapath(node), node.workloads[1]
    selected = f"--address {server.ipv4} --port {TALK_PORT}"
    datapath.clear("flows")
    with Conversations() as live:
        live.open(lab.nodes[2], server, TALK_PORT)
        until_fast(datapath)
        with ruled(
            node, forward(f"ct state new tcp dport {TALK_PORT} drop", f"ct state new tcp sport {TALK_PORT} drop")
        ):
            listed = told(node, f"cut {selected}", 3)
            assert (len(listed["flows"]), listed["done"], listed["conntrack_entries"]) == (1, False, 0)
            time.sleep(1.5)
            live.report().unharmed(stall=1)
            done = told(node, f"cut {selected} --yes")
            assert (len(done["flows"]), done["conntrack_entries"]) == (1, 1)
            time.sleep(1.5)
            assert live.report(grace=0.5).waiting == 1
            assert told(node, f"flows {selected}")["matching"] == 0
    assert "cut 1 flows" in ctl(node, "log")


def test_off_is_recorded_and_on_removes_the_record(lab: Lab, node: Node) -> None:
    assert "it was on" in ctl(node, "off")
    assert told(node, "status")["switched_off"]
    assert play.playbook("site.yml", variables=VARIABLES).succeeded().changes == set()
    assert Datapath(node).control.mode == "off"
    node.set_sysctls({"netfilter/nf_conntrack_tcp_be_liberal": 0})
    assert "nf_conntrack_tcp_be_liberal" in ctl(node, "on", 1)
    assert Datapath(node).control.mode == "off"
    node.set_sysctls({"netfilter/nf_conntrack_tcp_be_liberal": 1})
    assert "on" in ctl(node, "on")
    assert not told(node, "status")["switched_off"]
    assert told(node, "drain")["mode"] == "drain"
    assert told(node, "on")["mode"] == "on"
    assert Datapath(lab.nodes[2]).control.mode == "on"
    said = told(node, "log")["entries"]
    assert [entry["user"] for entry in said] == ["root"] * len(said)
    kept = [entry["what"] for entry in said]
    assert kept[:2] == ["began a generation", "confirmed a generation"], kept
    assert kept[-4:] == [
        "switched the overlay off",
        "switched the overlay on",
        "set the mode drain",
        "switched the overlay on",
    ]


def test_off_works_where_libraries_records_and_pins_are_gone(node: Node) -> None:
    for library in ("bcc", "pyroute2"):
        ssh(node, f"mv {LIBRARIES}/{library} {LIBRARIES}/{library}.away")
    ssh(node, f"cp -a {STATE}/confirmed.json /tmp/kept; echo nonsense >{STATE}/confirmed.json")
    try:
        found = told(node, "status", 3)
        assert (found["mode"], len(found["trouble"])) == ("on", 1)
        assert "confirmed.json" in found["trouble"][0]
        assert "confirmed.json" in ctl(node, "rollback", 1)
        control = Datapath(node).control
        assert control.mode == "on"
        ssh(node, "rm /sys/fs/bpf/ebpf-overlay/control")
        found = told(node, "off")
        assert found["switched_off"]
        assert bypassed_of(node) == 0
    finally:
        ssh(node, f"cp -a /tmp/kept {STATE}/confirmed.json; rm /tmp/kept")
        for library in ("bcc", "pyroute2"):
            ssh(node, f"mv {LIBRARIES}/{library}.away {LIBRARIES}/{library}")
    assert told(node, "reconcile")["switched_off"]
    assert told(node, "on")["mode"] == "on"
    assert told(node, "status")["drift"] == []


def bypassed_of(node: Node) -> int:
    """Packets that are redirected while the workload is asked for something."""
    datapath = Datapath(node)
    with datapath.counted() as grown:
        for __ in range(5):
            Lab.load().nodes[2].http_get(node.workloads[1].ipv4)
    return bypassed(grown)


def test_every_command_of_the_document_does_what_it_says(node: Node) -> None:
    blocks = re.findall(r"```console\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.S)
    called = [line[2:] for block in blocks for line in block.splitlines() if line.startswith("# ")]
    assert len(called) > 20
    helped = ssh(node, "overlayctl --help").stdout
    named = re.search(r"COMMAND\n((?: {4}\S+ .*\n(?: {6,}\S.*\n)*)+)", helped)
    assert named is not None, helped
    commands = set(re.findall(r"^ {4}(\S+)", named[1], re.M))
    assert commands == {line.split()[1] for line in called}
    for line in called:
        done = ssh(node, line)
        assert done.returncode in (0, 3), (line, done.stdout, done.stderr)
        assert done.stdout, line
        assert not done.stderr, (line, done.stderr)
    page = ssh(node, "overlayctl man").stdout
    assert not subprocess.run(["man", "-l", "-"], input=page, text=True, capture_output=True, check=False).stderr
    script = ssh(node, "overlayctl completion bash").stdout
    script += 'COMP_WORDS=(overlayctl flows --state s); COMP_CWORD=3; _overlayctl; echo "${COMPREPLY[@]}"\n'
    assert subprocess.run(["bash", "-c", script], text=True, capture_output=True, check=True).stdout == "suspended\n"


def test_who_is_not_root_is_told_so_and_arguments_are_checked(node: Node) -> None:
    done = ssh(node, f"setpriv --reuid 65534 {COMMAND} status")
    assert done.returncode == 1, done
    assert "this is not root" in done.stderr
    assert ssh(node, "overlayctl cut --yes").returncode == 2
    assert ssh(node, "overlayctl suspend --port 80 --for 0").returncode == 2


def test_only_a_changed_command_is_put_back_on_a_node_that_is_right(lab: Lab, node: Node) -> None:
    ssh(node, f"echo 'of another release' >>{COMMAND}")
    generation = history(node)
    for option, changes in ((["--check", "--diff"], 1), ([], 1), ([], 0)):
        done = play.playbook("site.yml", *option, variables=VARIABLES).succeeded()
        wanted = {(node.name, "Install overlayctl where nothing else is to be done")} if changes else set()
        assert done.changes == wanted
    assert history(node) == generation
    assert history(lab.nodes[2])["number"] == 1


def test_generation_0_leaves_nothing_and_a_node_without_overlay_is_told_as_such(
    node: Node, before: dict[str, state.NodeState]
) -> None:
    ssh(node, f"mkdir -p /tmp/kept && cp {COMMAND} /tmp/kept/")
    assert told(node, "rollback 0")["number"] == 0
    state.assert_same(state.observe(node), before[node.name])
    for command, code in (
        ("status", 0), ("off", 0), ("flows", 0), ("log", 0), ("reconcile", 0), ("on", 1), ("top --count 1", 0),
        ("explain 198.18.0.12 10.244.1.11 8080", 3), ("suspend --port 80", 0), ("cut --port 80 --yes", 0), ("drain", 0),
        ("rollback", 0),
    ):  # fmt: skip
        done = ssh(node, f"/tmp/kept/overlayctl {command}")
        assert done.returncode == code, (command, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
    ssh(node, "rm -r /tmp/kept")
    state.assert_same(state.observe(node), before[node.name])
