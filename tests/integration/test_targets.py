# SPDX-License-Identifier: GPL-3.0-or-later
"""The targets of ansible-test, each in network and mount namespaces of its own: check, real, check, real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGETS = Path(__file__).parent / "targets"
# A node on which nothing is mounted yet, and a network with nothing but lo.
ENTER = """
while umount /sys/fs/bpf 2>/dev/null; do :; done
mount -t tmpfs tmpfs /run
ip link set lo up
exec "$@"
"""


@pytest.mark.parametrize("target", sorted(path.parent.name for path in TARGETS.glob("*/aliases")))
def test_target(target: str, tmp_path: Path) -> None:
    play = [{"name": target, "hosts": "localhost", "gather_facts": False, "roles": [target]}]
    (tmp_path / "play.yml").write_text(json.dumps(play), encoding="utf-8")
    done = subprocess.run(
        [
            *("unshare", "--mount", "--net", "--", "sh", "-euc", ENTER, "sh"),
            *(str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", "-c", "local"),
            *("-e", "ansible_python_interpreter=/usr/bin/python3", str(tmp_path / "play.yml")),
        ],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_ROLES_PATH": str(TARGETS)},
        cwd=ROOT, text=True, capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
