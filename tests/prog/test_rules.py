# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules of the datapath as a table: what went before, a packet -> where it goes, counted as what.

Each row runs for both families and for both roles of the workload, unless it says so.
"""

from __future__ import annotations

import struct

from prog import packets
from prog.kernel import UPLINK, WORKLOAD, Node
from prog.packets import ACK, FIN, PSH, RST, SYN, URG
from prog.rows import (
    DATA,
    FAST,
    Row,
    after,
    again,
    answer,
    answered,
    between,
    between_ports,
    big,
    check,
    device_gone,
    dropped,
    established,
    first,
    frame,
    heartbeat_lost,
    hops,
    inbound,
    ip_with,
    ipv4_with,
    ipv6_with,
    kernel,
    kernel_elsewhere,
    later,
    mapped,
    marked,
    neighbour,
    no_workload,
    opened,
    other_way,
    outbound,
    plain,
    raw,
    replaced_by,
    reply,
    rows,
    sends,
    tick,
    translated,
    translated_port,
    tries,
    untried,
    warm,
    with_mode,
    workload_is,
)
from prog.story import Ends

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.reasons import REASONS

SYN_SEEN = ("syn_in", "syn_out")
ANSWER_SEEN = ("answer_in", "answer_out")
ADMITTED = ("ack_in", "admitted")

RULE_1 = (
    Row("arp", "not_ip", frame(lambda _: packets.ethernet(bytes(46), 0x0806)), (warm,)),
    Row("vlan_tag", "not_ip", frame(lambda one: packets.ethernet(bytes(4) + plain(one), 0x8100)), (warm,)),
    Row("double_vlan_tag", "not_ip", frame(lambda one: packets.ethernet(bytes(8) + plain(one), 0x88A8)), (warm,)),
    Row("icmp", "not_tcp", ip_with(1), (warm,)),
    Row("udp", "not_tcp", ip_with(17), (warm,)),
    Row("sctp", "not_tcp", ip_with(132), (warm,)),
    Row("ip_in_ip", "not_tcp", ip_with(4), (warm,)),
    Row("frame_cut", "malformed", frame(lambda one: packets.frame(plain(one))[:-1]), (warm,)),
    Row("no_flags", "malformed", ip_with(flags=0), (warm,)),
    Row("only_push", "malformed", ip_with(flags=PSH), (warm,)),
    Row("only_fin", "malformed", ip_with(flags=FIN), (warm,)),
    Row("syn_and_fin", "malformed", ip_with(flags=SYN | FIN), (warm,)),
    Row("syn_and_rst", "malformed", ip_with(flags=SYN | RST), (warm,)),
    Row("tcp_header_too_short", "malformed", ip_with(offset=4), (warm,)),
    Row("tcp_header_past_the_end", "malformed", ip_with(offset=6), (warm,)),
    Row("ipv4_in_ipv6_frame", "malformed",
        frame(lambda _: packets.ethernet(packets.tcp("10.244.2.10", "10.244.1.10", 1, 8080, ACK) + bytes(20), 0x86DD))),
    Row("ipv6_in_ipv4_frame", "malformed",
        frame(lambda _: packets.ethernet(packets.tcp("fd00::1", "fd00::2", 1, 8080, ACK), 0x0800))),
    Row("length_past_the_frame", "malformed", ipv4_with(length=41), (warm,), families=(4,)),
    Row("length_less_than_headers", "malformed", ipv4_with(length=39), (warm,), families=(4,)),
    Row("length_zero", "malformed", ipv4_with(length=0), (warm,), families=(4,)),
    Row("payload_length_past_the_frame", "malformed",
        raw(lambda one: packets.tcp(one.ends.remote, one.ends.workload, 40000, 8080, ACK, length=21)),
        roles=(True,), families=(6,)),
    Row("neither_port_a_service", "not_service", lambda one: between_ports(one, 9090)),
    Row("first_packet_from_a_service_port", "not_service",
        lambda one: one.node.send(one.answerer, one.ends.packet(one.answerer, SYN))),
    Row("mark_that_is_not_exempt", FAST, later(mark=0x10), (warm,)),
)  # fmt: skip
RULE_2 = (
    Row("syn", "handshake", first(), events=SYN_SEEN),
    Row("syn_with_options", "handshake", first(options=b"\x02\x04\x05\xb4" + bytes(36)), events=SYN_SEEN),
    Row("syn_again", "handshake", first(sequence=1000), (opened,)),
    Row("syn_that_the_kernel_drops", "handshake", first(), (kernel(change=dropped),), events=("syn_in",)),
    Row("syn_again_after_it_was_lost", "handshake", first(sequence=1000),
        (kernel(change=dropped), opened, kernel(change=hops(1))), events=("syn_out",)),
    Row("syn_translated", "handshake", first(), (kernel(change=translated),), events=("syn_in",)),
    Row("syn_with_translated_port", "handshake", first(), (kernel(change=translated_port),), events=("syn_in",)),
    Row("syn_with_another_tos", "handshake", first(), (kernel(change=marked(0x28)),), events=("syn_in",)),
    Row("syn_with_ecn_taken_off", "handshake", first(tos=2), (kernel(change=marked(0)),), events=SYN_SEEN),
    Row("syn_with_two_hops", "handshake", first(), (kernel(change=hops(2)),), events=("syn_in",)),
    Row("syn_answer", "handshake", answer(), (opened,), events=ANSWER_SEEN),
    Row("syn_answer_again", "handshake", answer(sequence=5000), (answered,), events=("answer_out",)),
    Row("answer_to_nothing", "handshake", answer()),
    Row("answer_to_a_syn_that_was_dropped", "handshake", answer(), (kernel(change=dropped), opened)),
    Row("answer_to_another_number", "handshake", answer(acknowledgement=1002), (opened,)),
    Row("answer_with_another_tos", "handshake",
        lambda one: one.node.send(one.answerer, one.ends.packet(
            one.answerer, SYN | ACK, sequence=5000, acknowledgement=1001, tos=0x28)),
        (opened,), events=ANSWER_SEEN),
    Row("ack", "handshake", later(), (answered,), events=ADMITTED),
    Row("ack_with_data", "handshake", later(DATA, b"x" * 200), (answered,), events=ADMITTED),
    Row("ack_of_a_wrong_number", "unknown_flow", later(acknowledgement=5002), (answered,)),
    Row("ack_with_a_wrong_number", "unknown_flow", later(sequence=1002), (answered,)),
    Row("ack_without_an_answer", "unknown_flow", later(acknowledgement=5001), (opened,)),
    Row("ack_that_the_kernel_drops", "handshake", later(), (answered, kernel(change=dropped)), events=("ack_in",)),
    Row("ack_translated", "handshake", later(), (answered, kernel(change=translated)), events=("ack_in",)),
    Row("ack_with_another_tos", "handshake", later(), (answered, kernel(change=marked(4))), events=("ack_in",)),
    Row("ack_with_two_hops", "handshake", later(), (answered, kernel(change=hops(2))), events=("ack_in",)),
    Row("ack_that_closes", "ending", later(ACK | FIN), (answered,)),
    Row("ack_that_resets", "ending", later(RST), (answered,)),
    Row("data_after_a_lost_ack", "handshake", later(DATA, b"x", sequence=1001),
        (answered, kernel(change=dropped), sends("opener"), kernel(change=hops(1))), events=("admitted",)),
    Row("small_data", FAST, later(), (established,)),
    Row("small_data_back", FAST, reply(), (established,)),
    Row("data", FAST, later(DATA, b"x" * 1000), (warm,)),
    Row("urgent_data", FAST, later(DATA | URG, b"x"), (warm,)),
    Row("data_back", FAST, reply(DATA, b"x" * 1001), (warm,)),
    Row("larger_than_was_seen", "heartbeat", later(DATA, b"x" * 1000), (established,), events=("renewed",)),
    Row("larger_than_was_seen_back", "heartbeat", reply(DATA, b"x" * 1000), (established,), events=("renewed",)),
    Row("unknown_data", "unknown_flow", later(DATA, b"x")),
    Row("unknown_data_back", "unknown_flow", reply(DATA, b"x")),
    Row("unknown_end", "ending", later(FIN | ACK)),
    Row("unknown_reset", "ending", later(RST)),
    Row("end", "ending", later(FIN | ACK), (warm,), events=("finished",)),
    Row("end_that_the_kernel_drops", "ending", later(FIN | ACK), (warm, kernel(change=dropped))),
    Row("reset", "ending", reply(RST | ACK), (warm,), events=("reset",)),
    Row("after_the_end", "heartbeat", later(), (warm, sends("opener", FIN | ACK)), events=("renewed",)),
    Row("after_the_end_once_more", "heartbeat", later(),
        (warm, sends("opener", FIN | ACK), sends("opener")), events=("renewed",)),
    Row("answer_after_the_end", "heartbeat", reply(), (warm, sends("opener", FIN | ACK), sends("answerer")),
        events=("renewed",)),
    # Heartbeats.
    Row("after_half_a_second", FAST, later(), (warm, after(0.5))),
    Row("after_a_second", "heartbeat", later(), (warm, after(1)), events=("renewed",)),
    Row("after_a_second_back", "heartbeat", reply(), (warm, after(1)), events=("renewed",)),
    Row("data_after_a_second", "heartbeat", later(DATA, b"x"), (warm, after(1)), events=("renewed",)),
    Row("renewed", FAST, later(), (warm, after(1), sends("opener"))),
    Row("one_direction_renews_no_other", "heartbeat", reply(), (warm, after(1), sends("opener")), events=("renewed",)),
    Row("heartbeat_dropped", "heartbeat", later(), (warm, after(1), kernel(change=dropped))),
    Row("heartbeat_translated", "heartbeat", later(), (warm, after(1), kernel(change=translated))),
    Row("heartbeat_with_another_tos", "heartbeat", later(), (warm, after(1), kernel(change=marked(0x28)))),
    Row("heartbeat_with_two_hops", "heartbeat", later(), (warm, after(1), kernel(change=hops(2)))),
    Row("heartbeat_elsewhere", "heartbeat", later(), (warm, after(1), kernel_elsewhere),
        events=("renewed", "way_changed")),
    Row("fast_where_it_came_out", FAST, later(), (warm, after(1), kernel_elsewhere, sends("opener"))),
    Row("heartbeat_with_another_mark", "heartbeat", later(), (warm, after(1), kernel(mark=7, priority=3)),
        events=("renewed",)),
    Row("fast_with_that_mark", FAST, later(), (warm, after(1), kernel(mark=7, priority=3), sends("opener"))),
    Row("waiting_for_a_heartbeat", "waiting", later(DATA, b"x"), (warm, after(1), lambda one: one.take(one.opener))),
    Row("the_same_numbers_while_waiting", "waiting", later(), (warm, after(1), lambda one: one.take(one.opener)),
        events=("renewed",)),
    Row("not_waiting_back", FAST, reply(),
        (warm, after(1), sends("answerer"), lambda one: one.take(one.opener))),
    Row("heartbeat_missed_once", "heartbeat", later(), (warm, after(1), heartbeat_lost), events=("renewed",)),
    Row("missed_once_and_renewed", FAST, later(), (warm, after(1), heartbeat_lost, sends("opener"))),
    Row("heartbeat_missed_twice", "heartbeat", later(), (warm, after(1), heartbeat_lost, heartbeat_lost),
        events=("suspended", "renewed")),
    Row("suspended", "heartbeat", later(), (warm, after(1), heartbeat_lost, heartbeat_lost, sends("opener")),
        events=("renewed",)),
    Row("suspended_back", "heartbeat", reply(), (warm, after(1), heartbeat_lost, heartbeat_lost, sends("opener")),
        events=("renewed",)),
    Row("no_longer_suspended", FAST, later(),
        (warm, after(1), heartbeat_lost, heartbeat_lost, sends("opener"), sends("opener"))),
    Row("another_tos", "heartbeat", later(tos=0x28), (warm,), events=("renewed",)),
    Row("another_ecn", FAST, later(tos=2), (warm,)),
    Row("data_again", "heartbeat", later(DATA, b"data", sequence=3000),
        (warm, sends("opener", DATA, b"data", sequence=3000)), events=("renewed",)),
    Row("keepalive", FAST, lambda one: one.send(one.opener, sequence=one.next[one.opener] - 1),
        (warm, sends("opener", DATA, b"data"))),
    Row("idle_for_long", "unknown_flow", later(), (warm, after(86401))),
    Row("idle_not_for_long", "heartbeat", later(), (warm, after(86390)), events=("renewed",)),
    Row("syn_of_the_workload", "heartbeat", reply(), (warm, lambda one: one.send(WORKLOAD, SYN, sequence=77)),
        events=("renewed",), roles=(False,)),
    Row("syn_from_the_uplink_harms_nobody", FAST, reply(), (warm, sends("opener", SYN, sequence=77)), roles=(True,)),
    Row("other_answer_of_the_workload", "heartbeat", later(),
        (warm, sends("answerer", SYN | ACK, sequence=77)), events=("renewed",), roles=(True,)),
    Row("same_answer_of_the_workload", FAST, later(), (warm, sends("answerer", SYN | ACK, sequence=5000)),
        roles=(True,)),
    # Ways that nobody has tried.
    Row("first_on_an_untried_way", FAST, later(), (untried,)),
    Row("second_flow_on_an_untried_way", "unproven",
        lambda one: neighbour(one).send(one.opener), (tries, lambda one: neighbour(one).establish(proven=False))),
    Row("data_again_on_an_untried_way", "unproven",
        lambda one: one.data(one.opener, bytes(100), sequence=one.next[one.opener] - 100), (tries,),
        events=("way_broken",)),
    Row("after_that", "unproven", later(), (tries, again)),
    Row("after_that_for_29_s", "unproven", later(), (tries, again, after(29), sends("opener"))),
    Row("after_that_for_31_s", FAST, later(), (tries, again, after(31), sends("opener"))),
    Row("data_acknowledged_both_ways", FAST, later(),
        (tries, sends("answerer"), sends("answerer", DATA, bytes(50)), sends("answerer", DATA, b"x")),
        events=("way_proven",)),
    Row("data_acknowledged_one_way_for_two_seconds", FAST, later(),
        (tries, sends("answerer"), after(2), sends("opener"), sends("answerer")), events=("way_proven",)),
)  # fmt: skip
RULE_3 = (
    Row("drain_first_packet", "draining", first(), (with_mode("drain"),)),
    Row("drain_known_flow", "heartbeat", later(), (warm, with_mode("drain")), events=("renewed",)),
    Row("drain_known_flow_is_fast", FAST, later(), (warm, with_mode("drain"), sends("opener"))),
    Row("drain_known_flow_is_fast_back", FAST, reply(), (warm, with_mode("drain"), sends("answerer"))),
    Row("drain_half_open_flow", "handshake", answer(), (opened, with_mode("drain")), events=ANSWER_SEEN),
    Row("drain_syn_of_the_workload_suspends", "heartbeat", reply(),
        (warm, with_mode("drain", grows=False), lambda one: one.send(WORKLOAD, SYN, sequence=77)),
        events=("renewed",), roles=(False,)),
    Row("on_again", "handshake", first(), (with_mode("drain"), with_mode("on")), events=SYN_SEEN),
    Row("every_activation_proves_flows_anew", "heartbeat", later(), (warm, with_mode("on")), events=("renewed",)),
    Row("off_and_on", FAST, later(), (warm, with_mode("off"), with_mode("on"), sends("opener"))),
)  # fmt: skip
RULE_4 = (
    Row("lease_expired_first_packet", "lease_expired", first(), (with_mode("on", lease=-0.001),)),
    Row("lease_expired_known_flow", "lease_expired", later(), (warm, with_mode("on", lease=-0.001, grows=False))),
    Row("lease_expired_end", "lease_expired", later(FIN | ACK), (warm, with_mode("on", lease=-0.001, grows=False)),
        events=("finished",)),
    Row("lease_running_first_packet", "handshake", first(), (with_mode("on", lease=60),), events=SYN_SEEN),
    Row("lease_running_known_flow", FAST, later(), (warm, with_mode("on", lease=60, grows=False))),
    Row("confirmed", FAST, later(), (with_mode("on", lease=60), warm, with_mode("on", grows=False))),
)  # fmt: skip
RULE_5 = (
    Row("ttl_1_first_packet", "ttl", first(ttl=1)),
    Row("ttl_1", "ttl", later(ttl=1), (warm,)),
    Row("ttl_1_back", "ttl", reply(ttl=1), (warm,)),
    Row("ttl_0", "ttl", later(ttl=0), (warm,)),
    Row("ttl_2", FAST, later(ttl=2), (warm,)),
    Row("ttl_255", FAST, later(ttl=255), (warm,)),
    Row("as_large_as_was_seen", FAST, later(DATA, bytes(1440)), (warm,), families=(6,)),
    Row("as_large_as_was_seen", FAST, later(DATA, bytes(1460)), (warm,), families=(4,)),
    Row("a_byte_larger", "heartbeat", later(DATA, bytes(1441)), (warm,), events=("renewed",), families=(6,)),
    Row("a_byte_larger", "heartbeat", later(DATA, bytes(1461)), (warm,), events=("renewed",), families=(4,)),
    Row("a_byte_larger_back", "heartbeat", reply(DATA, bytes(1461)), (warm,), events=("renewed",)),
    Row("segments_that_fit", FAST, later(DATA, bytes(2800), gso_size=1400), (warm,)),
    Row("segments_too_large", "heartbeat", later(DATA, bytes(2922), gso_size=1461), (warm,), events=("renewed",)),
    Row("segments_as_large_as_seen_before", FAST, later(DATA, bytes(2922), gso_size=1461),
        (warm, sends("opener", DATA, bytes(2922), gso_size=1461))),
    Row("big_tcp", FAST, raw(big, gso_size=1400), (warm,)),
    Row("big_tcp_without_segments", "malformed", raw(big), (warm,)),
    Row("largest_is_learned_anew_with_each_heartbeat", "heartbeat", later(DATA, bytes(1000)),
        (warm, after(1), sends("opener")), events=("renewed",)),
    Row("first_fragment", "fragment", ipv4_with(fragment=0x2000), (warm,), families=(4,)),
    Row("later_fragment", "fragment", ipv4_with(fragment=0x0001), (warm,), families=(4,)),
    Row("may_be_fragmented", FAST, ipv4_with(fragment=0), (warm,), families=(4,)),
    Row("ip_options", "malformed", ipv4_with(options=b"\x94\x04\0\0"), (warm,), families=(4,)),
    Row("fragment_header", "fragment", ipv6_with(44, struct.pack("!BHI", 0, 1, 7)), (warm,), families=(6,)),
    Row("hop_by_hop_header", "not_tcp", ipv6_with(0, bytes(7)), (warm,), families=(6,)),
    Row("destination_options_header", "not_tcp", ipv6_with(60, bytes(7)), (warm,), families=(6,)),
    Row("routing_header", "not_tcp", ipv6_with(43, bytes(7)), (warm,), families=(6,)),
    Row("padded_frame", FAST, raw(lambda one: plain(one) + bytes(6)), (warm,)),
    Row("padded_heartbeat", "heartbeat", raw(lambda one: plain(one) + bytes(6)), (warm, after(1)),
        events=("renewed",)),
    Row("padded_with_more", FAST, raw(lambda one: plain(one) + b"\xff" * 600), (warm,)),
    Row("frame_for_another_host", "other_host",
        lambda one: one.node.take_frame(one.opener, packets.frame(plain(one), "02:00:00:00:47:99"),
                                        "ens47f1" if one.opener == UPLINK else "cali1"), (warm,)),
)  # fmt: skip
RULE_6 = (
    Row("source_of_another_workload", "spoofed", first(interface="cali2"), roles=(False,)),
    Row("source_of_another_workload_known_flow", "spoofed", outbound(interface="cali2"), (warm,)),
    Row("forged_first_packet_of_a_known_flow", "spoofed", outbound(SYN, interface="cali2"), (warm,)),
    Row("forged_answer", "spoofed", answer(interface="cali2"), (opened,), roles=(True,)),
    Row("forged_ack", "unknown_flow", later(interface="cali2"), (answered,), roles=(False,)),
    Row("forged_reset_of_a_known_flow", "ending", outbound(RST, interface="cali2"), (warm, kernel(change=dropped)),
        roles=(False,)),
    Row("source_of_the_node", "spoofed", between(first(), workload="node"), roles=(False,)),
    Row("source_of_a_peer", "spoofed", between(first(), workload="peer_node"), roles=(False,)),
    Row("source_from_outside", "spoofed", between(first(), workload="outside"), roles=(False,)),
    Row("workload_address_at_the_uplink", "spoofed", between(first(), remote="other"), roles=(True,)),
    Row("workload_of_the_same_node", "same_node", between(first(), remote="other"), roles=(False,)),
    Row("not_a_listed_peer", "not_peer", between(first(), remote="outside")),
    Row("own_address", "host_address", between(first(), remote="node")),
    Row("peer_node_itself", "handshake", between(first(), remote="peer_node"), events=SYN_SEEN),
    Row("not_a_workload", "not_workload", between(first(), workload="outside"), roles=(True,)),
    Row("translated_service_address", "not_workload", between(first(), workload="node"), roles=(True,)),
    Row("mapped_address", "malformed", raw(mapped), families=(4,)),
    Row("another_uplink", "heartbeat", inbound(interface="ens48f1"), (warm,), events=("renewed",)),
    Row("another_uplink_is_followed", FAST, inbound(interface="ens48f1"),
        (warm, lambda one: one.send(UPLINK, interface="ens48f1"))),
    Row("comes_out_to_another_workload", "heartbeat", inbound(), (warm, after(1), kernel(interface="cali2")),
        roles=(True,)),
    Row("answer_comes_out_to_another_workload", "handshake", answer(),
        (opened, lambda one: other_way(one, interface="cali2")), events=("answer_in",), roles=(False,)),
    Row("admitted_only_to_the_workload_of_the_map", "handshake", later(), (answered, workload_is("cali2")),
        events=("ack_in",)),
    Row("admitted_only_to_a_workload", "handshake", later(), (answered, no_workload), events=("ack_in",)),
)  # fmt: skip
RULE_7 = (
    Row("workload_interface_gone", "handshake", first(), (device_gone("cali1"),), roles=(True,), events=("syn_in",)),
    Row("workload_interface_gone_known_flow", "interface_gone", inbound(), (warm, device_gone("cali1"), tick)),
    Row("uplink_gone", "handshake", first(), (device_gone("ens47f1"),), roles=(False,), events=("syn_in",)),
    Row("uplink_gone_known_flow", "interface_gone", outbound(), (warm, device_gone("ens47f1"), tick)),
    Row("index_of_another_interface", "interface_gone", inbound(), (warm, replaced_by("cali1", "cali3"), tick)),
)  # fmt: skip


@rows(RULE_1)
def test_rule_1_any_doubt_takes_the_kernels_path(row: Row, node: Node, ends: Ends) -> None:
    check(row, node, ends)


@rows(RULE_2)
def test_rule_2_the_kernel_admits(row: Row, node: Node, ends: Ends) -> None:
    check(row, node, ends)


@rows(RULE_3)
def test_rule_3_modes(row: Row, node: Node, ends: Ends) -> None:
    check(row, node, ends)


@rows(RULE_4)
def test_rule_4_lease(row: Row, node: Node, ends: Ends) -> None:
    check(row, node, ends)


@rows(RULE_5)
def test_rule_5_the_packet_that_the_kernel_would_have_sent(row: Row, node: Node, ends: Ends) -> None:
    check(row, node, ends)


@rows(RULE_6)
def test_rule_6_no_spoofing_and_no_open_door(row: Row, node: Node, ends: Ends) -> None:
    check(row, node, ends)


@rows(RULE_7)
def test_rule_7_stale_entries_carry_nothing(row: Row, node: Node, ends: Ends) -> None:
    check(row, node, ends)


def test_every_reason_has_a_row() -> None:
    """``exempt`` needs a build of its own: test_builds.py."""
    table = (*RULE_1, *RULE_2, *RULE_3, *RULE_4, *RULE_5, *RULE_6, *RULE_7)
    produced = {row.reason for row in table} | {event for row in table for event in row.events}
    assert {name for name, __ in REASONS.values()} == produced - {FAST} | {"to_uplink", "to_workload", "exempt"}
