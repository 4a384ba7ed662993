# SPDX-License-Identifier: GPL-3.0-or-later
"""Large lists are taken out of a module's arguments unchanged, or not at all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible.module_utils import basic
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.ebpf.overlay.plugins.module_utils._maps import bulk as _bulk_parameter
from ansible_collections.ebpf.overlay.plugins.module_utils._maps.bulk import set_aside

short = st.text(max_size=3)
scalars = st.one_of(st.integers(), st.text('{}[], "\\:a\n', max_size=8), st.booleans(), st.none())
items = st.dictionaries(short, scalars | st.dictionaries(short, scalars, max_size=3), max_size=3)
anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(short, inner, max_size=2))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bulk_parameter, "LARGE", 0)
    monkeypatch.setattr(_bulk_parameter, "_CHUNK", 16)


def arguments_after(name: str, arguments: dict[str, Any], profile: str = "legacy") -> tuple[Any, dict[str, Any]]:
    """(the list, or None when it was left alone; the arguments that AnsibleModule will see)."""
    raw = json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode()
    before = basic._ANSIBLE_ARGS, getattr(basic, "_ANSIBLE_PROFILE", None)
    try:
        basic._ANSIBLE_ARGS, basic._ANSIBLE_PROFILE = raw, profile
        bulk = set_aside(name)
        found = None if bulk is None else [item for block in bulk.blocks() for item in block]
        return found, json.loads(basic._ANSIBLE_ARGS)["ANSIBLE_MODULE_ARGS"]
    finally:
        basic._ANSIBLE_ARGS, basic._ANSIBLE_PROFILE = before


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(items | anything, max_size=6), st.dictionaries(short, anything, max_size=3), st.booleans())
def test_nothing_is_lost_or_changed(entries: list[Any], others: dict[str, Any], first: bool) -> None:
    arguments = {"entries": entries, **others} if first else {**others, "entries": entries}
    arguments["entries"] = entries
    found, rest = arguments_after("entries", arguments)
    if found is None:
        assert rest == arguments
    else:
        assert found == entries
        assert rest == {**arguments, "entries": []}


def test_plain_entries_are_taken_out_wherever_they_stand() -> None:
    entries = [{"key": f"10.0.0.{i}", "value": {"mtu": i}} for i in range(20)]
    value = [{"name": "mtu", "type": "u32"}]
    for arguments in ({"entries": entries, "value": value}, {"value": value, "entries": entries}):
        assert arguments_after("entries", arguments) == (entries, {"value": value, "entries": []})


def test_a_string_that_looks_like_the_end_of_an_item() -> None:
    entries = [{"key": "a}, {b" * 5, "value": 1}, {"key": "c", "value": 2}]
    assert arguments_after("entries", {"entries": entries})[0] == entries


def test_arguments_of_another_form_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [{"key": 1}]
    assert arguments_after("entries", {"entries": entries}, "modern")[0] is None
    assert arguments_after("entries", {"entries": []})[0] is None
    assert arguments_after("entries", {"entries": "no list"})[0] is None
    assert arguments_after("entries", {"other": {"entries": entries}})[0] is None
    monkeypatch.setattr(_bulk_parameter, "LARGE", 1000)
    assert arguments_after("entries", {"entries": entries})[0] is None
