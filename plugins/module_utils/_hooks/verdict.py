# SPDX-License-Identifier: GPL-3.0-or-later
"""Which codes a program can return, as far as its instructions alone tell. Pure.

Constants are followed through register moves along all paths; whatever else happens to a register makes it unknown.
So an answer is safe to rely on ("this program always ends the chain"), and no answer only means that it depends.
"""

from __future__ import annotations

import struct
from typing import Optional

Values = Optional[frozenset[int]]
"""What a register can hold; None: anything."""

TAIL_CALL = 12
_MOST_VALUES = 16
_LD, _LDX, _ST, _STX, _ALU, _JMP, _JMP32, _ALU64 = range(8)
_MOV, _CALL, _EXIT, _JA, _TAIL = 0xB0, 0x80, 0x90, 0x00, 0xF0
_LD_IMM64 = 0x18
_ATOMIC = 0xC0


def return_codes(program: bytes) -> Values:
    """The codes (as signed 32-bit numbers) that ``program``, as the verifier left it, can return; None: not known."""
    instructions = [struct.unpack_from("=BBhi", program, at) for at in range(0, len(program), 8)]
    found: set[int] = set()
    states: dict[int, tuple[Values, ...]] = {}
    todo: list[tuple[int, tuple[Values, ...]]] = [(0, (None,) * 16)]
    while todo:
        at, incoming = todo.pop()
        if not 0 <= at < len(instructions):
            return None
        known = states.get(at)
        state = incoming if known is None else tuple(_union(one, other) for one, other in zip(known, incoming))
        if state == known:
            continue
        states[at] = state
        opcode, registers, offset, immediate = instructions[at]
        kind = opcode & 7
        if opcode == _LD_IMM64:
            todo.append((at + 2, _with(state, registers & 15, None)))
        elif kind == _LD:
            return None  # classic packet loads end the program when they miss the packet
        elif kind in (_JMP, _JMP32):
            after = _jump(opcode, registers, offset, immediate, at, state, found)
            if after is None:
                return None
            todo += after
        else:
            todo.append((at + 1, _compute(opcode, registers, offset, immediate, state)))
    return frozenset(found)


def _jump(
    opcode: int, registers: int, offset: int, immediate: int, at: int, state: tuple[Values, ...], found: set[int]
) -> list[tuple[int, tuple[Values, ...]]] | None:
    """Where it goes on from a jump, call or exit, and with what; None: no telling what the program returns."""
    operation = opcode & 0xF0
    if operation == _TAIL or (operation == _EXIT and state[0] is None):
        return None
    if operation == _EXIT:
        found.update(_signed(value) for value in state[0] or ())
        return []
    if operation == _CALL:
        source = registers >> 4
        if source == 2 or (source == 0 and immediate == TAIL_CALL):
            return None  # a kernel function may throw, a tail call ends in another program
        return [(at + 1, (None,) * 6 + state[6:])]
    if operation == _JA:
        return [(at + 1 + (immediate if opcode & 7 == _JMP32 else offset), state)]
    return [(at + 1, state), (at + 1 + offset, state)]


def _compute(opcode: int, registers: int, offset: int, immediate: int, state: tuple[Values, ...]) -> tuple[Values, ...]:
    kind, target, source = opcode & 7, registers & 15, registers >> 4
    if kind == _LDX:
        return _with(state, target, None)
    if kind in (_ST, _STX):
        if kind == _ST or opcode & 0xE0 != _ATOMIC:
            return state
        # Fetching ones write to their source, compare-and-exchange to r0, load-acquire to the target.
        return _with(_with(_with(state, source, None), 0, None), target, None)
    value: Values = None
    if opcode & 0xF0 == _MOV and offset == 0:
        value = state[source] if opcode & 8 else frozenset({immediate})
        if kind == _ALU and value is not None:
            value = frozenset(number & 0xFFFFFFFF for number in value)
    return _with(state, target, value)


def _with(state: tuple[Values, ...], register: int, value: Values) -> tuple[Values, ...]:
    return (*state[:register], value, *state[register + 1 :])


def _union(one: Values, other: Values) -> Values:
    if one is None or other is None:
        return None
    both = one | other
    return both if len(both) <= _MOST_VALUES else None


def _signed(value: int) -> int:
    return int(struct.unpack("=i", struct.pack("=I", value & 0xFFFFFFFF))[0])
