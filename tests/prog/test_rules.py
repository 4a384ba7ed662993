# SPDX-License-Identifier: GPL-3.0-or-later
"""The rules of the datapath as a table: (packet, maps, mode) -> (verdict, bytes changed, counter).

Each row runs for IPv4 and IPv6, and where it says so for one of them.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest
from prog import datapath, network, packets
from prog.datapath import Datapath, Object
from prog.packets import ACK, FIN, PSH, RST, SYN, URG
from prog.rows import (
    Row,
    answered,
    both_ways,
    check,
    closed,
    cut,
    device_gone,
    error,
    established,
    first,
    frame,
    ip_with,
    ipv4_with,
    ipv6_with,
    later,
    opened,
    peer_is,
    replaced_by,
    reply,
    rows,
    segment_with,
    was_silent,
    with_mode,
    with_remote,
    workload_is,
)
from prog.story import BOTH, IPV4, IPV6, Connection, expect_pass, expect_redirect

from ansible_collections.ebpf.overlay.plugins.module_utils._reasons import REASONS

RULE_1 = (
    Row("arp", "not_ip", frame(lambda _: packets.ethernet(bytes(46), 0x0806))),
    Row("vlan_tag", "not_ip", frame(lambda one: packets.ethernet(bytes(4) + one.inbound(SYN), 0x8100))),
    Row("double_vlan_tag", "not_ip", frame(lambda one: packets.ethernet(bytes(8) + one.inbound(SYN), 0x88A8))),
    Row("udp", "not_tcp", both_ways(ip_with(17))),
    Row("sctp", "not_tcp", both_ways(ip_with(132))),
    Row("ip_in_ip", "not_tcp", both_ways(ip_with(4))),
    Row("tcp_header_cut", "malformed", both_ways(cut)),
    Row("no_flags", "malformed", both_ways(segment_with(0))),
    Row("syn_and_fin", "malformed", both_ways(segment_with(SYN | FIN))),
    Row("syn_and_rst", "malformed", both_ways(segment_with(SYN | RST))),
    Row("tcp_header_too_short", "malformed", both_ways(segment_with(offset=4))),
    Row("tcp_header_past_the_end", "malformed", both_ways(segment_with(offset=6))),
    Row("ipv4_in_ipv6_frame", "malformed",
        frame(lambda _: packets.ethernet(IPV4.inbound(SYN) + bytes(20), 0x86DD)), families=(6,)),
    Row("ipv6_in_ipv4_frame", "malformed", frame(lambda _: packets.ethernet(IPV6.inbound(SYN), 0x0800)),
        families=(4,)),
    Row("length_past_the_frame", "malformed", both_ways(ipv4_with(length=41)), families=(4,)),
    Row("length_less_than_headers", "malformed", both_ways(ipv4_with(length=39)), families=(4,)),
    Row("length_zero", "malformed", both_ways(ipv4_with(length=0)), families=(4,)),
    Row("neither_port_a_service", "not_service", lambda overlay, one: one.but(service=9090).opener(overlay, SYN)),
    Row("service_port_at_the_wrong_end", "not_service",
        lambda overlay, one: one.but(server=not one.server).answerer(overlay, SYN)),
)  # fmt: skip
RULE_2 = (
    Row("first_packet", "to_workload", first(), events=("flow_opened",)),
    Row("first_packet_with_options", "to_workload", first(options=b"\x02\x04\x05\xb4" + bytes(36)),
        events=("flow_opened",)),
    Row("answer", "to_workload", reply(SYN | ACK), (opened,)),
    Row("end_of_handshake", "to_workload", later(ACK), (answered,), events=("flow_established", "transient_removed")),
    Row("end_of_handshake_with_data", "to_workload", later(ACK | PSH, b"x" * 200), (answered,),
        events=("flow_established", "transient_removed")),
    Row("end_of_handshake_that_closes", "to_workload", later(ACK | FIN), (answered,),
        events=("flow_established", "transient_removed")),
    Row("data", "to_workload", later(ACK | PSH, b"x" * 1000), (established,)),
    Row("urgent_data", "to_workload", later(ACK | PSH | URG, b"x"), (established,)),
    Row("data_back", "to_workload", reply(ACK | PSH, b"x" * 1001), (established,)),
    Row("first_fin", "to_workload", later(FIN | ACK), (established,)),
    Row("last_acknowledgement", "to_workload", later(ACK), (closed,)),
    Row("reset", "to_workload", reply(RST | ACK), (established,), events=("flow_reset", "flow_closed")),
    Row("refused", "to_workload", reply(RST | ACK), (opened,), events=("flow_reset",)),
    Row("answer_of_an_unknown_flow", "unknown_flow", reply(SYN | ACK)),
    Row("data_of_an_unknown_flow", "unknown_flow", later(ACK | PSH, b"x")),
    Row("data_back_of_an_unknown_flow", "unknown_flow", reply(ACK | PSH, b"x")),
    Row("fin_of_an_unknown_flow", "unknown_flow", later(FIN)),
    Row("reset_of_an_unknown_flow", "unknown_flow", later(RST)),
    Row("flow_of_an_earlier_session", "unknown_flow", later(), (established, with_mode("on", session=2))),
    Row("translated_destination", "not_workload",
        lambda overlay, one: overlay.uplink(one.but(workload=one.node).inbound(SYN)), roles=(True,)),
    Row("translated_service_address", "not_peer", with_remote("outside"), roles=(False,)),
    Row("first_packet_repeated", "first_packet_repeated", first(), (opened,), events=("transient_removed",)),
    Row("first_packet_repeated_after_an_answer", "first_packet_repeated", first(), (answered,),
        events=("transient_removed",)),
    Row("after_silence", "silent", first(), (was_silent,)),
    Row("ports_used_again_while_established", "to_workload", first(), (established,), events=("flow_renewed",)),
    Row("ports_used_again_after_closing", "to_workload", first(), (closed,),
        events=("flow_opened", "transient_removed")),
)  # fmt: skip
RULE_3 = (
    Row("off_first_packet", "mode_off", first(), (with_mode("off"),)),
    Row("off_known_flow", "mode_off", later(), (established, with_mode("off"))),
    Row("off_error", "mode_off", error(), (established, with_mode("off"))),
    Row("drain_first_packet", "draining", first(), (with_mode("drain"),)),
    Row("drain_known_flow", "to_workload", later(), (established, with_mode("drain"))),
    Row("drain_known_flow_back", "to_workload", reply(), (established, with_mode("drain"))),
    Row("drain_half_open_flow", "to_workload", reply(SYN | ACK), (opened, with_mode("drain"))),
    Row("drain_ports_used_again", "draining", first(), (established, with_mode("drain")), events=("flow_replaced",)),
    Row("drain_replaced_flow", "unknown_flow", reply(),
        (established, with_mode("drain"), lambda overlay, one: one.opener(overlay, SYN))),
    Row("on_again", "to_workload", first(), (with_mode("drain"), with_mode("on")), events=("flow_opened",)),
)  # fmt: skip
RULE_4 = (
    Row("lease_expired_first_packet", "lease_expired", first(), (with_mode("on", lease=-0.001),)),
    Row("lease_expired_known_flow", "lease_expired", later(), (established, with_mode("on", lease=-0.001))),
    Row("lease_expired_error", "lease_expired", error(), (established, with_mode("on", lease=-0.001))),
    Row("lease_running_first_packet", "to_workload", first(), (with_mode("on", lease=60),), events=("flow_opened",)),
    Row("lease_running_known_flow", "to_workload", later(), (established, with_mode("on", lease=60))),
    Row("confirmed", "to_workload", later(), (with_mode("on", lease=60), established, with_mode("on"))),
)  # fmt: skip
RULE_5 = (
    Row("ttl_1_first_packet", "ttl", first(ttl=1)),
    Row("ttl_1", "ttl", later(ttl=1), (established,)),
    Row("ttl_1_back", "ttl", reply(ttl=1), (established,)),
    Row("ttl_0", "ttl", later(ttl=0), (established,)),
    Row("ttl_2", "to_workload", later(ttl=2), (established,)),
    Row("ttl_255", "to_workload", later(ttl=255), (established,)),
    Row("as_big_as_the_way", "to_workload", later(ACK, bytes(1440)), (established,), families=(6,)),
    Row("as_big_as_the_way", "to_workload", later(ACK, bytes(1460)), (established,), families=(4,)),
    Row("too_big", "too_big", later(ACK, bytes(1461)), (established,)),
    Row("too_big_back", "too_big", reply(ACK, bytes(1461)), (established,)),
    Row("segments_that_fit", "to_workload", later(ACK, bytes(2800), gso_size=1400), (established,)),
    Row("segments_too_big", "too_big", later(ACK, bytes(2922), gso_size=1461), (established,)),
    Row("first_packet_with_much_data", "too_big", first(payload=bytes(600))),
    Row("error_about_a_known_flow", "icmp_to_workload", error(), (established,)),
    Row("error_about_a_flow_being_opened", "icmp_to_workload", error(), (opened,)),
    Row("error_about_a_flow_being_closed", "icmp_to_workload", error(), (closed,)),
    Row("error_time_exceeded", "icmp_to_workload", error(kind=11), (established,), families=(4,)),
    Row("error_parameter_problem", "icmp_to_workload", error(kind=12), (established,), families=(4,)),
    Row("error_unreachable", "icmp_to_workload", error(kind=1), (established,), families=(6,)),
    Row("error_time_exceeded", "icmp_to_workload", error(kind=3), (established,), families=(6,)),
    Row("error_parameter_problem", "icmp_to_workload", error(kind=4), (established,), families=(6,)),
    Row("error_quoting_much", "icmp_to_workload", error(quote=20), (established,)),
    Row("error_about_an_unknown_flow", "unknown_flow", error()),
    Row("error_with_ttl_1", "ttl", error(ttl=1), (established,)),
    Row("error_to_somebody_else", "malformed",
        lambda overlay, one: overlay.uplink(packets.icmp_error(one.peer_node, one.outbound(ACK), to=one.other)),
        (established,)),
    Row("error_quoting_too_little", "not_tcp", error(quote=3), (established,)),
    Row("echo", "not_tcp", error(kind=8), (established,), families=(4,)),
    Row("redirect_message", "not_tcp", error(kind=5), (established,), families=(4,)),
    Row("echo", "not_tcp", error(kind=128), (established,), families=(6,)),
    Row("error_from_a_workload", "not_tcp",
        lambda overlay, one: overlay.workload(packets.icmp_error(one.workload, one.inbound(ACK))), (established,)),
    Row("first_fragment", "fragment", both_ways(ipv4_with(fragment=0x2000)), families=(4,)),
    Row("later_fragment", "fragment", both_ways(ipv4_with(fragment=0x0001)), families=(4,)),
    Row("may_be_fragmented", "to_workload", both_ways(ipv4_with(fragment=0)), events=("flow_opened",), families=(4,)),
    Row("ip_options", "malformed", both_ways(ipv4_with(options=b"\x94\x04\0\0")), families=(4,)),
    Row("fragment_header", "fragment", both_ways(ipv6_with(44, struct.pack("!BHI", 0, 1, 7))), families=(6,)),
    Row("hop_by_hop_header", "not_tcp", both_ways(ipv6_with(0, bytes(7))), families=(6,)),
    Row("destination_options_header", "not_tcp", both_ways(ipv6_with(60, bytes(7))), families=(6,)),
    Row("routing_header", "not_tcp", both_ways(ipv6_with(43, bytes(7))), families=(6,)),
    Row("frame_for_another_host", "other_host",
        lambda overlay, one: overlay.run("from_uplink", packets.frame(one.inbound(SYN), "02:00:00:00:47:99"),
                                         "ens47f1", address=False), roles=(True,)),
)  # fmt: skip
RULE_6 = (
    Row("source_of_another_workload", "spoofed", lambda overlay, one: overlay.workload(one.outbound(SYN), "cali2"),
        roles=(False,)),
    Row("source_of_another_workload_known_flow", "spoofed",
        lambda overlay, one: overlay.workload(one.outbound(ACK), "cali2"), (established,)),
    Row("forged_first_packet_of_a_known_flow", "spoofed",
        lambda overlay, one: overlay.workload(one.outbound(SYN), "cali2"), (established,)),
    Row("forged_reset_of_a_known_flow", "spoofed",
        lambda overlay, one: overlay.workload(one.outbound(RST), "cali2"), (established,)),
    Row("source_of_the_node", "spoofed", lambda overlay, one: one.but(workload=one.node).opener(overlay, SYN),
        roles=(False,)),
    Row("source_of_a_peer", "spoofed", lambda overlay, one: one.but(workload=one.peer_node).opener(overlay, SYN),
        roles=(False,)),
    Row("source_from_outside", "spoofed", lambda overlay, one: one.but(workload=one.outside).opener(overlay, SYN),
        roles=(False,)),
    Row("workload_address_at_the_uplink", "spoofed", with_remote("other"), roles=(True,)),
    Row("workload_of_the_same_node", "same_node", with_remote("other"), roles=(False,)),
    Row("not_a_listed_peer", "not_peer", with_remote("outside")),
    Row("own_address", "host_address", with_remote("node")),
    Row("peer_node_itself", "to_workload", with_remote("peer_node"), events=("flow_opened",)),
    Row("not_a_workload", "not_workload", lambda overlay, one: one.but(workload=one.outside).opener(overlay, SYN),
        roles=(True,)),
    Row("another_uplink", "wrong_uplink", lambda overlay, one: overlay.uplink(one.inbound(SYN), "ens48f1"),
        roles=(True,)),
    Row("mapped_address", "malformed",
        lambda overlay, one: overlay.uplink(
            packets.tcp(f"::ffff:{IPV4.remote}", f"::ffff:{IPV4.workload}", 40000, 8080, SYN)
            if one.server else
            packets.tcp(f"::ffff:{IPV4.remote}", f"::ffff:{IPV4.workload}", 8080, 40000, ACK)), families=(6,)),
    Row("error_to_a_mapped_address", "malformed",
        lambda overlay, one: overlay.uplink(packets.icmp_error(
            one.peer_node, packets.tcp(f"::ffff:{IPV4.workload}", f"::ffff:{IPV4.remote}", 8080, 40000, ACK))),
        (lambda overlay, _: IPV4.establish(overlay),), families=(6,), roles=(True,)),
)  # fmt: skip
RULE_7 = (
    Row("workload_interface_gone", "interface_gone", first(), (device_gone("cali1"),)),
    Row("workload_interface_gone_known_flow", "interface_gone",
        lambda overlay, one: overlay.uplink(one.inbound(ACK)), (established, device_gone("cali1"))),
    Row("uplink_gone", "interface_gone", first(), (device_gone("ens47f1"),)),
    Row("uplink_gone_known_flow", "interface_gone",
        lambda overlay, one: overlay.workload(one.outbound(ACK)), (established, device_gone("ens47f1"))),
    Row("index_of_another_interface", "interface_gone", first(), (replaced_by("cali1", "cali3"),)),
    Row("map_names_another_interface", "route_differs", first(), (workload_is("cali2"),), roles=(True,)),
    Row("map_names_another_next_hop", "route_differs", first(), (peer_is(next_hop="198.18.0.99"),), families=(4,)),
    Row("map_names_another_next_hop", "route_differs", first(), (peer_is(next_hop="fd00:198:18::99"),), families=(6,)),
    Row("map_says_on_link", "route_differs", first(), (peer_is(),)),
    Row("map_names_another_uplink", "route_differs", first(), (peer_is("ens48f1", "198.18.0.12"),), roles=(False,),
        families=(4,)),
    Row("no_route_back", "route_differs", with_remote("outside"), (peer_is(address="outside"),)),
    Row("stale_map_for_ports_used_again", "route_differs", first(), (established, peer_is()),
        events=("flow_replaced",)),
)  # fmt: skip


@rows(RULE_1)
def test_rule_1_any_doubt_takes_the_kernels_path(row: Row, overlay: Datapath, connection: Connection) -> None:
    check(row, overlay, connection)


@rows(RULE_2)
def test_rule_2_flows_from_their_first_packet(row: Row, overlay: Datapath, connection: Connection) -> None:
    check(row, overlay, connection)


@rows(RULE_3)
def test_rule_3_modes(row: Row, overlay: Datapath, connection: Connection) -> None:
    check(row, overlay, connection)


@rows(RULE_4)
def test_rule_4_lease(row: Row, overlay: Datapath, connection: Connection) -> None:
    check(row, overlay, connection)


@rows(RULE_5)
def test_rule_5_looks_like_ip_forwarding(row: Row, overlay: Datapath, connection: Connection) -> None:
    check(row, overlay, connection)


@rows(RULE_6)
def test_rule_6_no_spoofing_and_no_open_door(row: Row, overlay: Datapath, connection: Connection) -> None:
    check(row, overlay, connection)


@rows(RULE_7)
def test_rule_7_stale_entries_make_no_flow(row: Row, overlay: Datapath, connection: Connection) -> None:
    check(row, overlay, connection)


def test_rule_6_forged_packets_leave_the_flow_as_it_was(overlay: Datapath) -> None:
    for one in BOTH:
        one.establish(overlay)
        before = one.in_flows(overlay)
        for flags in (SYN, RST, FIN | ACK, ACK):
            expect_pass(overlay.workload(one.outbound(flags), "cali2"), "spoofed")
        assert one.in_flows(overlay) == before
        assert overlay.size("silent") == 0


@pytest.mark.parametrize("one", BOTH, ids=("ipv4", "ipv6"))
@pytest.mark.parametrize("server", [True, False], ids=("server", "client"))
def test_rule_5_every_ttl_and_checksum(overlay: Datapath, one: Connection, server: bool) -> None:
    """Also where the sum wraps around (RFC 1624)."""
    one = one.but(server=server)
    one.establish(overlay)
    for ttl in range(2, 256):
        expect_redirect(one.opener(overlay, ACK, bytes(ttl), ttl=ttl))
        expect_redirect(one.answerer(overlay, ACK, bytes(ttl), ttl=ttl))


def test_rule_5_the_checksum_wraps_around_right(overlay: Datapath) -> None:
    """Where adding to it carries, and where it becomes zero (RFC 1624 section 3)."""
    IPV4.establish(overlay)
    segment = packets.tcp_segment(IPV4.remote, IPV4.workload, 40000, 8080, ACK)
    checksums = set()
    for identification in range(65536):
        packet = packets.ipv4(IPV4.remote, IPV4.workload, packets.TCP, segment, identification=identification)
        checksum = int.from_bytes(packet[10:12], "big")
        if checksum >> 8 in (0xFE, 0xFF) or checksum & 0xFF in (0, 0xFF):
            checksums.add(checksum)
            expect_redirect(overlay.uplink(packet))
    assert {0xFEFF, 0xFF00, 0xFFFE, 0x0000} <= checksums


def test_rule_5_a_smaller_mtu_of_the_route_makes_no_flow(overlay: Datapath) -> None:
    """A locked one: bpf_fib_lookup sees no others (ip_mtu_from_fib_result, ip6_mtu_from_fib6)."""
    for one, remote, next_hop in ((IPV4, "10.244.4.10", "198.18.0.14"),
                                  (IPV6, "fd00:10:244:4::10", "fd00:198:18::14")):  # fmt: skip
        for server in (True, False):
            other = one.but(remote=remote, server=server)
            peer_is(next_hop=next_hop)(overlay, other)
            expect_pass(other.opener(overlay, SYN), "route_differs")


def test_rule_5_the_live_mtu_counts(overlay: Datapath) -> None:
    """With OVERLAY_CHECK_MTU a change is seen by flows that are there already."""
    for one in BOTH:
        one.establish(overlay)
    network.ip("link", "set", "cali1", "mtu", "1400")
    try:
        for one in BOTH:
            size = 1400 - (60 if one.family == 6 else 40)
            expect_redirect(overlay.uplink(one.inbound(ACK, bytes(size))))
            expect_pass(overlay.uplink(one.inbound(ACK, bytes(size + 1))), "too_big")
            expect_redirect(overlay.workload(one.outbound(ACK, bytes(size + 1))))
    finally:
        network.ip("link", "set", "cali1", "mtu", "1500")


def test_rule_5_without_asking_the_kernel_the_mtu_of_the_map_counts(
    build: Callable[..., Object], interfaces: Any
) -> None:
    overlay = Datapath(build(OVERLAY_CHECK_MTU=0), interfaces)
    datapath.fill(overlay)
    for one in BOTH:
        peer_is(next_hop=datapath.PEERS["10.244.2.0/24" if one.family == 4 else "fd00:10:244:2::/64"], mtu=1300)(
            overlay, one
        )
        one.establish(overlay)
        size = 1300 - (60 if one.family == 6 else 40)
        expect_redirect(overlay.workload(one.outbound(ACK, bytes(size))))
        expect_pass(overlay.workload(one.outbound(ACK, bytes(size + 1))), "too_big")
        expect_redirect(overlay.uplink(one.inbound(ACK, bytes(size + 1))))


def test_rule_7_a_next_hop_of_the_other_family_makes_no_flow(overlay: Datapath) -> None:
    """RFC 5549: an IPv4 route by an IPv6 next hop."""
    one = IPV4.but(remote="10.244.3.10")
    for next_hop in ("fd00:198:18::13", "253.0.1.152"):  # as IPv4, its last and its first bytes
        peer_is(next_hop=next_hop)(overlay, one)
        expect_pass(one.opener(overlay, SYN), "route_differs")


def test_rule_7_an_interface_that_goes_away_leaves_the_map_by_itself(overlay: Datapath) -> None:
    network.ip("link", "add", "cali9", "type", "veth", "peer", "name", "pod9")
    index = socket.if_nametoindex("cali9")
    overlay.put("devices", index % 65536, index)
    assert overlay.get("devices", index % 65536) == index
    network.ip("link", "delete", "cali9")
    assert overlay.get("devices", index % 65536) is None


def test_rule_8_both_families_meet_in_one_key(overlay: Datapath) -> None:
    for one in BOTH:
        one.establish(overlay)
    keys = [key for key, _ in overlay.entries("flows")]
    assert sorted(key["workload"] for key in keys) == sorted(one.workload for one in BOTH)


@pytest.mark.parametrize("way", [datapath.PLAIN, datapath.NEIGH, datapath.PEER], ids=("plain", "neigh", "peer"))
def test_rule_9_every_kind_of_redirect(build: Callable[..., Object], interfaces: Any, way: int) -> None:
    overlay = Datapath(build(OVERLAY_CHECK_MTU=1, OVERLAY_REDIRECT=way), interfaces)
    datapath.fill(overlay)
    for one in BOTH:
        for server in (True, False):
            one.but(server=server, port=41000).establish(overlay)


def test_every_reason_has_a_row() -> None:
    """Those that need a small table are in test_sweep.py."""
    table = (*RULE_1, *RULE_2, *RULE_3, *RULE_4, *RULE_5, *RULE_6, *RULE_7)
    produced = {row.reason for row in table} | {event for row in table for event in row.events}
    assert {name for name, _ in REASONS} == produced | {"to_uplink", "flows_full", "flow_swept"}
