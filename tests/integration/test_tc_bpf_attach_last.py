# SPDX-License-Identifier: GPL-3.0-or-later
"""``tc_bpf_attach`` runs programs last on their hook, whoever comes before or later, and moves them under traffic."""

from __future__ import annotations

import json
import os
import struct
from typing import Any

import pytest
from integration.tc_checks import TCX_ATTACH, disturbed, foreign_state, parts, tcx_of
from integration.tc_sandbox import PINS, PYTHON, Sandbox, at, returns

pytest_plugins = ["integration.tc_fixtures"]

ROUNDS = 50 if os.environ.get("OVERLAY_SOAK") else 3


def order(node: Sandbox, interface: str = "eth0", direction: str = "ingress") -> list[tuple[str, str]]:
    """(mechanism, name) of what runs there, in its order; u32's hash tables apart."""
    (found,) = node.module("tc_bpf_info", interface=[interface])["interfaces"]
    return [(entry["mechanism"], entry["name"] or entry["kind"]) for entry in found[direction]]


def link(node: Sandbox, name: str, interface: str = "eth0", way: str = "46", program: str = "") -> str:
    """A TCX link of somebody else at the tail; its program says "next"."""
    node.load(program or name, returns(-1, padding=len(name)))
    node.python(TCX_ATTACH, f"/sys/fs/bpf/foreign/{name}", interface, way, f"{PINS}/{program or name}")
    return name


# -- behind what is there -------------------------------------------------------------------------------------------


def test_a_filter_runs_behind_foreign_ones_which_change_no_plan(node: Sandbox) -> None:
    alone = node.attach(at("eth0", "one"), mechanism="clsact", check=True)
    foreign_state(node)
    among = node.attach(at("eth0", "one"), mechanism="clsact", check=True)
    assert among["attachments"] == [{**alone["attachments"][0], "qdisc_created": False}]
    assert (among["removed"], among["warnings"]) == ([], [])
    before = node.filters("eth0")
    node.both(at("eth0", "one"), mechanism="clsact")
    assert order(node)[-1] == ("clsact", "ebpf.overlay:one")
    node.sh(f"tc filter add dev eth0 ingress prio 2 protocol all bpf da pinned {PINS}/theirs")
    assert not node.both(at("eth0", "one"), mechanism="clsact")["changed"]
    node.sh("tc filter del dev eth0 ingress prio 2")
    node.both(purge=True)
    assert node.filters("eth0") == before


def test_a_filter_with_our_priority_and_handle_stays_where_it_is(node: Sandbox) -> None:
    """Same priority and handle as somebody else: datadog-agent #13692."""
    node.load("theirs", returns(-1, padding=7))
    node.sh(
        "tc qdisc add dev eth0 clsact; "
        f"tc filter add dev eth0 ingress prio 60000 handle 1 protocol all bpf da pinned {PINS}/theirs"
    )
    (theirs,) = node.filters("eth0")
    result = node.both(at("eth0", "one"), mechanism="clsact")
    assert (result["attachments"][0]["priority"], result["attachments"][0]["handle"]) == (60000, 2)
    assert theirs in node.filters("eth0")
    assert not node.both(at("eth0", "one"), mechanism="clsact")["changed"]
    node.sh("tc filter del dev eth0 ingress prio 60000 handle 1 bpf")
    assert not node.both(at("eth0", "one"), mechanism="clsact")["changed"], "it stays at its handle"


def test_a_priority_for_all_and_one_for_some(node: Sandbox) -> None:
    result = node.both(at("eth0", "one"), at("cali1", "two", priority=7), priority=900, mechanism="clsact")
    assert [entry["priority"] for entry in result["attachments"]] == [900, 7]
    assert "priority 0" in parts(node.attach(at("eth0", "one"), priority=0))["target"]


def test_links_go_to_the_tail_and_to_both_directions(node: Sandbox) -> None:
    link(node, "first")
    link(node, "out", way="47")
    result = node.both(at("eth0", "one"), at("eth0", "two", direction="egress"))
    assert {entry["mechanism"] for entry in result["attachments"]} == {"tcx"}
    assert order(node) == [("tcx", "first"), ("tcx", "ebpf.overlay:one")]
    assert order(node, direction="egress") == [("tcx", "out"), ("tcx", "ebpf.overlay:two")]
    node.both(purge=True)
    assert order(node) == [("tcx", "first")]


def test_both_directions_share_one_qdisc_and_leave_it_to_whoever_uses_it(node: Sandbox) -> None:
    both = (at("eth0", "one"), at("eth0", "two", direction="egress"))
    assert [entry["qdisc_created"] for entry in node.both(*both, mechanism="clsact")["attachments"]] == [True, True]
    assert node.sh("tc qdisc show dev eth0").count("clsact") == 1
    node.load("theirs", returns(-1, padding=7))
    node.sh(f"tc filter add dev eth0 egress prio 3 protocol all bpf da pinned {PINS}/theirs")
    node.both(purge=True)
    assert len(node.filters("eth0", "egress")) == 1
    node.sh("tc filter del dev eth0 egress prio 3")
    node.both(*both, mechanism="clsact")
    assert node.both(*both)["changed"], "auto moves them to TCX, and the qdisc that nobody needs goes"
    assert "clsact" not in node.sh("tc qdisc show")


# -- which mechanism ------------------------------------------------------------------------------------------------


def test_a_filter_that_takes_packets_forces_clsact_for_as_long_as_it_is_there(node: Sandbox) -> None:
    node.both(at("eth0", "one"), at("cali1", "one"))
    node.load("harmless", returns(-1, padding=4))
    node.load("takes", returns(2, padding=3))
    node.sh(
        "tc qdisc add dev eth0 clsact; "
        f"tc filter add dev eth0 ingress prio 5 handle 1 protocol all bpf da pinned {PINS}/harmless"
    )
    assert not node.both(at("eth0", "one"), at("cali1", "one"))["changed"]
    for taker in (f"protocol all bpf da pinned {PINS}/takes", "protocol ip u32 match ip dst 192.0.2.1 classid 1:1"):
        node.sh(f"tc filter add dev eth0 ingress prio 9 {taker}")
        result = node.both(at("eth0", "one"), at("cali1", "one"))
        assert [entry["mechanism"] for entry in result["attachments"]] == ["clsact", "tcx"]
        assert "filter priority 9" in result["attachments"][0]["mechanism_reason"]
        assert order(node)[-1] == ("clsact", "ebpf.overlay:one")
        assert not any(mechanism == "tcx" for mechanism, _name in order(node))
        node.sh("tc filter del dev eth0 ingress prio 9")
        assert node.both(at("eth0", "one"), at("cali1", "one"))["changed"]
        assert order(node) == [("tcx", "ebpf.overlay:one"), ("clsact", "harmless:[*fsobj]")]


def test_who_insists_on_tcx_is_told_what_runs_behind(node: Sandbox) -> None:
    foreign_state(node)
    (told,) = node.both(at("eth0", "one"), mechanism="tcx")["warnings"]
    assert "eth0 ingress u32 filter priority 20" in told


# -- who comes later ------------------------------------------------------------------------------------------------


def test_a_link_that_came_behind_ours_is_told_and_ours_goes_to_the_tail(node: Sandbox) -> None:
    wanted = (at("eth0", "one"), at("eth0", "two", direction="egress"), at("cali1", "one"))
    node.both(*wanted)
    link(node, "later")
    link(node, "later-out", way="47", program="later_out")
    foreign = [name for name in order(node) if "later" in name[1]]
    dry = node.attach(*wanted, check=True)
    assert "eth0 ingress tcx ebpf.overlay:one" in dry["diff"]["before"]
    assert dry["diff"]["before"].count(", before 1 of somebody else") == 2
    assert "somebody else" not in dry["diff"]["after"]
    result = node.both(*wanted)
    assert [(entry["interface"], entry["direction"]) for entry in result["removed"]] == [
        ("eth0", "egress"),
        ("eth0", "ingress"),
    ]
    assert order(node) == [*foreign, ("tcx", "ebpf.overlay:one")]
    assert order(node, direction="egress") == [("tcx", "later_out"), ("tcx", "ebpf.overlay:two")]
    assert "clsact" not in node.sh("tc qdisc show"), "what stood in is gone"
    assert "/run/ebpf-overlay" not in node.state()
    assert not node.both(*wanted)["changed"]


def test_a_new_program_goes_to_the_tail_by_itself(node: Sandbox) -> None:
    node.attach(at("eth0", "one"))
    link(node, "later")
    node.load("one", returns(-1, padding=5))
    node.both(at("eth0", "one"))
    assert order(node) == [("tcx", "later"), ("tcx", "ebpf.overlay:one")]
    link(node, "last")
    node.load("one", returns(-1, padding=6))
    node.both(at("eth0", "one"))
    assert order(node) == [("tcx", "later"), ("tcx", "last"), ("tcx", "ebpf.overlay:one")]
    assert len(node.sh("find /sys/fs/bpf/ebpf-overlay -type f").split()) == 1
    node.both(purge=True)
    assert "ebpf-overlay" not in node.state()


def test_owners_who_all_want_to_be_last_do_not_move_each_other(node: Sandbox) -> None:
    node.both(at("eth0", "one"))
    node.both(at("eth0", "two"), owner="acme")
    before = tcx_of(node, "eth0")
    for __ in range(2):
        assert not node.both(at("eth0", "one"))["changed"]
        assert not node.both(at("eth0", "two"), owner="acme")["changed"]
    assert tcx_of(node, "eth0") == before


def test_a_link_that_somebody_updated_meanwhile_says_so(node: Sandbox) -> None:
    node.attach(at("eth0", "one"))
    new = node.load("one", returns(-1, padding=5))
    node.load("theirs", returns(-1, padding=7))
    pin = node.sh("find /sys/fs/bpf/ebpf-overlay -type f").strip()
    error = parts(disturbed(node, 0, f"{PYTHON} -c '{UPDATE}' {pin} {PINS}/theirs", at("eth0", "one")))
    assert error["errno"] == "ESTALE"
    assert "run again" in error["advice"]
    assert "root" not in error["advice"]
    assert node.attach(at("eth0", "one"))["attachments"][0]["program_id"] == new


UPDATE = """
import sys
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
bpf.link_update(bpf.obj_get(sys.argv[1]), bpf.obj_get(sys.argv[2]))
"""


def test_a_folder_among_the_pins_of_links_is_nobodys_business(node: Sandbox) -> None:
    node.attach(at("eth0", "one"))
    folder = os.path.dirname(node.sh("find /sys/fs/bpf/ebpf-overlay -type f").strip())
    node.sh(f"mkdir {folder}/theirs {os.path.dirname(folder)}/acme")
    assert not node.both(at("eth0", "one"))["changed"]
    assert order(node) == [("tcx", "ebpf.overlay:one")]
    node.both(purge=True)
    assert order(node) == []
    node.sh(f"test -d {folder}/theirs")


# -- under traffic --------------------------------------------------------------------------------------------------


def redirects(ifindex: int, padding: int) -> bytes:
    """A program that sends every packet out of an interface: r0 = bpf_redirect(ifindex, 0)."""
    instruction = struct.Struct("=BBhi").pack
    return (
        b"".join(instruction(0xB7, 0, 0, number) for number in range(padding))
        + instruction(0xB7, 1, 0, ifindex)
        + instruction(0xB7, 2, 0, 0)
        + instruction(0x85, 0, 0, 23)
        + instruction(0x95, 0, 0, 0)
    )


MOVES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "priority": [("clsact", {"priority": 1}), ("clsact", {}), ("clsact", {"priority": 1})],
    "mechanism": [("clsact", {"priority": 1}), ("auto", {}), ("clsact", {}), ("tcx", {}), ("clsact", {"priority": 1})],
    "tail": [("auto", {}), ("foreign", {}), ("auto", {}), ("foreign", {}), ("load", {}), ("auto", {})],
}


@pytest.mark.parametrize("moves", MOVES)
def test_no_packet_is_lost_or_doubled_while_a_program_moves(node: Sandbox, moves: str) -> None:
    """The first program that takes a packet ends its way: with both attached it is taken once, and never is it missed
    by both. p0 - eth0 (the program, ingress) - cali1 - the other end of cali1, which counts."""
    node.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1")
    node.sh("for d in eth0 p0 cali1 p3; do ip link set $d up; ip addr flush dev $d; done; ip link set p3 promisc on")
    ifindex = int(node.sh("cat /sys/class/net/cali1/ifindex"))
    node.load("one", redirects(ifindex, 0))
    node.attach(at("eth0", "one", **MOVES[moves][0][1]), mechanism=MOVES[moves][0][0])
    before = [counter(node, name) for name in ("p0/statistics/tx_packets", "p3/statistics/rx_packets")]
    node.python(START)
    for __ in range(ROUNDS):
        for number, (mechanism, more) in enumerate(MOVES[moves][1:]):
            if mechanism == "load":
                node.load("one", redirects(ifindex, number))
            elif mechanism == "foreign":
                node.sh("rm -rf /sys/fs/bpf/foreign")
                link(node, "theirs")
            else:
                result = node.attach(at("eth0", "one", **more), mechanism=mechanism)
                assert result["rc"] == 0, result
                assert result["changed"]
                assert len(order(node)) == 1 + (moves == "tail"), "no old one is left"
    sent = json.loads(node.python(STOP))
    after = [counter(node, name) for name in ("p0/statistics/tx_packets", "p3/statistics/rx_packets")]
    taken = [new - old for new, old in zip(after, before)]
    print(f"{sent} sent, {taken} by the counters of both ends")
    assert sent > 2000
    assert taken == [sent, sent]


def counter(node: Sandbox, name: str) -> int:
    return int(node.sh(f"cat /sys/class/net/{name}"))


# A process that sends until it is told to end, slowly enough for the backlog of the second veth.
START = """
import os, socket, time
if os.fork() == 0:
    os.setsid()
    for number in range(3): os.dup2(os.open("/dev/null", os.O_RDWR), number)
    os.closerange(3, 256)
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.bind(("p0", 0))
    sent = 0
    while not os.path.exists("/run/stop"):
        for _ in range(20):
            sock.send(b"\\xff" * 6 + b"\\x02" * 6 + b"\\x88\\xb5" + bytes(46))
        sent += 20
        time.sleep(0.0005)
    open("/run/sent.new", "w").write(str(sent))
    os.rename("/run/sent.new", "/run/sent")
    os._exit(0)
"""
STOP = """
import os, time
open("/run/stop", "w").close()
while not os.path.exists("/run/sent"):
    time.sleep(0.01)
time.sleep(0.2)
print(open("/run/sent").read())
os.unlink("/run/stop"); os.unlink("/run/sent")
"""
