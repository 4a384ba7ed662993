# SPDX-License-Identifier: GPL-3.0-or-later
"""Generations: numbers, what is kept, and where a node goes back to."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.generation_model import CALLS, attempt, generation, history

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.topology import candidates
from ansible_collections.ebpf.overlay.plugins.module_utils._generations import model
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.model import History


def test_digest_knows_every_argument_and_not_the_order_of_names() -> None:
    one = [{"module": "m", "arguments": {"a": 1, "b": [1, 2]}}]
    assert model.digest_of(one) == model.digest_of([{"arguments": {"b": [1, 2], "a": 1}, "module": "m"}])
    assert model.digest_of(one) != model.digest_of([{"module": "m", "arguments": {"a": 1, "b": [2, 1]}}])


@given(st.sets(st.integers(1, 50)), st.integers(0, 50))
def test_the_last_three_and_the_confirmed_one_are_kept(numbers: set[int], confirmed: int) -> None:
    kept = model.kept(history(*numbers, confirmed=confirmed))
    assert confirmed in kept
    assert set(sorted(numbers)[-3:]) <= kept
    assert len(kept) <= 5


def test_failed_roll_outs_do_not_cost_a_node_its_history() -> None:
    """Each was confirmed here, and taken back because it failed on another node."""
    known = {1: generation(1, 0), 2: generation(2, 1)}
    for __ in range(5):
        number = model.next_number(History(known, 2))
        assert number == 3
        known[3] = generation(3, 2)
        rolled_out = History(known, 3)
        known = {one: known[one] for one in model.kept(rolled_out) if one in known}
        assert 2 in known
        known = {one: known[one] for one in model.kept(History(known, 2), taken_back=3) if one in known}
        assert set(known) == {1, 2}


def test_the_generation_that_was_replaced_is_kept_however_old_it_is() -> None:
    known = {number: generation(number, 1) for number in (1, 5, 6, 7)}
    assert model.kept(History(known, 7)) == {1, 5, 6, 7}


def test_an_attempt_that_was_given_up_leaves_its_number() -> None:
    assert model.next_number(history(confirmed=0)) == 1
    assert model.next_number(history(1, 2, confirmed=2)) == 3
    assert model.next_number(history(1, 2, 3, confirmed=2, attempt=attempt(3, 2))) == 3
    assert model.next_number(history(1, 2, confirmed=1)) == 3


def test_previous_is_the_one_that_was_replaced() -> None:
    assert model.target_of(history(1, 2, confirmed=2), "previous") == 1
    assert model.target_of(history(1, confirmed=1), "previous") == 0
    assert model.target_of(history(confirmed=0), "previous") == 0
    assert model.target_of(history(1, 2, confirmed=1, attempt=attempt(2, 1)), "former") == 1
    # Confirmed meanwhile, so that no attempt tells any more what was there before it.
    assert model.target_of(history(1, 2, confirmed=2), "former", 1) == 1
    assert model.target_of(history(1, confirmed=1), "former") == 1


def test_a_node_that_was_rolled_back_stays_there_when_the_run_is_repeated() -> None:
    seen = history(1, 2, confirmed=1)
    assert model.target_of(replace(seen, left=2), "previous") == 1
    assert model.target_of(replace(seen, left=2), "0") == 0
    assert model.target_of(seen, "previous") == 0


@pytest.mark.parametrize("wanted", ["7", "previous", "newest"])
def test_what_is_not_kept_is_an_error(wanted: str) -> None:
    with pytest.raises(OverlayError):
        model.target_of(history(3, confirmed=3), wanted)


def test_restoring_follows_interfaces_to_their_new_numbers_and_leaves_out_those_that_are_gone() -> None:
    calls = model.adapt(CALLS, {"cali5": 5, "cali6": 6}, {"cali5": 9})
    by_module = [call["arguments"] for call in calls]
    assert by_module[1]["entries"] == [{"key": "10.0.0.1", "value": {"ifindex": 9, "flags": 0}}]
    assert by_module[2]["entries"] == [{"key": next(candidates(9)), "value": 9}]
    assert by_module[3]["attachments"] == [{"interface": "cali5"}]
    assert model.adapt(CALLS, {"cali5": 5}, {"cali5": 5}) == CALLS


ABSENT = {"module": "overlay_conntrack", "arguments": {"state": "absent"}}


def test_conntrack_is_as_before_where_the_overlay_goes_or_an_older_one_comes() -> None:
    """A generation made before there was the module knows nothing of it; its calls must find the node as it was."""
    assert [call["module"] for call in model.REMOVAL].index("tc_bpf_attach") == 0
    newer = [*CALLS, {"module": "overlay_conntrack", "arguments": {"manage": True}}]
    assert ABSENT in model.undo(newer)
    assert ABSENT not in model.undo(CALLS)
    assert ABSENT not in model.undo(newer, kept=["bpffs", "overlay_conntrack"])


def test_who_has_the_node() -> None:
    seen = history(1, 2, confirmed=1, attempt=attempt(2, 1))
    assert model.holder_of(seen, "a2") == ""
    assert model.holder_of(seen, "") == "this run began nothing here"
    assert model.holder_of(seen, "a9") == "another run's attempt a2 (generation 2) waits for confirmation"
    seen = history(1, 2, confirmed=2)
    assert model.holder_of(replace(seen, by="a2"), "a2") == ""
    assert model.holder_of(replace(seen, by="a3"), "a2") == "another run's attempt a3 (generation 2) was confirmed"
    assert model.holder_of(replace(seen, by="returned-1"), "a2") == ""
    taken = "another run has taken the node to generation 2"
    assert model.holder_of(replace(seen, by="restored-1"), "a2") == taken
    assert model.holder_of(History(), "a2") == ""
    assert model.holder_of(History(), "a2", former=1) == "another run has taken the overlay off"
