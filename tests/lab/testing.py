# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lab's own tests share: running the command line, and looking for what it left on the machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from . import leftovers, namespace, paths
from .api import Lab, Node
from .cli import ssh_answers

LAUNCHER = paths.LAB_DIR / "lab"


def run_lab(*arguments: str, check: bool = True, **options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OVERLAY_PYTHON": sys.executable, **options}
    done = subprocess.run([LAUNCHER, *arguments], capture_output=True, text=True, env=environment, check=False)
    if check:
        assert done.returncode == 0, f"lab {' '.join(arguments)}: {done.stdout}{done.stderr}"
    return done


def traces() -> dict[str, object]:
    """Everything that a lab could leave on the machine."""
    group = leftovers.cgroup_root()
    return {
        "namespaces": namespace.ours(),
        "processes": leftovers.processes(),
        "mounts": re.findall(rf"^\S+ \S*/{paths.PREFIX}[fn]\S*", Path("/proc/self/mounts").read_text(), re.MULTILINE),
        "cgroup": bool(group and group.exists()),
        "node file systems": paths.nodes_dir().exists(),
        "run folder": paths.RUN_DIR.exists(),
        "unfinished caches": list(paths.cache_dir().glob("*.unfinished")),
        "links": [name for name in os.listdir("/sys/class/net") if name.startswith(("cali", "ens47f", "n1", "br0"))],
    }


NOTHING: dict[str, object] = {
    "namespaces": [],
    "processes": [],
    "mounts": [],
    "cgroup": False,
    "node file systems": False,
    "run folder": False,
    "unfinished caches": [],
    "links": [],
}


def answers(node: Node) -> bool:
    """Does the node's SSH server greet?"""
    return ssh_answers(node.plan)


def eventually_http(lab: Lab, node: Node) -> str:
    """The name that the node's first workload answers with; a node that was just started gets ten seconds."""
    deadline = time.monotonic() + 10.0
    while True:
        try:
            return str(lab.fabric.http_get(node.workloads[1].ipv4, timeout=1.0)["workload"])
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
