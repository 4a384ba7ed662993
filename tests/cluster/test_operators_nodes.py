# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes and ways to them that are busy or odd: locked package lists, a bastion that refuses, become for everybody.

The tests of this file build on one another, in this order.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fleet import play
from fleet.datapath import AT_ONCE, SOAK, Datapath, full
from fleet.generation import history
from lab import paths
from lab.api import Lab, Node
from lab.cluster import FABRIC
from lab.inventory import SSH_OPTIONS

SITE = "site.yml"
PROXY = "-o ProxyCommand="
# MaxStartups in sshd_config(5), for 20 nodes and for 3.
STARTUPS = "3:60:6" if SOAK else "2:100:2"
HOLD = """
import fcntl, sys, time
with open("/var/lib/apt/lists/lock", "w") as lock:
    fcntl.lockf(lock, fcntl.LOCK_EX)
    print("held", flush=True)
    time.sleep(float(sys.argv[1]))
"""


def said(done: play.Run) -> str:
    return " ".join(done.output.split()).replace("''", "'")


def inventory(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The lab's, changed."""
    found = yaml.safe_load(paths.INVENTORY.read_text(encoding="utf-8"))
    found["overlay_nodes"]["vars"]["ansible_ssh_private_key_file"] = str(paths.KEY)
    change(found)
    path = folder / "inventory.yml"
    path.write_text(json.dumps(found), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def lab(ready_lab: Lab) -> Lab:
    return ready_lab


def test_locked_package_lists_are_waited_for(lab: Lab) -> None:
    node = lab.nodes[1]
    node.run(["sh", "-c", "dpkg --purge --force-depends linux-libc-dev; rm -f /var/lib/apt/lists/*_Packages*"])
    holder = node.popen(["python3", "-c", HOLD, "8"], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    began = time.monotonic()
    done = play.module(node.name, "ebpf.overlay.overlay_packages", {"packages": ["linux-libc-dev"]})
    holder.wait()
    assert done.outcome == "ok", done.result
    assert done.result["installed"] == ["linux-libc-dev"]
    assert time.monotonic() - began >= 6


def test_image_that_brings_its_own_packages_needs_no_package_manager(lab: Lab) -> None:
    node = lab.nodes[1]
    node.run(["mv", "/usr/bin/apt-get", "/root/"])
    node.run(["mv", "/usr/include/linux/types.h", "/usr/include/linux/if_packet.h", "/root/"])
    try:
        refused = play.playbook(SITE, variables=AT_ONCE)
        node.run(["sh", "-c", "mv /root/*.h /usr/include/linux/"])
        done = play.playbook(SITE, variables=AT_ONCE)
        play.playbook("rollback.yml", variables={"overlay_rollback_to": 0}).succeeded()
    finally:
        node.run(["mv", "/root/apt-get", "/usr/bin/"])
    assert refused.code != 0
    step = "Install bcc, pyroute2 and the UAPI headers"
    assert f"{node.name}: FAILED at '{step}': Cannot install packages" in said(refused)
    assert "Install them by the means of this distribution" in said(refused)
    assert refused.changes == set()
    done.succeeded()


@pytest.fixture
def bastion(lab: Lab) -> Iterator[str]:
    """A way to the nodes through ovl-n1, which lets a few connections at a time log in and refuses others."""
    node = lab.nodes[1]
    strict = ["/usr/sbin/sshd", "-D", "-p", "2222", "-o", f"MaxStartups={STARTUPS}", "-o", "PidFile=none"]
    server = node.popen(strict, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    options = " ".join(option for option in SSH_OPTIONS if not option.startswith(PROXY))
    hop = f"ip netns exec {FABRIC} nc {node.ipv4} 2222"
    through = f"ssh -i {paths.KEY} {options} -o ProxyCommand='{hop}' -W %h:%p root@{node.ipv4}"
    yield f'{options} -o ProxyCommand="{through}"'
    node.run(["pkill", "-f", f"MaxStartups={STARTUPS}"], check=False)
    server.wait()


def test_bastion_that_refuses_many_at_once_loses_no_node(
    lab: Lab, tmp_path: Path, bastion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANSIBLE_SSH_RETRIES")

    def change(found: dict[str, Any]) -> None:
        found["overlay_nodes"]["vars"]["ansible_ssh_common_args"] = bastion
        found["overlay_nodes"]["vars"]["ansible_control_path_dir"] = str(tmp_path / "cp")

    for _round in range(full(10, 1)):
        play.playbook("rollback.yml", variables={"overlay_rollback_to": 0}).succeeded()
        done = play.playbook(SITE, variables=AT_ONCE, inventory=inventory(tmp_path, change))
        done.succeeded()
        for node in lab.nodes.values():
            assert f"{node.name}: rolled out and confirmed" in said(done)


@pytest.mark.usefixtures("lab")
def test_controller_writes_the_status_without_the_nodes_become(tmp_path: Path) -> None:
    """``ansible_become`` for all, with a command that only the nodes have."""
    status = tmp_path / "status.json"

    def change(found: dict[str, Any]) -> None:
        become = {"ansible_become": True, "ansible_become_exe": "/usr/bin/only-on-nodes"}
        found["all"] = {"vars": become}

    for node in Lab.load().nodes.values():
        node.run(["sh", "-c", "printf '#!/bin/sh\\nwhile [ \"$1\" != /bin/sh ]; do shift; done\\nexec \"$@\"\\n' "
                  ">/usr/bin/only-on-nodes; chmod 755 /usr/bin/only-on-nodes"])  # fmt: skip
    done = play.playbook(
        "playbooks/status.yml", variables={"overlay_status_json": str(status)}, inventory=inventory(tmp_path, change)
    )
    done.succeeded()
    assert {node["state"] for node in json.loads(status.read_text(encoding="utf-8"))["nodes"]} <= {"overlaid", "bare"}


def test_addresses_that_move_or_are_on_all_nodes_are_nobodys(lab: Lab) -> None:
    """The virtual one goes to another node, as keepalived does it; the run after that has nothing to do."""
    first, second = lab.nodes[1], lab.nodes[2]
    for node in lab.nodes.values():
        node.host_run(["ip", "address", "add", "203.0.113.53/32", "dev", "lo"])
    virtual = ["198.18.0.200/32", "fd00:198:18::200/128"]

    def move(node: Node, doing: str) -> None:
        for address in virtual:
            node.host_run(["ip", "address", doing, address, "dev", node.uplink, *(["nodad"] if ":" in address else [])])

    first.host_run(["ip", "address", "add", "fd00:198:18::abcd/64", "dev", first.uplink, "nodad", "preferred_lft", "0"])
    move(first, "add")
    play.playbook(SITE, variables=AT_ONCE).succeeded()
    move(first, "del")
    move(second, "add")
    done = play.playbook(SITE, variables=AT_ONCE).succeeded()
    assert done.changes == set()
    assert {task for _host, task in done.visits} == {"Gather the overlay's facts"}


def fill(node: Node, folder: str, size: str) -> None:
    """A file system of that size over the folder, with all that is in it, and not a byte left."""
    script = f"""set -e
        mkdir -p /mnt{folder} && mount -t tmpfs -o size={size} tmpfs /mnt{folder}
        cp -a {folder}/. /mnt{folder}/ && mount --bind /mnt{folder} {folder}
        cat /dev/zero >{folder}/filler 2>/dev/null || true
        ! echo more >{folder}/more 2>/dev/null"""
    node.run(["sh", "-c", script])


def test_full_disks_stop_a_roll_out_and_no_way_back(lab: Lab) -> None:
    """``/tmp`` and ``/var/lib`` of one node, the latter with the node's records."""
    node = lab.nodes[1]
    services = [{"port": 8080}, {"port": 9191}]
    play.playbook(SITE, variables=AT_ONCE).succeeded()
    play.playbook(SITE, variables={**AT_ONCE, "overlay_services": services}).succeeded()
    before = {one.name: history(one) for one in lab.nodes.values()}
    fill(node, "/tmp", "1m")
    fill(node, "/var/lib", "256m")
    try:
        refused = play.playbook(SITE, variables={**AT_ONCE, "overlay_services": [{"port": 9292}]})
        assert {one.name: history(one) for one in lab.nodes.values()} == before
        assert not node.run(["ls", "/var/lib/ebpf-overlay/attempts"]).stdout
        play.playbook("playbooks/disable.yml").succeeded()
        assert Datapath(node).control.mode == "off"
        back = play.playbook("rollback.yml").succeeded()
        stays = play.playbook(SITE, variables=AT_ONCE).succeeded()
        play.playbook("playbooks/enable.yml", variables=AT_ONCE)
        play.playbook("rollback.yml", variables={"overlay_rollback_to": 0}).succeeded()
        assert history(node)["number"] == 0
    finally:
        node.run(["umount", "/tmp", "/var/lib", "/mnt/tmp", "/mnt/var/lib"])
        node.run(["rm", "-rf", "/var/lib/ebpf-overlay"])  # what the file system over it had covered
    assert f"{node.name}: FAILED at 'Compare with what the node is" in said(refused)
    assert "ENOSPC" in said(refused)
    assert "Look at the disk's space" in said(refused)
    assert f"{node.name}: rolled back from generation {before[node.name]['number']}" in said(back)
    assert "switched off: playbooks/enable.yml switches it on" in said(stays)


SECRET = "not a good one"


@pytest.fixture
def people(lab: Lab, tmp_path: Path) -> Path:
    """Nobody logs in as root: by su(1), whose root has no sbin in its PATH, by sudo with a password, and without."""
    key = paths.KEY.with_suffix(".pub").read_text(encoding="utf-8")
    script = """set -e
        id deploy 2>/dev/null || useradd -m -s /bin/bash deploy
        mkdir -p /home/deploy/.ssh && cat >/home/deploy/.ssh/authorized_keys && chown -R deploy /home/deploy/.ssh
        printf 'root:%s\\ndeploy:%s\\n' "$1" "$1" | chpasswd
        [ "$2" = su ] || command -v sudo >/dev/null || { apt-get update -q && apt-get install -qy sudo; }
        [ "$2" = su ] || echo "deploy ALL=(ALL) $3 ALL" >/etc/sudoers.d/deploy"""
    ways = {"n1": ("su", ""), "n2": ("sudo", ""), "n3": ("sudo", "NOPASSWD:")}
    for number, node in lab.nodes.items():
        node.run(["bash", "-c", script, "-", SECRET, *ways[f"n{number}"]], stdin=key)

    def change(found: dict[str, Any]) -> None:
        found["all"] = {"vars": {"ansible_become": True}}
        for number, node in lab.nodes.items():
            method, free = ways[f"n{number}"]
            found["overlay_nodes"]["hosts"][node.name].update(
                {"ansible_user": "deploy", "ansible_become_method": method}
                | ({} if free else {"ansible_become_password": SECRET})
            )

    return inventory(tmp_path, change)


def test_whoever_becomes_root_on_the_node_does_all_of_it(lab: Lab, tmp_path: Path, people: Path) -> None:
    status = tmp_path / "status.json"

    def run(name: str, *options: str, **variables: Any) -> play.Run:
        return play.playbook(name, *options, variables={**AT_ONCE, **variables}, inventory=people).succeeded()

    path = play.module(lab.nodes[1].name, "ansible.builtin.command", {"cmd": "printenv PATH"}, "-i", str(people))
    assert "sbin" not in path.result["stdout"]
    services = [{"port": 8080}, {"port": 9090}]
    foretold = run(SITE, "--check", "--diff", overlay_services=services)
    assert run(SITE, overlay_services=services).changes == foretold.changes != set()
    again = run(SITE, overlay_services=services)
    assert {task for _host, task in again.visits} == {"Gather the overlay's facts"}
    run("playbooks/status.yml", overlay_status_json=str(status))
    assert {node["state"] for node in json.loads(status.read_text(encoding="utf-8"))["nodes"]} == {"overlaid"}
    run("playbooks/disable.yml")
    run("playbooks/enable.yml", overlay_services=services)
    run("rollback.yml", overlay_rollback_to=0)
    for node in lab.nodes.values():
        assert node.run(["sh", "-c", "ls /var/lib/ebpf-overlay 2>/dev/null; true"]).stdout == ""
