# SPDX-License-Identifier: GPL-3.0-or-later
"""The source, what the compiler and the verifier make of it, and the lists and layouts that Python and C share."""

from __future__ import annotations

import re
import runpy
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from prog import datapath, packets
from prog.conftest import DEFAULT
from prog.datapath import NEIGH, PEER, PROGRAMS, ROOT, Datapath, Object
from prog.kernel import WORKLOAD, Node
from prog.network import Interface
from prog.packets import ACK
from prog.story import IPV4, Connection, expect_fast

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import reasons
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.layout import DEVICES, SCHEMAS, STRUCTS
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.topology import candidates
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._maps.codec import Codec

LIMIT = 4000
SOURCE = ROOT / "roles/node/files/bpf"
# The numbers that have been given. Add to it; whatever changes here breaks the statistics of generations that run.
GIVEN = {
    0: "to_workload", 1: "to_uplink", 2: "not_ip", 3: "not_tcp", 4: "malformed", 5: "fragment", 6: "not_service",
    7: "lease_expired", 8: "other_host", 9: "ttl", 10: "exempt", 11: "handshake", 12: "ending", 13: "heartbeat",
    14: "waiting", 15: "unknown_flow", 16: "unproven", 17: "interface_gone", 18: "spoofed", 19: "draining",
    20: "not_workload", 21: "same_node", 22: "not_peer", 23: "host_address", 32: "syn_in", 33: "syn_out",
    34: "answer_in", 35: "answer_out", 36: "ack_in", 37: "admitted", 48: "renewed", 49: "way_changed",
    50: "suspended", 51: "way_proven", 52: "way_broken", 53: "finished", 54: "reset",
}  # fmt: skip


@pytest.mark.parametrize("way", [NEIGH, PEER], ids=("neigh", "peer"))
@pytest.mark.parametrize("mark", [0, 0x30])
def test_rule_10_the_verifier_is_done_in_4000_instructions(build: Callable[..., Object], way: int, mark: int) -> None:
    built = build(**{**DEFAULT, "OVERLAY_REDIRECT": way, **({"OVERLAY_EXEMPT_MARK": mark} if mark else {})})
    figures = {program: built.verified(program) for program in PROGRAMS}
    print(figures)
    assert all(0 < figure < LIMIT for figure in figures.values()), figures


def test_the_source_compiles_without_warnings() -> None:
    built = datapath.build(datapath.OVERLAY, "-Wall", "-Wextra", **DEFAULT)
    ours = {path.name for path in SOURCE.iterdir()}
    # bcc's own headers and macros have warnings of their own.
    warnings = [line for line in built.compiler.splitlines() if re.match(r"[\w/]*?(\w+\.[ch]):\d+:\d+: ", line)]
    assert [line for line in warnings if line.split(":")[0] in ours] == []


def test_rule_10_no_tail_calls_and_no_printk() -> None:
    for path in SOURCE.iterdir():
        assert not re.search(r"tail_call|trace_printk|prog_array", path.read_text(), re.IGNORECASE), path.name


def test_the_layouts_in_c_are_those_of_python(build: Callable[..., Object]) -> None:
    built = build(**DEFAULT)
    maps = {name for name in built.descriptors if name not in PROGRAMS}
    assert maps == set(SCHEMAS)
    for name, schemas in SCHEMAS.items():
        info = bpf.map_info(built.descriptors[name])
        sizes = tuple(Codec(schema, what).size for schema, what in zip(schemas, ("key", "value")))
        assert sizes == (info.key_size, info.value_size), name
    assert bpf.map_info(built.descriptors["stats"]).max_entries == len(reasons.LABELS) == 2 * reasons.STRIDE


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The source, to be spoilt."""
    return Path(shutil.copytree(SOURCE, tmp_path / "bpf"))


def exchange(text: str, struct_name: str) -> str:
    """The first two members of a struct, each in a line of its own."""
    found = re.search(rf"(struct {struct_name} {{\n)(\t[^\n]+;[^\n]*\n)(\t[^\n]+;[^\n]*\n)", text)
    assert found, struct_name
    head, first, second = found.groups()
    return text.replace(found[0], head + second + first)


# struct peer has one member only.
@pytest.mark.parametrize("name", sorted(set(STRUCTS) - {"peer"}))
def test_two_members_exchanged_fail_the_build(copy: Path, name: str) -> None:
    types = copy / "types.h"
    types.write_text(exchange(types.read_text(), name))
    with pytest.raises(AssertionError, match=rf"offsetof\(struct {name}, \w+\) == \d+, \"_layout\.py says"):
        datapath.build(copy / "overlay.c", **DEFAULT)


def test_a_member_more_fails_the_build(copy: Path) -> None:
    types = copy / "types.h"
    text = types.read_text()
    types.write_text(text.replace("struct control {\n", "struct control {\n\t__u64 more;\n"))
    with pytest.raises(AssertionError, match=r"_layout\.py says"):
        datapath.build(copy / "overlay.c", **DEFAULT)


def test_the_copy_by_itself_builds(copy: Path) -> None:
    datapath.build(copy / "overlay.c", **DEFAULT)


def test_numbers_of_reasons_are_given_once() -> None:
    given = {number: name for number, (name, __) in reasons.REASONS.items()}
    retired = reasons.RETIRED
    assert not retired & set(given)
    assert len(set(given.values())) == len(given)
    assert all(0 <= number < reasons.STRIDE for number in given)
    for number, name in GIVEN.items():
        assert given.get(number) == name or number in retired
    assert set(given) <= set(GIVEN), "write the new number into this test, too"


def test_labels_find_their_reasons() -> None:
    for number, (name, __) in reasons.REASONS.items():
        assert reasons.LABELS[number] == f"uplink.{name}"
        assert reasons.LABELS[reasons.STRIDE + number] == f"workload.{name}"


def test_the_generated_files_are_up_to_date() -> None:
    generate = runpy.run_path(str(ROOT / "tools/generate"))
    assert (SOURCE / "reasons.h").read_text() == generate["reasons_header"]()
    assert (SOURCE / "layout.h").read_text() == generate["layout_header"]()


def test_the_datapath_finds_every_place_of_an_interface(node: Node) -> None:
    """And there only: a flow whose way out has no place is never fast."""
    overlay = node.overlay
    ifindex = overlay.interfaces["ens47f1"].ifindex
    overlay.remove("devices", overlay.place("ens47f1"))
    for number, place in enumerate(candidates(ifindex)):
        overlay.put("devices", place, "ens47f1")
        one = Connection(node, IPV4.but(port=20_000 + number)).establish()
        assert one.way(WORKLOAD)["place"] == place
        expect_fast(one.send(WORKLOAD))
        overlay.remove("devices", place)
    taken = set(candidates(ifindex))
    overlay.put("devices", next(place for place in range(DEVICES) if place not in taken), "ens47f1")
    one = Connection(node, IPV4)
    one.begin()
    assert one.flow is None


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
    one = Connection(Node(overlay), IPV4).warm()
    packet = one.ends.packet("uplink", ACK, ttl=255, sequence=one.next["uplink"], acknowledgement=1)
    frame = packets.frame(packet, interfaces["ens47f1"].mac)

    def cost() -> int:
        return min(overlay.nanoseconds("from_uplink", frame, "ens47f1", 250) for __ in range(200))

    confirmed = cost()
    overlay.mode("on", lease=3600, grows=False)
    leased = cost()
    print(f"a hit: {confirmed} ns, with a lease {leased} ns (both with the cost of an empty program)")
    assert leased > confirmed
    assert overlay.run("from_uplink", frame, "ens47f1").redirected
