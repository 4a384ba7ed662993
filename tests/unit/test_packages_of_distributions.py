# SPDX-License-Identifier: GPL-3.0-or-later
"""Which packages the role wants, by what a node says of itself. The facts are made up: these systems were not run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DEBIAN = ["linux-libc-dev", "python3-bpfcc", "python3-pyroute2"]
FEDORA = ["kernel-headers", "python3-bcc", "python3-pyroute2"]
LIBRARIES = ("bcc", "pyroute2", "headers")

PLAY = """
- hosts: all
  connection: local
  gather_facts: false
  vars_files: "{{ role }}/vars/main.yml"
  tasks:
    - ansible.builtin.set_fact:
        overlay: "{{ told }}"
        cacheable: true
    - ansible.builtin.copy:
        content: "{{ node_wanted_packages | to_json }}"
        dest: "{{ playbook_dir }}/{{ inventory_hostname }}.json"
        mode: "0600"
"""


def host(manager: str, complete: bool = False, **variables: Any) -> dict[str, Any]:
    return {"told": {"package_manager": manager, "libraries": dict.fromkeys(LIBRARIES, complete)}, **variables}


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    hosts = {
        "ubuntu": host("apt"),
        "rhel": host("dnf"),
        "fedora": host("dnf", complete=True),
        "complete_image": host("", complete=True),
        "bare_image": host(""),
        "own_names": host("dnf", overlay_packages=["bcc-tools", "python3.12-pyroute2"]),
        "own_image": host("dnf", overlay_packages=[]),
        "as_text": host("apt", overlay_packages="a, b"),
    }
    for variables in hosts.values():
        variables["ansible_python_interpreter"] = sys.executable
    (folder / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}), encoding="utf-8")
    (folder / "play.yml").write_text(PLAY, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "ansible",
        "playbook",
        "-i",
        "hosts.json",
        "-e",
        f"role={ROOT}/roles/node",
        "play.yml",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize(
    ("name", "packages"),
    [
        ("ubuntu", DEBIAN),
        ("rhel", FEDORA),
        ("fedora", FEDORA),
        ("complete_image", []),
        ("bare_image", DEBIAN),
        ("own_names", ["bcc-tools", "python3.12-pyroute2"]),
        ("own_image", []),
        ("as_text", ["a", "b"]),
    ],
)
def test_packages_by_the_facts_of_a_node(name: str, packages: list[str], wanted: Path) -> None:
    assert json.loads((wanted / f"{name}.json").read_text(encoding="utf-8")) == packages
