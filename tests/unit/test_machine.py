# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts hold for one life of one machine."""

from __future__ import annotations

import pytest

from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.machine import run_of_this_machine, why_another

NOW = {"machine_id": "aa", "boot_id": "b1", "running_since": 70}


@pytest.mark.parametrize(
    ("gathered", "why"),
    [
        (NOW, ""),
        ({**NOW, "running_since": "70"}, ""),  # as Ansible hands it on
        ({}, ""),
        ({"machine_id": "", "boot_id": "b1", "running_since": 0}, ""),
        ({**NOW, "machine_id": "bb"}, "another machine"),
        ({**NOW, "machine_id": "bb", "boot_id": "b0"}, "another machine"),
        ({**NOW, "boot_id": "b0"}, "started anew"),
        ({**NOW, "running_since": 7}, "started anew"),
    ],
)
def test_another_machine_and_another_life_are_told_apart(gathered: dict[str, object], why: str) -> None:
    told = why_another(gathered, NOW)
    assert (why in told) if why else not told


def test_this_machine_is_itself() -> None:
    assert not why_another(run_of_this_machine(), run_of_this_machine())
    assert run_of_this_machine()["running_since"] >= 0
