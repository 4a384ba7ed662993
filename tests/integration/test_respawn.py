# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules whose interpreter lacks the libraries go on under the distribution's, whatever the size of their arguments.

Ansible starts them, in namespaces of their own, under the interpreter of a virtual environment.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import play
from integration.host import Host

PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Detach what is attached nowhere
      ebpf.overlay.tc_bpf_attach:
        attachments: "{{ wanted }}"
        state: absent
"""
PIPE = 1 << 16


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.end()


@pytest.mark.parametrize("count", [1, 1500])
def test_arguments_of_any_size_get_there(host: Host, tmp_path: Path, count: int) -> None:
    """The first one wrote all of them into a pipe before anybody read it."""
    python = tmp_path / "venv/bin/python"
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    lacks = subprocess.run([python, "-c", "import pyroute2"], check=False, capture_output=True)
    assert lacks.returncode, "or else nothing would be respawned"
    (tmp_path / "play.yml").write_text(PLAY)
    wanted = [{"interface": f"cali{number}", "program": "/sys/fs/bpf/one"} for number in range(count)]
    assert (len(json.dumps(wanted)) > PIPE) == (count > 1)
    inventory = tmp_path / "inventory.yml"
    node = {"ansible_connection": "local", "ansible_python_interpreter": str(python)}
    inventory.write_text(json.dumps({"all": {"hosts": {"node": node}}}))
    command = [Path(sys.executable).with_name("ansible-playbook"), "-i", inventory, tmp_path / "play.yml"]
    settings = {"wanted": wanted, "ansible_remote_tmp": "/run/ansible"}
    done = play.run("timeout", "60", *host.enter(*map(str, command)), variables=settings).succeeded()
    (result,) = done.of("Detach what is attached nowhere")
    assert not result.changed
