# SPDX-License-Identifier: GPL-3.0-or-later
"""A source of two programs and two maps, and what tests do with it."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from integration.bpf_object_node import Node, Outcome

# Of all programs and maps here, to find them among those of others: ids and names are the whole kernel's.
PREFIX = f"t{secrets.token_hex(2)}_"
PIN_DIR = "/sys/fs/bpf/tobj"
BUILD = f"{PIN_DIR}/build"

MAIN = """\
#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>
#include "tables.h"

int PREFIX_first(struct __sk_buff *skb)
{
    return count(skb->ifindex) ? TC_ACT_UNSPEC : TC_ACT_OK;
}

int PREFIX_second(struct __sk_buff *skb)
{
    u32 zero = 0;
    u64 *total = PREFIX_stats.lookup(&zero);
    if (total)
        *total += SECOND;
    return TC_ACT_UNSPEC;
}
""".replace("PREFIX_", PREFIX)
TABLES = """\
#pragma once
#include "sizes.h"
BPF_TABLE("hash", u32, u64, PREFIX_flows, CAPACITY);
BPF_TABLE("percpu_array", u32, u64, PREFIX_stats, 4);

// A header that touches a map: bcc alone would not rewrite this access.
static inline int count(u32 key)
{
    u64 *found = PREFIX_flows.lookup(&key);
    return found != 0;
}
""".replace("PREFIX_", PREFIX)
SIZES = """\
#pragma once
#ifndef CAPACITY
#define CAPACITY 64
#endif
#ifndef SECOND
#define SECOND 1
#endif
"""
WRITE = """
import struct, sys
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
fd = bpf.obj_get(sys.argv[1])
for number in range(int(sys.argv[2])):
    bpf.map_update(fd, struct.pack("=I", number), struct.pack("=Q", number + 1))
"""
READ = """
import struct, sys
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
fd, key, entries = bpf.obj_get(sys.argv[1]), None, []
while (key := bpf.map_next_key(fd, key, 4)) is not None:
    entries.append((int.from_bytes(key, sys.byteorder), int.from_bytes(bpf.map_lookup(fd, key, 8), sys.byteorder)))
print(sorted(entries))
"""


def build(target: Node, source: Path, *, dry: bool = False, **params: Any) -> Outcome:
    how = {key: params.pop(key) for key in ("kill_at", "patch", "wrapper") if key in params}
    wanted = {"src": str(source), "pin_dir": PIN_DIR, "programs": [f"{PREFIX}first", f"{PREFIX}second"], **params}
    return target.run("bpf_object", dry=dry, **how, **wanted)


def remove(target: Node, *, dry: bool = False, **how: Any) -> Outcome:
    return target.run("bpf_object", dry=dry, pin_dir=PIN_DIR, state="absent", **how)


def fill(target: Node, count: int) -> None:
    target.program(WRITE, f"{PIN_DIR}/{PREFIX}flows", str(count))


def entries(target: Node) -> str:
    listed: str = target.program(READ, f"{PIN_DIR}/{PREFIX}flows")
    return listed.strip()


def expected(count: int) -> str:
    return str([(number, number + 1) for number in range(count)])
