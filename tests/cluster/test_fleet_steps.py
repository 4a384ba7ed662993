# SPDX-License-Identifier: GPL-3.0-or-later
"""A real failure at every step of the role in turn: nobody else changes, and the node is what it was.

``make test`` fails steps of each kind once, on the canary. A soak fails every step, in a later batch too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fleet import play
from fleet.datapath import AT_ONCE, SOAK, Datapath, full
from fleet.generation import dump, history, recorded, settled
from lab.api import Lab, Node

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.conntrack import FILE
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf

SITE = "site.yml"
STATE = "/var/lib/ebpf-overlay"
PINS = "/sys/fs/bpf/ebpf-overlay"
UPGRADE = {"overlay_services": [{"port": 8080}, {"port": 9090}], "overlay_batches": [1, "100%"]}
LEASE = full(45, 8)  # seconds; enough for all but the node that dawdles
BATCHES = [2, 1] if SOAK else [1]  # in this order, since the last trouble stays

Act = Callable[[Node], Any]


def nothing(_node: Node) -> None:
    """No need."""


@dataclass(frozen=True)
class Trouble:
    """``task``: the one that fails. ``at``: the task at whose beginning the trouble begins, none for before the run.

    ``reason``: what the message says. ``undone_at``: the task at whose beginning the trouble is over again.
    """

    task: str
    reason: str
    begin: Act = nothing
    end: Act = nothing
    at: str = ""
    undone_at: str = ""
    variables: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.task.split(',')[0]}: {self.reason}"


def shell(script: str) -> Act:
    return lambda node: node.run(["sh", "-c", script])


def on_host(*command: str) -> Act:
    """A tool of the machine's in the node's network; WORKLOAD and UPLINK stand for interfaces."""

    def act(node: Node) -> None:
        names = {"WORKLOAD": node.workloads[1].host_interface, "UPLINK": node.uplink}
        node.host_run([names.get(word, word) for word in command])

    return act


def take_the_priority(node: Node) -> None:
    interface = node.workloads[1].host_interface
    node.host_run(["tc", "qdisc", "add", "dev", interface, "clsact"])
    match = ["protocol", "ip", "u32", "match", "ip", "dst", "203.0.113.7/32", "flowid", "1:7"]
    node.host_run(["tc", "filter", "add", "dev", interface, "ingress", "pref", "60000", *match])


def drop_requests(node: Node) -> None:
    """By the workload's own firewall, which the overlay does not skip."""
    rule = "table inet deaf { chain in { type filter hook input priority 0; tcp dport 8080 drop; }; }"
    node.workloads[1].host_run(["nft", "-f", "-"], stdin=rule)


def answer_requests(node: Node) -> None:
    node.workloads[1].host_run(["nft", "delete", "table", "inet", "deaf"])


def freeze_services(node: Node) -> None:
    """No process may write to the map from now on; nobody can take that back."""
    bpf.map_freeze(bpf.obj_get(f"{Datapath(node).pins}/services"))


BEGIN = "Compare with what the node is, and begin a generation if it differs"
INSTALL = "Install bcc, pyroute2 and the UAPI headers"
MOUNT = "Mount the bpffs"
BUILD = "Build and load the datapath"
FILL = "Fill the maps"
LIBERAL = "Make conntrack liberal"
ATTACH = "Attach the programs, the reply side first"
TELL = "Tell the datapath which interfaces carry it"
SWITCH = "Switch the overlay on"
COUNTERS = "Read the overlay's counters over a new connection"
COUNTERS_AGAIN = "Read the counters again"
CONFIRM = "Confirm the generation"
FAILED = "Note the failure"
CONNECT = "Connect to the services of this node's workloads from another node"

STATS = f"{PINS}/stats"
NO_STATS, STATS_AGAIN = shell(f"rm {STATS}; mkdir {STATS}"), shell(f"rmdir {STATS}")

# On nodes without the overlay.
FIRST = [
    Trouble(
        BEGIN, "EROFS", shell(f"mkdir {STATE}; mount -t tmpfs -o ro tmpfs {STATE}"),
        shell(f"umount {STATE}; rmdir {STATE}"),
    ),
    Trouble(
        INSTALL, "linux-libc-dev",
        shell("dpkg --purge --force-depends linux-libc-dev; mv /etc/apt/sources.list /root/"),
        shell("mv /root/sources.list /etc/apt/; apt-get -qq update; apt-get -qq install linux-libc-dev"),
    ),
    Trouble(
        MOUNT, "no such folder", shell("mount -t tmpfs tmpfs /sys/fs"), shell("umount /sys/fs"),
        at=MOUNT, undone_at=FAILED,
    ),
    Trouble(LIBERAL, "EISDIR", shell(f"mkdir {FILE}"), shell(f"rmdir {FILE}"), at=LIBERAL, undone_at=FAILED),
    Trouble(ATTACH, "priority", take_the_priority, on_host("tc", "qdisc", "del", "dev", "WORKLOAD", "clsact")),
]  # fmt: skip

# On nodes that are at generation 1. The last one leaves a node that needs a new map.
SECOND = [
    Trouble(BUILD, "nothing", variables={"node_source": "overlay.c"}),
    Trouble(
        ATTACH, "ENODEV",
        on_host("ip", "link", "set", "dev", "WORKLOAD", "name", "gone"),
        on_host("ip", "link", "set", "dev", "gone", "name", "WORKLOAD"),
        at=ATTACH, undone_at=FAILED,
    ),
    Trouble(
        SWITCH, "No datapath is loaded", shell(f"rm {PINS}/control"), at=SWITCH,
        variables={"overlay_redirect": "neigh"},
    ),
    Trouble(TELL, "No map is pinned", shell(f"rm {PINS}/devices"), at=TELL),
    Trouble(COUNTERS, STATS, NO_STATS, STATS_AGAIN, at=COUNTERS, undone_at=FAILED),
    Trouble(CONNECT, "no answer within 3 s", drop_requests, answer_requests, at=CONNECT, undone_at=FAILED),
    Trouble(COUNTERS_AGAIN, STATS, NO_STATS, STATS_AGAIN, at=COUNTERS_AGAIN, undone_at=FAILED),
    Trouble(
        "Refuse a probe that did not take the overlay", "Cannot carry a connection by the fast path",
        lambda node: Datapath(node).clear("ifindex_map"), at=CONNECT,
    ),
    Trouble(CONFIRM, "the node went back", variables={"overlay_lease": LEASE, "overlay_probe_tasks": "slow"}),
    Trouble(FILL, "EPERM", freeze_services),
]  # fmt: skip


@pytest.fixture(scope="module")
def lab(ready_lab: Lab) -> Lab:
    return ready_lab


@pytest.fixture(scope="module")
def upgraded_lab(lab: Lab) -> Lab:
    play.playbook(SITE, variables=AT_ONCE).succeeded()
    return lab


def follower(trouble: Trouble, node: Node, batch: int) -> Callable[[str], None]:
    left = batch

    def begun(task: str) -> None:
        nonlocal left
        if task == trouble.at:
            left -= 1
            if left == 0:
                trouble.begin(node)
        if task == trouble.undone_at:
            trouble.end(node)

    return begun


def fails_and_goes_back(lab: Lab, trouble: Trouble, batch: int, folder: Path) -> None:
    node = lab.nodes[batch]
    (folder / "overlay.c").write_text("int from_uplink(void *ctx) { return nothing; }\n", encoding="utf-8")
    wait = f"- name: Wait\n  ansible.builtin.command: sleep {LEASE + 1}\n  when: inventory_hostname == '{node.name}'\n"
    (folder / "slow").write_text(wait, encoding="utf-8")
    files = {name: str(folder / value) for name, value in trouble.variables.items() if value in ("overlay.c", "slow")}
    if "node_source" in files:
        good = "role_path ~ '/files/bpf/overlay.c'"
        files["node_source"] = f"{{{{ '{files['node_source']}' if inventory_hostname == '{node.name}' else {good} }}}}"
    before = {node.name: recorded(dump(node)) for node in lab.nodes.values()}
    if not trouble.at:
        trouble.begin(node)
        before[node.name] = recorded(dump(node))
    done = play.playbook(
        SITE, variables={**UPGRADE, **trouble.variables, **files}, begun=follower(trouble, node, batch)
    )
    if not trouble.undone_at:
        trouble.end(node)
    told = " ".join(done.output.split())
    assert done.code != 0, done.output
    assert f"{node.name}: FAILED at '{trouble.task}'" in told.replace("''", "'"), done.output
    assert trouble.reason in told, done.output
    assert trouble.task != INSTALL or not done.of(BEGIN), "packages come before the first switch-on, on all nodes"
    assert f"now: generation {before[node.name]['history']['number']}" in told, done.output
    settled(lab, 10)
    touched = {host for host, _task in done.changes}
    assert touched <= {one.name for number, one in lab.nodes.items() if number <= batch or batch > 1}
    after = {one.name: recorded(dump(one)) for one in lab.nodes.values()}
    if trouble in FIRST:
        # The trouble itself is over: what matters is that nothing of the overlay is left.
        assert [history(one)["number"] for one in lab.nodes.values()] == [0] * len(lab.nodes)
        assert not any("ebpf.overlay" in line for one in after.values() for line in one["filters"])
        assert after[node.name]["pins"] == before[node.name]["pins"]
        del after[node.name], before[node.name]
    assert after == before, done.output


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("trouble", FIRST if SOAK else FIRST[:1], ids=str)
def test_first_roll_out_that_fails_at_a_step_leaves_no_trace(
    lab: Lab, tmp_path: Path, trouble: Trouble, batch: int
) -> None:
    fails_and_goes_back(lab, trouble, batch, tmp_path)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("trouble", SECOND if SOAK else SECOND[1:3], ids=str)
def test_upgrade_that_fails_at_a_step_leaves_the_former_generation(
    upgraded_lab: Lab, tmp_path: Path, trouble: Trouble, batch: int
) -> None:
    fails_and_goes_back(upgraded_lab, trouble, batch, tmp_path)
