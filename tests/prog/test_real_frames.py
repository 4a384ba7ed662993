# SPDX-License-Identifier: GPL-3.0-or-later
"""Frames that a test run cannot make: they come in by a real interface, with the program attached to it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from prog import packets
from prog.datapath import Datapath
from prog.packets import ACK, SYN
from prog.story import BOTH, Connection

from ansible_collections.ebpf.overlay.plugins.module_utils import _bpf_syscall as bpf


@pytest.fixture
def wire(overlay: Datapath) -> Iterator[socket.socket]:
    """The other end of the uplink's cable."""
    program, uplink = overlay.object.descriptors["from_uplink"], overlay.interfaces["ens47f1"]
    link = bpf.link_create_tcx(program, uplink.ifindex, bpf.ATTACH_TCX_INGRESS)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind(("wire1", 0))
        yield sender
    os.close(link)


def sent(overlay: Datapath, wire: socket.socket, frame: bytes) -> dict[str, int]:
    """What one frame is counted as. The neighbours talk too, so that other frames may be counted as not_tcp."""
    reasons = ("not_ip", "malformed", "not_service", "to_workload", "unknown_flow")
    before = overlay.totals(reasons)
    wire.send(packets.mac(overlay.interfaces["ens47f1"].mac) + frame[6:])
    after = overlay.totals(reasons)
    return {reason: after[reason] - before[reason] for reason in reasons if after[reason] != before[reason]}


@pytest.mark.parametrize("one", BOTH, ids=("ipv4", "ipv6"))
def test_rule_5_vlan_tags_take_the_stack(overlay: Datapath, wire: socket.socket, one: Connection) -> None:
    """The kernel takes the tag out of the frame before the program sees it."""
    plain = packets.frame(one.inbound(SYN))
    tagged = plain[:12] + b"\x81\x00\x00\x07" + plain[12:]
    assert sent(overlay, wire, tagged) == {"not_ip": 1}
    assert sent(overlay, wire, plain) == {"to_workload": 1}


@pytest.mark.parametrize("one", BOTH, ids=("ipv4", "ipv6"))
def test_rule_1_frames_cut_anywhere_take_the_stack(overlay: Datapath, wire: socket.socket, one: Connection) -> None:
    whole = packets.frame(one.inbound(ACK, b"data"))
    headers = len(whole) - 4
    one.establish(overlay)
    for length in range(packets.ETHERNET + 1, len(whole)):
        assert sent(overlay, wire, whole[:length]) == {"malformed": 1}, (length, headers)
    assert sent(overlay, wire, whole) == {"to_workload": 1}
