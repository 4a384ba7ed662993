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
from fleet.datapath import AT_ONCE
from lab import paths
from lab.api import Lab
from lab.cluster import FABRIC
from lab.inventory import SSH_OPTIONS

SITE = "site.yml"
PROXY = "-o ProxyCommand="
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


@pytest.fixture
def bastion(lab: Lab) -> Iterator[str]:
    """A way to the nodes through ovl-n1, which lets two connections at a time log in and refuses all others."""
    node = lab.nodes[1]
    strict = ["/usr/sbin/sshd", "-D", "-p", "2222", "-o", "MaxStartups=2:100:2", "-o", "PidFile=none"]
    server = node.popen(strict, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    options = " ".join(option for option in SSH_OPTIONS if not option.startswith(PROXY))
    hop = f"ip netns exec {FABRIC} nc {node.ipv4} 2222"
    through = f"ssh -i {paths.KEY} {options} -o ProxyCommand='{hop}' -W %h:%p root@{node.ipv4}"
    yield f'{options} -o ProxyCommand="{through}"'
    node.run(["pkill", "-f", "MaxStartups=2"], check=False)
    server.wait()


def test_bastion_that_refuses_many_at_once_loses_no_node(
    lab: Lab, tmp_path: Path, bastion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANSIBLE_SSH_RETRIES")

    def change(found: dict[str, Any]) -> None:
        found["overlay_nodes"]["vars"]["ansible_ssh_common_args"] = bastion
        found["overlay_nodes"]["vars"]["ansible_control_path_dir"] = str(tmp_path / "cp")

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
