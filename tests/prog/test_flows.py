# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of a flow (rule 2), the modes on its way (rules 3 and 4), and what forged packets do to it."""

from __future__ import annotations

import pytest
from prog.datapath import Datapath
from prog.packets import ACK, FIN, PSH, RST, SYN, icmp_error
from prog.story import BOTH, IPV4, Connection, expect_pass, expect_redirect

EVERY = pytest.mark.parametrize(
    "one",
    [one.but(server=server) for one in BOTH for server in (True, False)],
    ids=["ipv4-server", "ipv4-client", "ipv6-server", "ipv6-client"],
)


def tables(overlay: Datapath) -> tuple[int, int]:
    return overlay.size("flows"), overlay.size("transient")


@EVERY
def test_rule_2_a_flow_from_its_first_packet_to_its_last(overlay: Datapath, one: Connection) -> None:
    one.open(overlay)
    assert tables(overlay) == (0, 1)
    assert one.in_transient(overlay)["state"] == "opening"
    expect_redirect(one.answerer(overlay, SYN | ACK))
    assert one.in_transient(overlay)["state"] == "answered"
    expect_redirect(one.opener(overlay, ACK))
    assert tables(overlay) == (1, 0)
    flow = one.in_flows(overlay)
    assert flow["state"] == "established"
    assert flow["opened_by"] == ("uplink" if one.server else "workload")
    assert (flow["ifindex"], flow["uplink"]) == ("cali1", "ens47f1")
    for _ in range(3):
        expect_redirect(one.opener(overlay, ACK | PSH, b"question"))
        expect_redirect(one.answerer(overlay, ACK | PSH, b"answer"))
    expect_redirect(one.opener(overlay, FIN | ACK))
    assert tables(overlay) == (1, 0)
    expect_redirect(one.answerer(overlay, ACK | PSH, b"half closed"))
    expect_redirect(one.answerer(overlay, FIN | ACK))
    assert tables(overlay) == (0, 1)
    assert one.in_transient(overlay)["state"] == "closing"
    expect_redirect(one.opener(overlay, ACK))
    assert tables(overlay) == (0, 1)


@EVERY
def test_rule_2_the_reply_way_is_learned_from_the_maps(overlay: Datapath, one: Connection) -> None:
    one.open(overlay)
    next_hop = "198.18.0.12" if one.family == 4 else "fd00:198:18::12"
    assert one.in_transient(overlay)["next_hop"] == next_hop
    neighbour = one.but(remote=one.peer_node)
    neighbour.open(overlay)
    assert neighbour.in_transient(overlay)["next_hop"] == one.peer_node


@EVERY
def test_rule_2_the_lost_acknowledgement_of_the_handshake(overlay: Datapath, one: Connection) -> None:
    """Whatever the opening end sends next completes the handshake."""
    one.answer(overlay)
    expect_redirect(one.answerer(overlay, SYN | ACK))
    expect_redirect(one.opener(overlay, ACK | PSH, b"question"))
    assert one.in_flows(overlay)


@EVERY
def test_rule_2_a_first_packet_that_ends_the_flow_too_is_remembered(overlay: Datapath, one: Connection) -> None:
    """The handshake's acknowledgement was lost, and the opening end closes at once."""
    one.answer(overlay)
    expect_redirect(one.opener(overlay, FIN | ACK))
    expect_redirect(one.answerer(overlay, FIN | ACK))
    assert tables(overlay) == (0, 1)


@EVERY
def test_rule_2_a_lost_answer_ends_in_the_kernels_path(overlay: Datapath, one: Connection) -> None:
    one.answer(overlay)
    expect_pass(one.opener(overlay, SYN), "first_packet_repeated")
    expect_pass(one.answerer(overlay, SYN | ACK), "unknown_flow")
    expect_pass(one.opener(overlay, ACK), "unknown_flow")
    assert tables(overlay) == (0, 0)
    assert overlay.size("silent") == 0
    one.but(port=one.port + 1).open(overlay)


@EVERY
def test_rule_2_who_does_not_answer_is_left_to_the_kernel_for_a_while(overlay: Datapath, one: Connection) -> None:
    one.open(overlay)
    expect_pass(one.opener(overlay, SYN), "first_packet_repeated")
    expect_pass(one.but(port=one.port + 1).opener(overlay, SYN), "silent")
    assert [address for address, _ in overlay.entries("silent")] == [one.workload if one.server else one.remote]
    others = one.but(remote=one.peer_node) if not one.server else one.but(server=False)
    others.open(overlay)


def test_rule_2_an_old_first_packet_is_not_a_repeated_one(overlay: Datapath) -> None:
    IPV4.open(overlay)
    age(overlay, IPV4, seconds=31)
    IPV4.open(overlay)
    assert overlay.size("silent") == 0


def age(overlay: Datapath, one: Connection, seconds: int) -> None:
    workload_port, remote_port = one.ports
    key = {"workload": one.workload, "remote": one.remote, "workload_port": workload_port,
           "remote_port": remote_port, "protocol": 6}  # fmt: skip
    flow = overlay.get("transient", key)
    overlay.put("transient", key, {**flow, "since": flow["since"] - seconds * 10**9})


@EVERY
def test_rule_2_ports_used_again(overlay: Datapath, one: Connection) -> None:
    """While established, while closing, and after a reset."""
    one.establish(overlay)
    expect_redirect(one.opener(overlay, SYN))
    expect_redirect(one.answerer(overlay, ACK))  # a challenge (RFC 5961), or
    expect_redirect(one.answerer(overlay, SYN | ACK))  # the answer to a new connection
    expect_redirect(one.opener(overlay, ACK))
    assert tables(overlay) == (1, 0)
    expect_redirect(one.opener(overlay, FIN | ACK))
    expect_redirect(one.answerer(overlay, FIN | ACK))
    one.establish(overlay)
    assert tables(overlay) == (1, 0)
    expect_redirect(one.opener(overlay, RST))
    assert tables(overlay) == (0, 1)
    one.establish(overlay)
    assert tables(overlay) == (1, 0)


@EVERY
@pytest.mark.parametrize("mode", ["drain", "off"])
def test_rule_3_ports_used_again_while_not_on(overlay: Datapath, one: Connection, mode: str) -> None:
    """The old flow must not catch the replies of a connection that the kernel's path has."""
    one.establish(overlay)
    overlay.mode(mode)
    expect_pass(one.opener(overlay, SYN), "draining" if mode == "drain" else "mode_off")
    expect_pass(one.answerer(overlay, SYN | ACK), "unknown_flow" if mode == "drain" else "mode_off")
    expect_pass(one.opener(overlay, ACK), "unknown_flow" if mode == "drain" else "mode_off")
    overlay.mode("on", session=1 if mode == "drain" else 2)
    expect_pass(one.answerer(overlay, ACK), "unknown_flow")


@EVERY
def test_rule_3_drain_lets_flows_finish(overlay: Datapath, one: Connection) -> None:
    one.establish(overlay)
    overlay.mode("drain")
    expect_redirect(one.opener(overlay, ACK | PSH, b"x"))
    expect_redirect(one.answerer(overlay, FIN | ACK))
    expect_redirect(one.opener(overlay, FIN | ACK))
    expect_redirect(one.answerer(overlay, ACK))
    assert overlay.size("flows") == 0


@EVERY
def test_rule_3_a_new_session_knows_no_old_flow(overlay: Datapath, one: Connection) -> None:
    one.establish(overlay)
    half = one.but(port=one.port + 1)
    half.answer(overlay)
    overlay.mode("off")
    overlay.mode("on", session=2)
    for known in (one, half):
        expect_pass(known.opener(overlay, ACK), "unknown_flow")
        expect_pass(known.answerer(overlay, ACK), "unknown_flow")
        known.establish(overlay)
    assert tables(overlay) == (2, 0)


@EVERY
def test_rule_4_an_expired_lease_is_off_and_a_confirmation_leaves_no_trace(overlay: Datapath, one: Connection) -> None:
    overlay.mode("on", lease=60)
    one.establish(overlay)
    overlay.mode("on", lease=-1)
    expect_pass(one.opener(overlay, ACK), "lease_expired")
    expect_pass(one.answerer(overlay, ACK), "lease_expired")
    expect_pass(one.but(port=one.port + 1).opener(overlay, SYN), "lease_expired")
    overlay.mode("on")
    expect_redirect(one.opener(overlay, ACK))
    assert overlay.get("control", 0)["deadline"] == 0


@EVERY
def test_rule_6_forged_packets_cut_no_connection(overlay: Datapath, one: Connection) -> None:
    """From the uplink, where nobody can tell who sent them. The workload checks sequence numbers; we do not."""
    one.establish(overlay)
    for flags in (SYN, SYN, SYN, FIN | ACK, RST, RST, ACK):
        expect_redirect(one.opener(overlay, flags))
        expect_redirect(one.answerer(overlay, ACK | PSH, b"still there"))


@EVERY
def test_rule_5_errors_about_a_flow_change_nothing(overlay: Datapath, one: Connection) -> None:
    """In every state, and a packet that an error quotes is no answer."""

    def report() -> None:
        expect_redirect(overlay.uplink(icmp_error(one.peer_node, one.outbound(ACK))))

    one.open(overlay)
    report()
    assert one.in_transient(overlay)["state"] == "opening"
    expect_redirect(one.answerer(overlay, SYN | ACK))
    report()
    assert one.in_transient(overlay)["state"] == "answered"
    expect_redirect(one.opener(overlay, ACK))
    before = one.in_flows(overlay)
    report()
    assert one.in_flows(overlay) == before
    expect_redirect(one.opener(overlay, FIN | ACK))
    expect_redirect(one.answerer(overlay, FIN | ACK))
    report()
    assert one.in_transient(overlay)["state"] == "closing"


def test_rule_2_both_ends_open_at_once(overlay: Datapath) -> None:
    """RFC 9293 section 3.5; only where both ports are services."""
    one = IPV4.but(port=8080)
    expect_redirect(overlay.uplink(one.inbound(SYN)))
    expect_redirect(overlay.workload(one.outbound(SYN)))
    expect_redirect(overlay.uplink(one.inbound(SYN | ACK)))
    expect_redirect(overlay.workload(one.outbound(SYN | ACK)))
    assert one.in_flows(overlay)
    expect_redirect(overlay.uplink(one.inbound(ACK)))
