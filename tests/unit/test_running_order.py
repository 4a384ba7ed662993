# SPDX-License-Identifier: GPL-3.0-or-later
"""What a program can return, read from its instructions, and what follows for the programs behind it."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.ebpf.overlay.plugins.module_utils._hooks.order import Entry, entry_of, hiders, in_running_order
from ansible_collections.ebpf.overlay.plugins.module_utils._hooks.verdict import return_codes
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.traffic import INGRESS, Filter


def insn(opcode: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return struct.pack("=BBhi", opcode, src << 4 | dst, off, imm)


def mov(register: int, value: int) -> bytes:
    return insn(0xB7, register, imm=value)


EXIT = insn(0x95)
COPY_R6_TO_R0 = insn(0xBF, 0, 6)
IF_R1_SKIP_2 = insn(0x15, 1, off=2)
LOAD_R1 = insn(0x61, 1, 1)
CALL_HELPER = insn(0x85, imm=5)


@pytest.mark.parametrize(
    ("program", "codes"),
    [
        (mov(0, -1) + EXIT, {-1}),
        (mov(0, 0) + EXIT, {0}),
        (insn(0xB4, 0, imm=-1) + EXIT, {-1}),  # 32 bits wide: upper half zero, the code is the lower one
        (LOAD_R1 + IF_R1_SKIP_2 + mov(0, 2) + EXIT + mov(0, 7) + EXIT, {2, 7}),
        (mov(6, 2) + CALL_HELPER + COPY_R6_TO_R0 + EXIT, {2}),
        (mov(0, 2) + CALL_HELPER + EXIT, None),
        (mov(0, 2) + insn(0x07, 0, imm=1) + EXIT, None),
        (insn(0x61, 0, 1) + EXIT, None),
        (insn(0x18, 2, imm=1) + insn(0) + mov(0, 0) + EXIT, {0}),
        (mov(0, -1) + insn(0x85, src=1, imm=2) + mov(0, 0) + EXIT + mov(0, 7) + EXIT, {0}),  # a subprogram's exit
        (mov(0, 0) + insn(0x85, imm=12) + EXIT, None),  # tail call
        (mov(0, 0) + insn(0x85, src=2, imm=999) + mov(0, 0) + EXIT, None),  # kernel function
        (mov(0, 0) + insn(0xDB, 10, 0, off=-8, imm=1) + EXIT, None),  # atomic add and fetch into r0
        (mov(0, 0) + insn(0x7B, 10, 0, off=-8) + EXIT, {0}),
        (mov(0, 1) + insn(0x05, off=0) + EXIT, {1}),
        (mov(0, 1) + insn(0x05, off=-2), set()),  # never ends
        (b"", None),
        (mov(0, 1), None),
    ],
)
def test_return_codes(program: bytes, codes: set[int] | None) -> None:
    assert return_codes(program) == (None if codes is None else frozenset(codes))


OPERATIONS = st.one_of(
    st.tuples(st.just("mov"), st.integers(0, 3), st.integers(-2, 8)),
    st.tuples(st.just("copy"), st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.just("add"), st.integers(0, 3), st.integers(-2, 8)),
    st.tuples(st.just("if"), st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.just("exit"), st.just(0), st.just(0)),
)


@given(st.lists(OPERATIONS, max_size=12), st.tuples(*[st.integers(-2, 8)] * 4))
def test_whatever_a_program_returns_is_among_its_codes(operations: list[Any], registers: tuple[int, ...]) -> None:
    """Programs with jumps forward, run by a small interpreter."""
    code, values, position, result = b"", list(registers), 0, None
    for kind, one, other in operations:
        code += {
            "mov": mov(one, other),
            "copy": insn(0xBF, one, other & 3),
            "add": insn(0x07, one, imm=other),
            "if": insn(0x15, one, off=other, imm=0),
            "exit": EXIT,
        }[kind]
    code += (mov(0, 3) + EXIT) * 2 + EXIT
    program = [*operations, *[("mov", 0, 3), ("exit", 0, 0)] * 2, ("exit", 0, 0)]
    while result is None:
        kind, one, other = program[position]
        position += 1
        if kind == "mov":
            values[one] = other
        elif kind == "copy":
            values[one] = values[other]
        elif kind == "add":
            values[one] += other
        elif kind == "if":
            position += other if values[one] == 0 else 0
        else:
            result = values[0]
    codes = return_codes(code)
    assert codes is None or result in codes


def bpf(priority: int, codes: set[int] | None, handle: int = 1, **more: Any) -> Entry:
    item = Filter(2, INGRESS, priority, handle, **{"name": f"p{priority}", "direct_action": True, **more})
    return entry_of(item, None if codes is None else frozenset(codes))


def hidden(*filters: Entry, links: tuple[Entry, ...] = ()) -> list[tuple[str | None, list[str]]]:
    entries = in_running_order(links, filters)
    return [(certain.name if certain else None, [e.name for e in perhaps]) for certain, perhaps in hiders(entries)]


def test_a_program_that_always_ends_the_chain_hides_what_is_behind_it_cilium_41393() -> None:
    assert hidden(bpf(2, None), bpf(1, {0})) == [(None, []), ("p1", [])]
    assert hidden(bpf(1, {0, 2, 4, 7, 8}), bpf(2, None))[1] == ("p1", [])


def test_a_program_that_never_ends_the_chain_hides_nothing() -> None:
    assert hidden(bpf(1, {-1, 3}), bpf(2, None))[1] == (None, [])


def test_a_program_that_may_end_the_chain_is_named() -> None:
    assert hidden(bpf(1, {-1, 2}), bpf(2, None), bpf(3, {-1}))[1:] == [(None, ["p1"]), (None, ["p1", "p2"])]


def test_what_never_runs_hides_nothing() -> None:
    assert hidden(bpf(1, {0}), bpf(2, None), bpf(3, {-1}))[2] == ("p1", [])


def test_protocols_count() -> None:
    assert hidden(bpf(1, {0}, protocol=0x800), bpf(2, {-1}))[1] == (None, ["p1"])
    assert hidden(bpf(1, {0}, protocol=0x800), bpf(2, {-1}, protocol=0x86DD))[1] == (None, [])
    assert hidden(bpf(1, {0}, protocol=0x800), bpf(2, {-1}, protocol=0x800))[1] == ("p1", [])


def test_filters_that_are_no_programs_may_end_the_chain() -> None:
    assert hidden(bpf(1, None, kind="u32", name="", direct_action=False), bpf(2, {-1}))[1] == (None, [""])


def test_without_direct_action_the_code_only_says_whether_it_matches() -> None:
    assert hidden(bpf(1, {0}, direct_action=False), bpf(2, None))[1] == (None, [])
    assert hidden(bpf(1, {-1}, direct_action=False), bpf(2, None))[1] == ("p1", [])
    assert hidden(bpf(1, {-1}, direct_action=False, has_actions=True), bpf(2, None))[1] == (None, ["p1"])


def test_a_filter_that_only_hardware_runs_hides_nothing() -> None:
    assert hidden(bpf(1, {0}, skips_software=True), bpf(2, None))[1] == (None, [])


def test_filters_of_other_chains_run_only_by_a_jump() -> None:
    assert hidden(bpf(1, {0}), bpf(1, None, chain=5)) == [(None, []), (None, [])]


def test_links_run_before_all_filters_and_know_other_codes() -> None:
    def link(*codes: int) -> Entry:
        return Entry("tcx", f"link{codes[0]}", None, None, 7, codes=frozenset(codes))

    assert hidden(bpf(1, None), links=(link(0),)) == [(None, []), ("link0", [])]
    assert hidden(bpf(1, None), links=(link(4),)) == [(None, []), (None, [])], "TCX takes STOLEN for next"
    # ... but no link runs after any other code (tcx_run).
    after: list[tuple[str | None, list[str]]] = [(None, []), ("link4", []), (None, [])]
    assert hidden(bpf(1, None), links=(link(4), link(0))) == after
    assert hidden(links=(link(-1, 4), link(-1)))[1] == (None, ["link-1"])
    assert hidden(links=(link(-1), link(-1)))[1] == (None, [])


def test_a_filter_that_only_continues_hides_nothing() -> None:
    assert hidden(bpf(1, None, kind="u32", continues=True), bpf(2, {-1}))[1] == (None, [])


def test_the_kernels_order_within_a_priority_is_kept() -> None:
    entries = in_running_order([], [bpf(7, None, 1), bpf(1, None, 9), bpf(1, None, 2), bpf(3, None, 0)])
    assert [(e.filter.priority, e.filter.handle) for e in entries if e.filter] == [(1, 9), (1, 2), (7, 1)]
