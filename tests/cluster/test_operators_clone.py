# SPDX-License-Identifier: GPL-3.0-or-later
"""A clone whose ansible.cfg does not count: all may write to its folder, or a controller has settings of its own.

The tests of this file build on one another, in this order.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from fleet import play
from fleet.datapath import AT_ONCE, Datapath
from fleet.generation import history
from lab import paths
from lab.api import Lab, Node
from lab.paths import PREFIX

from .conftest import bring_up, take_down

SITE = "site.yml"
PARTS = ("ansible.cfg", "site.yml", "rollback.yml", "meta", "plugins", "roles", "playbooks", "collections")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    yield bring_up("ready", nodes=2)
    take_down()


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this clone to whose folder everybody may write."""
    root = tmp_path_factory.mktemp("clone")
    for part in PARTS:
        source = play.ROOT / part
        if source.is_dir():
            shutil.copytree(source, root / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, root / part)
    root.chmod(0o777)
    return root


@pytest.fixture(autouse=True)
def controller(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that sets its own path of collections, as AWX does, and Ansible's own output."""
    monkeypatch.setenv("ANSIBLE_COLLECTIONS_PATH", str(tmp_path / "collections"))
    monkeypatch.setenv("ANSIBLE_STDOUT_CALLBACK", "default")


def run(clone: Path, name: str, **options: object) -> play.Run:
    done = play.playbook(name, root=clone, configured=False, **options)  # type: ignore[arg-type]
    assert "ignoring it as an ansible.cfg source" in " ".join(done.output.split())
    assert "Recap:" not in done.output
    return done


def test_roll_out_tells_all_of_it_without_the_collections_own_output(lab: Lab, clone: Path, tmp_path: Path) -> None:
    probe = tmp_path / "probe.yml"
    probe.write_text("- name: Fail\n  ansible.builtin.assert: {that: false, fail_msg: Not seen.}\n", encoding="utf-8")
    failed = run(clone, SITE, variables={"overlay_probe_tasks": str(probe)})
    assert failed.code != 0
    assert f"{PREFIX}n1: FAILED at 'Fail': Not seen.; now: generation 0" in failed.output
    assert f"{PREFIX}n2: not reached by the roll-out" in failed.output
    done = run(clone, SITE, variables=AT_ONCE).succeeded()
    for node in lab.nodes.values():
        assert f"{node.name}: rolled out and confirmed; now: generation 1" in done.output


def test_plays_of_the_folder_playbooks_are_those_of_the_same_collection(
    lab: Lab, clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(clone, "playbooks/site.yml", variables=AT_ONCE).succeeded().changes == set()
    monkeypatch.setenv("ANSIBLE_CALLBACK_RESULT_FORMAT", "yaml")
    monkeypatch.setenv("ANSIBLE_NO_LOG", "true")
    shown = run(clone, "playbooks/status.yml").succeeded().output
    assert all(f"{node.name}  overlaid" in shown for node in lab.nodes.values())
    run(clone, "playbooks/disable.yml").succeeded()
    assert [Datapath(node).control.mode for node in lab.nodes.values()] == ["off", "off"]
    run(clone, "playbooks/enable.yml", variables=AT_ONCE).succeeded()
    monkeypatch.setenv("ANSIBLE_STDOUT_CALLBACK", "minimal")
    off = run(clone, "rollback.yml").succeeded().output
    assert all(f"{node.name}: rolled back from generation" in off for node in lab.nodes.values())


def inventory(folder: Path, **variables: object) -> Path:
    """The lab's, which says nothing of pipelining, and with further variables."""
    found = yaml.safe_load(paths.INVENTORY.read_text(encoding="utf-8"))
    group = found["overlay_nodes"]["vars"]
    del group["ansible_pipelining"]
    group |= {"ansible_ssh_private_key_file": str(paths.KEY), **variables}
    path = folder / "inventory.yml"
    path.write_text(json.dumps(found), encoding="utf-8")
    return path


def fill(node: Node) -> None:
    """Not a byte is left where Ansible keeps its files on a node."""
    node.run(["sh", "-c", "mkdir -p ~/.ansible && mount -t tmpfs -o size=64k tmpfs ~/.ansible"])
    node.run(["sh", "-c", "cat /dev/zero >~/.ansible/filler 2>/dev/null || true"])


def test_modules_need_no_room_on_the_node(lab: Lab, clone: Path, tmp_path: Path) -> None:
    node = lab.nodes[1]
    run(clone, SITE, variables=AT_ONCE, inventory=inventory(tmp_path)).succeeded()
    fill(node)
    try:
        told = run(clone, "playbooks/disable.yml", inventory=inventory(tmp_path, ansible_pipelining=False))
        run(clone, "playbooks/disable.yml", inventory=inventory(tmp_path)).succeeded()
        assert Datapath(node).control.mode == "off"
        run(clone, "rollback.yml", inventory=inventory(tmp_path)).succeeded()
        assert history(node)["number"] == 0
    finally:
        node.run(["umount", "/root/.ansible"])
    assert told.code != 0
    assert "No space left on device" in told.output  # what the inventory says counts
