# SPDX-License-Identifier: GPL-3.0-or-later
"""What the process that goes back says when a module does not end as modules end."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._generations import way_back

CALL = {"module": "bpffs", "arguments": {"path": "/nowhere"}}


def raises(*_: Any, **__: Any) -> dict[str, Any]:
    raise LookupError("no such thing")


def dies(*_: Any, **__: Any) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


@pytest.mark.parametrize(("module", "reason"), [(raises, "LookupError: no such thing"), (dies, "it was killed")])
def test_rehearsal_that_breaks_off_says_why(monkeypatch: pytest.MonkeyPatch, module: Any, reason: str) -> None:
    monkeypatch.setattr(way_back, "_perform", module)
    with pytest.raises(OverlayError, match=reason):
        way_back.rehearse([CALL])


@pytest.mark.parametrize(("module", "reason"), [(raises, "LookupError: no such thing"), (dies, "without a result")])
def test_call_that_breaks_off_has_failed(monkeypatch: pytest.MonkeyPatch, module: Any, reason: str) -> None:
    monkeypatch.setattr(way_back, "_perform", module)
    result = way_back.run_call(CALL, check=False)
    assert result["failed"]
    assert reason in result["msg"]


def test_module_that_refuses_its_arguments_is_told_as_a_difference() -> None:
    [found] = way_back.rehearse([{"module": "bpffs", "arguments": {"nonsense": 1}}])
    assert found["module"] == "bpffs"
    assert "nonsense" in found["reason"]


def test_what_modules_warn_of_on_the_way_back_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(way_back, "_perform", lambda *_, **__: {"changed": True, "warnings": ["first", "second"]})
    assert way_back._make([CALL, CALL]) == ["first", "second"] * 2


def test_calls_without_a_mode_need_no_number_and_those_with_mode_on_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rehearsal by another interpreter has none: what it compares is no generation yet."""
    monkeypatch.setattr(way_back, "interface_table", dict)
    given: dict[str, Any] = {"calls": [CALL], "interfaces": {}, "mode": None}
    assert way_back.calls_of(given) == (CALL,)
    assert way_back.calls_of({**given, "mode": "off"}) == (CALL, way_back.mode_off())
    assert way_back.calls_of({**given, "mode": "on", "number": 7}) == (CALL, way_back.mode_on(7))
