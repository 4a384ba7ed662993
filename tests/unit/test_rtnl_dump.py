# SPDX-License-Identifier: GPL-3.0-or-later
"""Which filters let every packet go on, read from the attributes that the kernel sends (linux/pkt_cls.h, tc_gact.h)."""

from __future__ import annotations

import struct

import pytest

from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.rtnl import _attributes, _continues


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def action(kind: bytes, code: int, *more: bytes) -> bytes:
    """A list with one action, whose struct tc_gact begins with index, capabilities and the code."""
    parameters = attribute(2, struct.pack("=IIiii", 1, 0, code, 1, 1))
    return attribute(1, attribute(1, kind + b"\0") + attribute(2 | 0x8000, parameters + b"".join(more)))


CONTINUE, OK = -1, 0
RANDOM = attribute(3, struct.pack("=HHi", 1, 5, OK))


@pytest.mark.parametrize(
    ("kind", "number"), [("matchall", 2), ("flower", 3), ("basic", 3), ("fw", 4), ("u32", 7), ("bpf", 1)]
)
@pytest.mark.parametrize(
    ("actions", "goes_on"),
    [
        (action(b"gact", CONTINUE), True),
        (action(b"gact", OK), False),
        (action(b"gact", CONTINUE, RANDOM), False),
        (action(b"mirred", CONTINUE), False),
        (action(b"gact", CONTINUE) * 2, False),
        (b"", False),
    ],
    ids=["continue", "pass", "random", "another kind", "two", "none"],
)
def test_only_a_plain_continue_goes_on(kind: str, number: int, actions: bytes, goes_on: bool) -> None:
    options = dict(_attributes(attribute(99, b"1234") + attribute(number | 0x8000, actions)))
    assert _continues(kind, options) is goes_on


def test_hash_tables_of_u32_take_nothing_and_an_unknown_kind_may() -> None:
    assert _continues("u32", {4: b"\1\0\0\0"})
    assert not _continues("cgroup", {1: action(b"gact", CONTINUE)})
