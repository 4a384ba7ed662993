# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a node must be asked again follows from its facts alone."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.ebpf.overlay.plugins.filter.cluster import already
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.model import digest_of

CALLS = [{"module": "bpffs", "arguments": {}}]
THERE = {"number": 2, "digest": digest_of(CALLS), "switched_off": False, "as_confirmed": True}


@pytest.mark.parametrize(
    ("differs", "enable", "expected"),
    [
        ({}, False, True),
        ({}, True, True),
        ({"switched_off": True}, False, True),
        ({"switched_off": True}, True, False),
        ({"as_confirmed": False}, False, False),
        ({"digest": digest_of([])}, False, False),
        ({"digest": ""}, False, False),
    ],
)
def test_a_node_is_asked_again_unless_it_is_what_it_must_be(
    differs: dict[str, Any], enable: bool, expected: bool
) -> None:
    assert already(CALLS, {"generation": {**THERE, **differs}}, enable) is expected


@pytest.mark.parametrize("facts", [{}, {"generation": None}])
def test_facts_that_do_not_tell_are_no_answer(facts: dict[str, Any]) -> None:
    assert not already(CALLS, facts, False)
