# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of pins."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.traffic import (
    INGRESS,
    escape,
    link_pin_name,
    program_of_link_pin,
    unescape,
)


@given(st.text(min_size=1), st.text(min_size=1))
def test_pin_names_have_no_dots_and_never_collide(one: str, other: str) -> None:
    try:
        os.fsencode(one + other)
    except UnicodeEncodeError:
        return
    assert "." not in escape(one)
    assert "-" not in escape(one)
    assert unescape(escape(one)) == one
    assert (escape(one) == escape(other)) == (one == other)


def test_interface_names_with_dots_do_not_collide() -> None:
    names = {link_pin_name("c1", 7, name, INGRESS, "prog.a") for name in ("eth1.1", "eth11", "eth1_2e1", "eth1-1")}
    assert len(names) == 4
    assert {program_of_link_pin(name) for name in names} == {"prog.a"}
