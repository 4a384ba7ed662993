# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection as a user gets it: built, installed into an empty folder, its plays run by name, no clone in sight."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import play, state
from lab.api import Lab
from lab.paths import INVENTORY, PREFIX

from .conftest import bring_up, take_down

BIN = Path(sys.executable).parent
NEEDED = ("MANIFEST.json", "FILES.json", "meta", "plugins", "roles", "playbooks")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    yield bring_up("ready", nodes=2)
    take_down()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of collections that holds this one."""
    folder = tmp_path_factory.mktemp("installed")
    galaxy = BIN / "ansible-galaxy"
    run(folder, play.ROOT / "tools/archive", folder / "build")
    (archive,) = (folder / "build").glob("ebpf-overlay-*.tar.gz")
    run(folder, galaxy, "collection", "install", archive, "--collections-path", folder / "collections")
    return folder


def run(folder: Path, *command: str | Path) -> str:
    """A command of Ansible that knows nothing of the clone."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", "PYTHONPATH"))}
    environment["ANSIBLE_COLLECTIONS_PATH"] = str(folder / "collections")
    environment["ANSIBLE_STDOUT_CALLBACK"] = "ebpf.overlay.progress"
    environment["PATH"] = f"{BIN}:{environment['PATH']}"
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, text=True, capture_output=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout


def test_archive_holds_what_is_needed_and_nothing_of_the_workshop(installed: Path) -> None:
    root = installed / "collections/ansible_collections/ebpf/overlay"
    there = {path.name for path in root.iterdir()}
    assert set(NEEDED) <= there
    assert there.isdisjoint({".venv", "build", ".git", ".cache", "collections", "tests", "tools"})
    assert (root / "files/bpf/overlay.c").is_file()
    (archive,) = (installed / "build").glob("ebpf-overlay-*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {member.name for member in opened if not member.isdir()}
    listed = subprocess.run(["git", "ls-files"], cwd=play.ROOT, check=True, capture_output=True, text=True).stdout
    assert names - {"MANIFEST.json", "FILES.json"} <= set(listed.splitlines())
    assert not [name for name in names if name.endswith((".png", ".svg", ".pyc"))]
    assert archive.stat().st_size < 1 << 20


def test_dry_run_by_name(installed: Path, lab: Lab) -> None:
    before = {node.name: state.observe(node) for node in lab.nodes.values()}
    shown = run(installed, BIN / "ansible-playbook", "-i", INVENTORY, "ebpf.overlay.site", "--check", "--diff")
    assert "2 nodes · 2 would change" in shown
    assert "Build and load the datapath … 2/2 ok, 2 would change" in shown
    assert "Confirm the generation … 2/2 ok, 2 would change" in shown
    for node in lab.nodes.values():
        state.assert_same(state.observe(node), before[node.name])


@pytest.mark.usefixtures("lab")
def test_only_the_needed_folders_are_needed(installed: Path) -> None:
    root = installed / "collections/ansible_collections/ebpf/overlay"
    for path in root.iterdir():
        if path.name not in NEEDED:
            subprocess.run(["rm", "-rf", str(path)], check=True)
    command = BIN / "ansible-playbook", "-i", INVENTORY
    roll_out = run(installed, *command, "ebpf.overlay.site", "-e", '{"overlay_batches": ["100%"]}')
    assert "rolled out and confirmed; now: generation 1" in roll_out
    page = installed / "status.html"
    assert f"{PREFIX}n2  overlaid" in run(
        installed, *command, "ebpf.overlay.status", "-e", f"overlay_status_html={page}"
    )
    assert f'<th scope="row">{PREFIX}n2</th>' in page.read_text(encoding="utf-8")
    assert "2 nodes · 2 changed" in run(installed, *command, "ebpf.overlay.disable")
    assert "2 nodes · 2 changed" in run(installed, *command, "ebpf.overlay.rollback")
