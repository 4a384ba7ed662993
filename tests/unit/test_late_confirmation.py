# SPDX-License-Identifier: GPL-3.0-or-later
"""A confirmation that waits for its turn while the node goes back confirms nothing."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.lock import one_run
from ansible_collections.ebpf.overlay.plugins.module_utils._generations import resource, states
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.model import Attempt, Generation, digest_of
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.store import Store


def begin(store: Store, number: int, identity: str) -> None:
    calls = ({"module": "bpffs", "arguments": {"path": f"/{number}"}},)
    generation = Generation(number, number - 1, digest_of(calls), "now", calls)
    store.begin(Attempt(identity, number, number - 1, 1 << 62, "boot"), generation, b"runtime")


@pytest.mark.parametrize("goes_back", [True, False])
def test_confirmation_is_judged_by_what_the_node_is_when_its_turn_comes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, goes_back: bool
) -> None:
    store, lock = Store(str(tmp_path / "state")), str(tmp_path / "lock")
    monkeypatch.setattr(resource, "Store", lambda: store)
    monkeypatch.setattr(resource, "LOCK", lock)
    monkeypatch.setattr(states, "confirm_mode", lambda _number: None)  # no datapath here
    monkeypatch.setattr(states, "was_on", lambda _store, _history: True)
    monkeypatch.setattr(states.watchdog, "disarm", lambda: None)
    begin(store, 1, "first")
    store.confirm(1, "first")
    begin(store, 2, "second")
    errors: list[OverlayError] = []

    def confirm() -> None:
        try:
            resource.ensure({"state": "confirmed", "attempt": "second", "number": 2}, False, pytest.fail)
        except OverlayError as error:
            errors.append(error)

    waiting = threading.Thread(target=confirm)
    with one_run(path=lock):
        waiting.start()
        time.sleep(0.5)
        if goes_back:
            store.give_up()
            store.confirm(1, "returned")
    waiting.join()
    history = store.read()
    assert [str(error) for error in errors if "has not begun or is over" not in str(error)] == []
    assert (bool(errors), history.confirmed, history.attempt) == (goes_back, 1 if goes_back else 2, None)
    assert history.confirmed in history.generations
