# SPDX-License-Identifier: GPL-3.0-or-later
"""What the controller works out for its user: settings given as text, batches, the belief in cached facts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.plugin_utils import _settings
from ansible_collections.ebpf.overlay.plugins.plugin_utils._batches import DEFAULT, Pace, plan_batches
from ansible_collections.ebpf.overlay.plugins.plugin_utils._cached_facts import why_not

NOW = 1_764_043_200


@pytest.mark.parametrize(
    ("option", "text", "meant"),
    [
        ({"type": "bool"}, "false", False),
        ({"type": "bool"}, "Yes", True),
        ({"type": "float"}, "45", 45.0),
        ({"type": "int"}, "7", 7),
        ({"type": "list", "elements": "raw"}, '[1,"25%"]', [1, "25%"]),
        ({"type": "list", "elements": "raw"}, "1, 25%", ["1", "25%"]),
        ({"type": "list", "elements": "str"}, "eth0", ["eth0"]),
        ({"type": "list", "elements": "str"}, "", []),
        ({"type": "list", "elements": "dict"}, '{"port":80}', [{"port": 80}]),
        ({"type": "str"}, 0, "0"),
        ({"type": "str", "choices": ["auto", "peer"]}, "peer", "peer"),
    ],
)
def test_text_means_what_it_says(option: dict[str, Any], text: Any, meant: Any) -> None:
    found = _settings.convert("overlay_it", text, option)
    assert (found, type(found)) == (meant, type(meant))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ({"type": "bool"}, "maybe"),
        ({"type": "bool"}, [True]),
        ({"type": "float"}, "soon"),
        ({"type": "float"}, True),
        ({"type": "int"}, "1.5"),
        ({"type": "list", "elements": "dict"}, "8080"),
        ({"type": "list"}, "[1,"),
        ({"type": "str"}, ["a"]),
        ({"type": "str", "choices": ["auto", "peer"]}, "quick"),
    ],
)
def test_what_means_nothing_is_refused_by_name(option: dict[str, Any], value: Any) -> None:
    with pytest.raises(OverlayError, match="Cannot accept a variable: overlay_it: "):
        _settings.convert("overlay_it", value, option)


def test_setting_of_the_whole_run_that_differs_is_refused() -> None:
    assert _settings.agreed({"n1": [1], "n2": [1]}, "overlay_batches") == [1]
    assert _settings.agreed({}, "overlay_batches") is None
    with pytest.raises(OverlayError, match=r"\[1\] for n1; null for n2, n3, n4 and 1 more"):
        _settings.agreed({"n1": [1], "n2": None, "n3": None, "n4": None, "n5": None}, "overlay_batches")


def pace(forks: int, wave: float, nodes: int, lease: float = 60, timeout: float = 300) -> Pace:
    waves = -(-nodes // forks)
    return Pace(forks, [(0.0, wave * (1 + number * waves // nodes)) for number in range(nodes)], lease, timeout)


def test_ten_nodes_with_one_fork_and_a_short_lease_are_refused_with_the_sum() -> None:
    with pytest.raises(OverlayError) as told:
        plan_batches(["100%"], 10, pace(1, 1.0, 10, lease=15))
    assert str(told.value) == (
        "Cannot roll out in these batches: 10 nodes at a time with 1 fork(s). Reason: 10 wave(s) of nodes, 4 steps "
        "each, 1.0 s for a step of a wave (as long as gathering the facts took), make 40 s, and overlay_lease is 15 s: "
        "it would be over before the last node is confirmed, and all would go back. Nothing was changed. Take batches "
        "of at most 3 node(s) (overlay_batches), or at least 4 forks (forks in ansible.cfg, or -f), or overlay_lease "
        "of 80 s."
    )


def test_lease_that_is_too_short_for_one_node_is_refused_in_any_batches() -> None:
    with pytest.raises(OverlayError, match="overlay_lease of 16 s"):
        plan_batches(None, 500, pace(20, 2.0, 500, lease=5))


def test_default_batches_of_a_large_fleet_with_few_forks_are_cut() -> None:
    """The figures of docs/rollout.md."""
    assert plan_batches(None, 10, pace(20, 1.0, 10)) == [1, 2, 7]
    assert plan_batches(None, 100, pace(20, 1.0, 100)) == [1, 25, 74]
    sizes = plan_batches(None, 1000, pace(20, 1.0, 1000))
    assert sizes == [1, 140, 110, 140, 140, 140, 140, 140, 49]
    assert plan_batches(None, 1000, pace(5, 1.0, 1000))[1] == 35
    assert plan_batches(None, 3, Pace(20, [], 60, 300)) == [1, 1, 1]


@given(st.integers(1, 400), st.integers(1, 50), st.floats(0.01, 3), st.floats(10, 600), st.floats(60, 3000))
def test_batches_that_nobody_set_fit_or_the_run_is_refused(
    total: int, forks: int, wave: float, lease: float, timeout: float
) -> None:
    given_pace = pace(forks, wave, total, lease, timeout)
    try:
        sizes = plan_batches(None, total, given_pace)
    except OverlayError:
        assert not given_pace.fits(1)
        return
    assert sum(sizes) == total
    assert min(sizes) > 0
    assert all(given_pace.fits(size) for size in sizes)
    assert sizes[0] == 1, DEFAULT


def facts(**changes: Any) -> dict[str, Any]:
    known: dict[str, Any] = {"addresses": [], "capabilities": {}, "identity": {}, "kernel": {}, "uplinks": []}
    return {**known, "gathered_at": NOW - 100, "dialled": "198.18.0.12", **changes}


@pytest.mark.parametrize(
    ("known", "words"),
    [
        (facts(), ""),
        (None, "no facts"),
        ({}, "incomplete"),
        ("text", "incomplete"),
        (facts(gathered_at=None), "no date"),
        (facts(gathered_at="yesterday"), "no date"),
        (facts(gathered_at=NOW + 7200), "from the future, by 7200 s"),
        (facts(gathered_at=NOW - 90000), "25.0 h old"),
        (facts(dialled="10.0.0.2"), "gathered from 10.0.0.2, the inventory says 198.18.0.12"),
    ],
)
def test_cached_facts_are_believed_or_the_reason_is_told(known: Any, words: str) -> None:
    told = why_not(known, NOW, 86400, "198.18.0.12")
    assert bool(told) == bool(words)
    assert words in told
