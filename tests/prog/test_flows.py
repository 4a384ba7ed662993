# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of a flow."""

from __future__ import annotations

import pytest
from prog.kernel import UPLINK, WORKLOAD, Node
from prog.packets import ACK, FIN, PSH, RST, SYN
from prog.passing_time import let_pass
from prog.story import EVERY, NAMES, Connection, Ends, expect_fast, expect_kernel

every = pytest.mark.parametrize("ends", EVERY, ids=NAMES)


@every
def test_rule_2_from_the_handshake_to_the_end(node: Node, ends: Ends) -> None:
    one = Connection(node, ends).warm()
    for _ in range(3):
        expect_fast(one.data(one.opener, b"question"))
        expect_fast(one.data(one.answerer, b"answer"))
    let_pass(node.overlay, 1)
    for direction in (UPLINK, WORKLOAD):
        trip = expect_kernel(one.data(direction), "heartbeat")
        assert trip.events == {"renewed": 1}
        expect_fast(one.data(direction))
    expect_kernel(one.send(one.opener, FIN | ACK), "ending")
