# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the tests of ``tc_bpf_attach`` and ``tc_bpf_info``, loaded by them as a pytest plugin."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from integration.tc_sandbox import Sandbox, returns


@pytest.fixture(scope="module")
def shared() -> Iterator[Sandbox]:
    box = Sandbox(f"ovl-xtc-{os.getpid()}", ("eth0", "eth1.1", "eth11", "cali1", "cali2"))
    yield box
    box.close()


@pytest.fixture
def node(shared: Sandbox) -> Sandbox:
    """The sandbox as it was at first, with programs ``one`` and ``two`` pinned."""
    shared.sh(
        "for d in $(ls /sys/class/net); do for q in clsact ingress; do tc qdisc del dev $d $q 2>/dev/null; done; done; "
        "rm -rf /sys/fs/bpf/ebpf-overlay /sys/fs/bpf/test /sys/fs/bpf/foreign /run/*; true"
    )
    shared.load("one", returns(-1))
    shared.load("two", returns(-1, padding=1))
    return shared
