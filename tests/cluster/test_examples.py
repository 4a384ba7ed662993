# SPDX-License-Identifier: GPL-3.0-or-later
"""Examples of the documentation, run as they stand on a node with the overlay; only eth0 has its real name there.

Modules that read are run for real, the mode in a dry run. The others are shown with files that no node of the lab has.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import yaml
from fleet import play
from fleet.datapath import Cluster
from lab.cluster import UPLINK

pytest_plugins = ["fleet.deployed"]

READ = ("bpf_map_info", "overlay_facts", "overlay_flows_info", "overlay_generation_info", "tc_bpf_info")
# Ways that this lab does not have.
LEFT_OUT = ("Gather them where the way to other nodes is none of the default routes",)


@pytest.mark.parametrize(("names", "options"), [(READ, ()), (("overlay_mode",), ("--check",))], ids=["read", "mode"])
def test_examples_do_what_they_say(
    names: tuple[str, ...], options: tuple[str, ...], cluster: Cluster, tmp_path: Path
) -> None:
    tasks = []
    for name in names:
        module = importlib.import_module(f"ansible_collections.ebpf.overlay.plugins.modules.{name}")
        tasks += yaml.safe_load(module.EXAMPLES.replace("eth0", UPLINK))
    tasks = [task for task in tasks if task["name"] not in LEFT_OUT]
    host = cluster.nodes[1].name
    path = tmp_path / "play.yml"
    path.write_text(yaml.safe_dump([{"hosts": host, "gather_facts": False, "tasks": tasks}]), encoding="utf-8")
    done = play.playbook(str(path), *options).succeeded()
    assert {result.task for result in done.results if result.outcome == "ok"} >= {
        task["name"] for task in tasks if "when" not in task
    }
    assert not done.changes or options
