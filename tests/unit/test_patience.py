# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections that a busy bastion refuses, and those that fail for another reason."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure

from ansible_collections.ebpf.overlay.plugins.plugin_utils import _patience

BUSY = "Data could not be sent to remote host: kex_exchange_identification: Connection closed by remote host"
DEAD = "channel 0: open failed: connect failed: No route to host\nstdio forwarding failed\n" + BUSY


def tried(said: str, failures: int) -> int:
    """How often it was tried until it succeeded."""
    attempts = 0

    def execute() -> dict[str, Any]:
        nonlocal attempts
        attempts += 1
        if attempts <= failures:
            raise AnsibleConnectionFailure(said)
        return {}

    assert _patience.patiently(execute) == {}
    return attempts


def test_a_refused_connection_is_tried_again_until_it_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_patience, "SPREAD", 0.01)
    assert tried(BUSY, 3) == 4


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_patience, "SPREAD", 0.01)
    monkeypatch.setattr(_patience, "PATIENCE", 0.1)
    with pytest.raises(AnsibleConnectionFailure):
        tried(BUSY, 1_000_000)


@pytest.mark.parametrize("said", [DEAD, "ssh: connect to host 198.18.0.11 port 22: Connection timed out"])
def test_a_node_that_is_dead_is_not_waited_for(said: str) -> None:
    with pytest.raises(AnsibleConnectionFailure):
        tried(said, 1)
