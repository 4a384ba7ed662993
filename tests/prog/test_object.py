# SPDX-License-Identifier: GPL-3.0-or-later
"""The source and what the verifier makes of it."""

from __future__ import annotations

import re
import runpy
import struct
from collections.abc import Callable, Mapping

import pytest
from prog import datapath
from prog.conftest import DEFAULT
from prog.datapath import NEIGH, PEER, PLAIN, ROOT, Datapath, Object
from prog.network import Interface
from prog.packets import ACK
from prog.story import IPV4

from ansible_collections.ebpf.overlay.plugins.module_utils import _bpf_syscall as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._codec import Codec
from ansible_collections.ebpf.overlay.plugins.module_utils._layout import SCHEMAS
from ansible_collections.ebpf.overlay.plugins.module_utils._reasons import DIRECTIONS, LABELS, REASONS

LIMIT = 4000


@pytest.mark.parametrize("check_mtu", [0, 1])
@pytest.mark.parametrize("way", [PLAIN, NEIGH, PEER], ids=("plain", "neigh", "peer"))
def test_rule_10_the_verifier_is_done_in_4000_instructions(
    build: Callable[..., Object], way: int, check_mtu: int
) -> None:
    built = build(OVERLAY_CHECK_MTU=check_mtu, OVERLAY_REDIRECT=way)
    for program in ("from_uplink", "from_workload"):
        verified = built.verified(program)
        print(f"{program}: {verified}")
        assert 0 < verified < LIMIT


def test_the_source_compiles_without_warnings() -> None:
    built = datapath.build(datapath.OVERLAY, "-Wall", "-Wextra", **DEFAULT)
    ours = {path.name for path in (ROOT / "roles/node/files/bpf").iterdir()}
    # bcc's own headers and macros have warnings of their own.
    warnings = [line for line in built.compiler.splitlines() if re.match(r"[\w/]*?(\w+\.[ch]):\d+:\d+: ", line)]
    assert [line for line in warnings if line.split(":")[0] in ours] == []


def test_rule_10_no_tail_calls_and_no_printk() -> None:
    for path in (ROOT / "roles/node/files/bpf").iterdir():
        assert not re.search(r"tail_call|trace_printk|prog_array", path.read_text(), re.IGNORECASE), path.name


def test_the_layouts_in_c_are_those_of_python(build: Callable[..., Object]) -> None:
    built = build(**DEFAULT)
    for name, schemas in SCHEMAS.items():
        info = bpf.map_info(built.descriptors[name])
        sizes = tuple(Codec(schema, what).size for schema, what in zip(schemas, ("key", "value")))
        assert sizes == (info.key_size, info.value_size), name
    assert bpf.map_info(built.descriptors["stats"]).max_entries == len(LABELS) == len(DIRECTIONS) * len(REASONS)


def test_the_lists_made_from_the_reasons_are_up_to_date() -> None:
    generate = runpy.run_path(str(ROOT / "tools/generate"))
    header = ROOT / "roles/node/files/bpf/reasons.h"
    document = ROOT / "docs/datapath.md"
    assert header.read_text() == generate["header"]()
    text = document.read_text()
    assert text == generate["with_table"](text, "reasons", generate["reasons"]())


def test_every_rule_has_a_test_whose_name_says_so() -> None:
    text = "".join(path.read_text() for path in (ROOT / "tests/prog").glob("test_*.py"))
    named = {int(number) for number in re.findall(r"^def test_rule_(\d+)_", text, re.MULTILINE)}
    assert named == set(range(1, 11))


def test_rule_4_a_confirmed_mode_reads_no_clock(
    build: Callable[..., Object], interfaces: Mapping[str, Interface]
) -> None:
    """By its cost: the clock is some 37 ns of a hit's 50, so that a hit with a lease must be slower."""
    overlay = Datapath(build(**DEFAULT), interfaces)
    datapath.fill(overlay)
    IPV4.establish(overlay)

    def cost() -> int:
        frame = bytes(12) + struct.pack("!H", 0x0800) + IPV4.inbound(ACK, ttl=255)
        return min(overlay.nanoseconds("from_uplink", frame, "ens47f1", 250) for _ in range(200))

    confirmed = cost()
    overlay.mode("on", lease=3600)
    leased = cost()
    print(f"a hit: {confirmed} ns, with a lease {leased} ns (both with the cost of an empty program)")
    assert leased > confirmed
