# SPDX-License-Identifier: GPL-3.0-or-later
"""A connection that a busy bastion refused is tried again at another moment than those of the other nodes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleConnectionFailure

# Seconds. SSH's own retries come at the same moments for all nodes, so that most of them are refused each time.
PATIENCE = 20.0
SPREAD = 5.0


def refused(said: str) -> bool:
    """Whether sshd closed the connection before it said who it is, as it does beyond MaxStartups (sshd_config(5)).

    A bastion that cannot reach the node behind it says which channel it could not open.
    """
    return "kex_exchange_identification" in said and "open failed" not in said


def patiently(execute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``execute`` returns. Nothing was run on the node where the connection was refused."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return execute()
        except AnsibleConnectionFailure as error:
            if not refused(str(error)) or time.monotonic() > until:
                raise
        time.sleep(random.uniform(0, SPREAD))
