# SPDX-License-Identifier: GPL-3.0-or-later
"""BPF_PROG_TEST_RUN with the packet's metadata, before and after (``bpf_prog_test_run_skb`` in net/bpf/test_run.c)."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass

from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.call import address, attribute, bpf, buffer_of

PROG_TEST_RUN = 10
# Offsets in struct __sk_buff (include/uapi/linux/bpf.h).
MARK, PRIORITY, IFINDEX, GSO_SEGS, GSO_SIZE, CONTEXT = 8, 32, 40, 164, 176, 192


@dataclass(frozen=True)
class Run:
    verdict: int
    data: bytes
    mark: int
    priority: int
    nanoseconds: int


def run_program(
    program: int, frame: bytes, ifindex: int, *, gso_size: int = 0, mark: int = 0, priority: int = 0, repeat: int = 1
) -> Run:
    """On the processor, and in the network namespace, of the caller. All rounds work on the same packet."""
    context = bytearray(CONTEXT)
    for offset, number in ((MARK, mark), (PRIORITY, priority), (IFINDEX, ifindex)):
        struct.pack_into("=I", context, offset, number)
    if gso_size:
        struct.pack_into("=I", context, GSO_SEGS, 2)
        struct.pack_into("=I", context, GSO_SIZE, gso_size)
    data, given = buffer_of(frame), buffer_of(bytes(context))
    out, after = ctypes.create_string_buffer(len(frame) + 256), ctypes.create_string_buffer(CONTEXT)
    attr = attribute("IIIIQQIIIIQQ", program, 0, len(frame), len(out), address(data), address(out), repeat, 0,
                     CONTEXT, CONTEXT, address(given), address(after))  # fmt: skip
    bpf(PROG_TEST_RUN, attr)
    verdict, __, size = struct.unpack_from("=iII", attr, 4)
    (spent,) = struct.unpack_from("=I", attr, 36)
    new_mark, new_priority = (struct.unpack_from("=I", after, at)[0] for at in (MARK, PRIORITY))
    return Run(verdict, out.raw[:size], new_mark, new_priority, spent)
