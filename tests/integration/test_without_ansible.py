# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules do is to be had without Ansible."""

from __future__ import annotations

from pathlib import Path

from integration.tc_sandbox import PINS, PYTHON, Sandbox, environment

EXAMPLE = Path(__file__).with_name("without_ansible.py")
MAKE_MAP = f"""
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
bpf.obj_pin(bpf.map_create(1, 4, 4, 8), "{PINS}/map")
"""


def test_a_program_is_attached_a_map_filled_and_both_taken_back() -> None:
    node = Sandbox("ovl-no-ansible")
    try:
        node.load("one")
        node.python(MAKE_MAP)
        before = node.state()
        path = environment()["PYTHONPATH"]
        said = node.sh(f"PYTHONPATH={path} {PYTHON} {EXAMPLE} {PINS}/one {PINS}/map eth0")
        assert said.split() == ["present", "True", "True", "absent", "True", "True"]
        assert node.state() == before
        assert len(EXAMPLE.read_text().splitlines()) <= 30
    finally:
        node.close()
