# SPDX-License-Identifier: GPL-3.0-or-later
"""ansible-builder takes the environment that the documents show, and finds what the collection needs in one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def builder(folder: Path, *arguments: str | Path) -> str:
    command = [sys.executable, "-m", "ansible_builder", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_environment_of_the_documents_is_accepted(tmp_path: Path) -> None:
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    found = re.search(r"```yaml\n( *)# execution-environment.yml\n(.*?)\n *```", text, flags=re.S)
    assert found is not None
    lines = [line.removeprefix(found[1]) for line in found[2].splitlines()]
    (tmp_path / "execution-environment.yml").write_text("\n".join(lines), encoding="utf-8")
    builder(tmp_path, "create", "--context", "context")
    (collection,) = yaml.safe_load((tmp_path / "context/_build/requirements.yml").read_text())["collections"]
    galaxy = yaml.safe_load((ROOT / "galaxy.yml").read_text(encoding="utf-8"))
    assert collection["name"] == f"{galaxy['repository']}.git"


def test_needs_of_the_collection_are_found(tmp_path: Path) -> None:
    """As ansible-builder does it while it builds an image in which the collection is installed."""
    shutil.copytree(ROOT / "meta", tmp_path / "ansible_collections/ebpf/overlay/meta")
    for name in ("galaxy.yml", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path / "ansible_collections/ebpf/overlay")
    builder(tmp_path, "introspect", tmp_path, "--write-bindep", "bindep.txt", "--write-pip", "pip.txt")
    needs = (tmp_path / "bindep.txt").read_text(encoding="utf-8")
    assert "openssh-client [platform:dpkg]  # from collection ebpf.overlay" in needs
    assert "openssh-clients [platform:rpm]  # from collection ebpf.overlay" in needs
    assert not (tmp_path / "pip.txt").exists(), "requirements.txt is for the lab"
