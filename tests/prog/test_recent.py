# SPDX-License-Identifier: GPL-3.0-or-later
"""What processors remember of flows: it is never believed once something that it depends on has changed (rule 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from prog import datapath
from prog.datapath import NEIGH, Datapath, Object
from prog.network import Interface
from prog.packets import ACK, FIN, PSH, RST, SYN, icmp_error
from prog.processors import CPUS, affinity, begin_epoch, narrower, on  # noqa: F401
from prog.story import BOTH, IPV4, Connection, expect_pass, expect_redirect

from ansible_collections.ebpf.overlay.plugins.module_utils import _bpf_syscall as bpf

EVERY = pytest.mark.parametrize(
    "one",
    [one.but(server=server) for one in BOTH for server in (True, False)],
    ids=["ipv4-server", "ipv4-client", "ipv6-server", "ipv6-client"],
)
ASKED_AGAIN = 255  # RECENT_PACKETS in recent.h
Step = Callable[[Datapath, Connection], Any]


@pytest.fixture
def believing(build: Callable[..., Object], interfaces: Mapping[str, Interface]) -> Datapath:
    """MTUs come from the maps, so that a packet tells which version of a flow it was judged by."""
    found = Datapath(build(OVERLAY_CHECK_MTU=0, OVERLAY_REDIRECT=NEIGH), interfaces)
    datapath.fill(found)
    return found


def memory(overlay: Datapath, one: Connection) -> dict[int, Any]:
    """Processor -> what it holds about the flow, valid or not."""
    key, value = overlay.codecs["recent"]
    info = bpf.map_info(overlay.object.descriptors["recent"])
    wanted = {"workload": one.workload, "remote": one.remote, "workload_port": one.ports[0],
              "remote_port": one.ports[1], "protocol": 6}  # fmt: skip
    found = {}
    for bucket in range(info.max_entries):
        raw = bpf.map_lookup(overlay.object.descriptors["recent"], key.encode(bucket), info.value_stride) or b""
        for cpu in range(info.value_stride // info.value_size):
            record = value.decode(raw[cpu * info.value_size :][: info.value_size])
            if record["key"] == wanted:
                found[cpu] = record
    return found


def remembered(overlay: Datapath, one: Connection) -> None:
    """An established flow that every processor remembers."""
    one.establish(overlay)
    for cpu in CPUS:
        on(cpu)
        for _ in range(2):
            expect_redirect(one.opener(overlay, ACK | PSH, b"question"))
            expect_redirect(one.answerer(overlay, ACK | PSH, b"answer"))
    on(CPUS[0])


def on_every_processor(check: Callable[[], Any]) -> None:
    for cpu in CPUS:
        on(cpu)
        check()


@EVERY
def test_a_known_flow_is_remembered_by_each_processor(overlay: Datapath, one: Connection) -> None:
    remembered(overlay, one)
    flow, found = one.in_flows(overlay), memory(overlay, one)
    assert sorted(found) == CPUS
    for record in found.values():
        # The first of four packets was looked up, the other three were not.
        assert record["left"] == ASKED_AGAIN - 3
        for name in ("ifindex", "uplink", "next_hop", "session", "workload_mtu", "uplink_mtu"):
            assert record[name] == flow[name]


@EVERY
def test_nothing_is_remembered_before_a_flow_is_established(overlay: Datapath, one: Connection) -> None:
    one = one.but(port=45000)  # of no other test
    one.answer(overlay)
    expect_redirect(one.answerer(overlay, SYN | ACK))
    assert memory(overlay, one) == {}


def closes(overlay: Datapath, one: Connection) -> None:
    """And the entry of the closing flow is evicted."""
    expect_redirect(one.opener(overlay, FIN | ACK))
    expect_redirect(one.answerer(overlay, FIN | ACK))
    overlay.clear("transient")


def resets(overlay: Datapath, one: Connection) -> None:
    expect_redirect(one.opener(overlay, RST))
    overlay.clear("transient")


def is_forgotten(overlay: Datapath, one: Connection) -> None:
    overlay.mode("drain")
    expect_pass(one.opener(overlay, SYN), "draining")


def a_new_session_begins(overlay: Datapath, _one: Connection) -> None:
    overlay.mode("off")
    overlay.mode("on", session=2)


def the_lease_ends(overlay: Datapath, _one: Connection) -> None:
    overlay.mode("on", lease=-1)


def the_mode_is_off(overlay: Datapath, _one: Connection) -> None:
    overlay.mode("off")


def the_interfaces_go(overlay: Datapath, _one: Connection) -> None:
    for name in ("cali1", "ens47f1"):
        overlay.remove("devices", overlay.interfaces[name].ifindex)


def the_interfaces_are_written_again(overlay: Datapath, _one: Connection) -> None:
    for name in ("cali1", "ens47f1"):
        begin_epoch(overlay, name)


@EVERY
@pytest.mark.parametrize(
    ("happens", "reason"),
    [
        (closes, "unknown_flow"),
        (resets, "unknown_flow"),
        (is_forgotten, "unknown_flow"),
        (a_new_session_begins, "unknown_flow"),
        (the_lease_ends, "lease_expired"),
        (the_mode_is_off, "mode_off"),
        (the_interfaces_go, "interface_gone"),
        (the_interfaces_are_written_again, "interface_gone"),
    ],
)
def test_no_processor_believes_what_is_over(overlay: Datapath, one: Connection, happens: Step, reason: str) -> None:
    """It happens on one processor, or by one write; packets on all of them are judged anew."""
    remembered(overlay, one)
    happens(overlay, one)

    def check() -> None:
        expect_pass(one.opener(overlay, ACK), reason)
        expect_pass(one.answerer(overlay, ACK), reason)
        expect_pass(overlay.uplink(icmp_error(one.peer_node, one.outbound(ACK))), reason)

    on_every_processor(check)


@pytest.mark.parametrize("name", ["cali1", "ens47f1"])
@EVERY
def test_rule_7_a_flow_does_not_reach_whoever_got_the_ifindex_of_its_interface(
    overlay: Datapath, one: Connection, name: str
) -> None:
    """The place in `devices` holds the same number again, but for another interface: its epoch grew first."""
    remembered(overlay, one)
    half = one.but(port=one.port + 1)
    half.answer(overlay)
    overlay.remove("devices", overlay.interfaces[name].ifindex)  # as the kernel does when an interface goes
    begin_epoch(overlay, name)

    def check() -> None:
        for known in (one, half):
            way = known.opener if known.server == (name == "cali1") else known.answerer
            expect_pass(way(overlay, ACK), "interface_gone")

    on_every_processor(check)
    one.but(port=one.port + 2).establish(overlay)
    expect_redirect(one.opener(overlay, SYN))  # ports used again: the flow now leads to the new one
    on_every_processor(lambda: expect_redirect(one.opener(overlay, ACK)))


@EVERY
@pytest.mark.parametrize("again", ["renewed", "closed", "reset"])
def test_ports_used_again_lead_where_the_new_flow_leads(believing: Datapath, one: Connection, again: str) -> None:
    remembered(believing, one)
    size = 1400 - (60 if one.family == 6 else 40)
    on_every_processor(lambda: expect_redirect(one.opener(believing, ACK, bytes(size))))
    narrower(believing, one)
    on(CPUS[-1])
    if again == "renewed":
        expect_redirect(one.opener(believing, SYN))
    else:
        (closes if again == "closed" else resets)(believing, one)
        one.establish(believing)

    def check() -> None:
        for packet in (one.opener, one.answerer):
            expect_redirect(packet(believing, ACK))
            expect_pass(packet(believing, ACK, bytes(size)), "too_big")

    on_every_processor(check)


@EVERY
def test_rule_6_a_remembered_flow_belongs_to_its_interface(overlay: Datapath, one: Connection) -> None:
    remembered(overlay, one)
    before = memory(overlay, one)
    on_every_processor(lambda: expect_pass(overlay.workload(one.outbound(ACK), "cali2"), "spoofed"))
    assert memory(overlay, one) == before


def test_an_idle_flow_that_was_swept_is_not_remembered(
    build: Callable[..., Object], interfaces: Mapping[str, Interface]
) -> None:
    small = Datapath(build(OVERLAY_FLOWS=16, OVERLAY_TRANSIENT=1024, OVERLAY_CHECK_MTU=1, OVERLAY_REDIRECT=NEIGH),
                     interfaces)  # fmt: skip
    datapath.fill(small)
    remembered(small, IPV4)
    flow = IPV4.in_flows(small)
    # Idle for two rounds, and its place is the next that is looked at, whatever the processor.
    on(CPUS[0])
    for round_number in (1, 2):
        small.put("sweep", 0, {**small.get("sweep", 0), "round": flow["round"] + round_number})
    others = 0
    while IPV4.in_flows(small):
        others += 1
        assert others < 64
        other = IPV4.but(port=20000 + others)
        other.answer(small)
        expect_redirect(other.opener(small, ACK))
    assert small.total("flow_swept") >= 1
    on_every_processor(lambda: expect_pass(IPV4.opener(small, ACK), "unknown_flow"))


def test_every_round_of_the_sweep_reaches_a_flow_that_is_remembered(overlay: Datapath) -> None:
    for one in BOTH:
        remembered(overlay, one)
        for _ in range(3):
            sweep = overlay.get("sweep", 0)
            overlay.put("sweep", 0, {**sweep, "round": sweep["round"] + 1})
            expect_redirect(one.answerer(overlay, ACK))
            assert one.in_flows(overlay)["round"] == sweep["round"] + 1


@EVERY
def test_what_is_removed_by_hand_is_noticed_soon(overlay: Datapath, one: Connection) -> None:
    remembered(overlay, one)
    key = {"workload": one.workload, "remote": one.remote, "workload_port": one.ports[0],
           "remote_port": one.ports[1], "protocol": 6}  # fmt: skip
    assert overlay.remove("flows", key)

    def check() -> None:
        packets = [one.opener(overlay, ACK).redirected for _ in range(ASKED_AGAIN)]
        assert packets == [True] * (ASKED_AGAIN - 3) + [False] * 3
        expect_pass(one.opener(overlay, ACK), "unknown_flow")

    on_every_processor(check)
