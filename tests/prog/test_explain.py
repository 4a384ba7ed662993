# SPDX-License-Identifier: GPL-3.0-or-later
"""What overlayctl explains of a new connection is what the programs do with its SYN.

``OVERLAY_SOAK=1`` takes ten thousand connections, the normal run some hundreds. A failure prints its seed.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping

import pytest
from hypothesis import event, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from prog import packets
from prog.conftest import DEFAULT, SOAK
from prog.datapath import Datapath, Object, fill
from prog.kernel import UPLINK, WORKLOAD, Node
from prog.network import Interface
from prog.packets import SYN
from prog.passing_time import let_pass
from prog.story import BOTH, Connection, Ends, expect_fast

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.control import jiffies_per_second
from ansible_collections.ebpf.overlay.plugins.module_utils._node.admission import ADMITTED, walk
from ansible_collections.ebpf.overlay.plugins.module_utils._node.explain import look
from ansible_collections.ebpf.overlay.plugins.module_utils._node.flow_states import suspended
from ansible_collections.ebpf.overlay.plugins.module_utils._node.live import jiffies

COUNT = 10_000 if SOAK else 500
SEED = int(os.environ.get("OVERLAY_SEED") or random.SystemRandom().randrange(2**32))
WHO = st.sampled_from(("workload", "workload", "other", "remote", "remote", "node", "peer_node", "outside"))
PORT = st.one_of(st.just(8080), st.just(8080), st.integers(1, 65535))


@pytest.fixture(scope="module")
def overlay(build: Callable[..., Object], interfaces: Mapping[str, Interface]) -> Datapath:
    made = Datapath(build(**DEFAULT), interfaces)
    fill(made)
    return made


@seeded(SEED)
@settings(max_examples=COUNT, deadline=None, database=None)
@given(
    ends=st.sampled_from(BOTH), client=WHO, server=WHO, ports=st.tuples(PORT, PORT),
    mode=st.sampled_from(("on",) * 6 + ("drain", "off")), lease=st.sampled_from((None,) * 6 + (60.0, -1.0)),
)  # fmt: skip
def test_the_rule_that_decides_is_the_reason_that_is_counted(
    overlay: Datapath, ends: Ends, client: str, server: str, ports: tuple[int, int], mode: str, lease: float | None
) -> None:
    one, two = getattr(ends, client), getattr(ends, server)
    overlay.mode(mode, lease=lease)
    overlay.clear("pending", "pending_out")
    seen = look(overlay.get, one, two, ports[1], ports[0], time.monotonic_ns())
    found = walk(seen, one, two, ports[1])
    interface = seen.client or "ens47f1"
    program = "from_workload" if found["hook"] == "workload" else "from_uplink"
    frame = packets.frame(packets.tcp(one, two, ports[0], ports[1], SYN, acknowledgement=0))
    frame = packets.mac(overlay.interfaces[interface].mac) + frame[6:]
    done = overlay.run(program, frame, interface)
    said = f"seed {SEED}: {one}:{ports[0]} to {two}:{ports[1]}, {mode} {lease}: {found['steps'][-1]}, {done.counted}"
    event(found["decides"])
    if found["decides"] == "off":
        assert not done.counted, said
    elif found["decides"] == ADMITTED:
        assert done.reason == "handshake", said
        assert done.events == {"syn_in": 1}, said
    else:
        assert done.reason == found["decides"], said


def test_an_interface_that_does_not_carry_the_programs_is_told(overlay: Datapath) -> None:
    fill(overlay)
    place = overlay.place("cali1")
    overlay.remove("devices", place)
    seen = look(overlay.get, "10.244.2.10", "10.244.1.10", 8080, None, time.monotonic_ns())
    assert walk(seen, "10.244.2.10", "10.244.1.10", 8080)["decides"] == "interface_gone"
    overlay.put("devices", place, "cali1")


def suspend(talk: Connection, seconds: int) -> None:
    until = jiffies() + seconds * jiffies_per_second()
    talk.overlay.put("flows", talk.ends.key, suspended(talk.flow, until))


@pytest.mark.parametrize("ends", BOTH, ids=("ipv4", "ipv6"))
def test_a_suspended_flow_is_unknown_to_the_programs_until_its_time(overlay: Datapath, ends: Ends) -> None:
    """See ``suspended()``: the datapath has no word for it, so that must hold in every release."""
    fill(overlay)
    talk = Connection(Node(overlay), ends).warm()
    overlay.forget()  # within three quarters of a second processors do that by themselves
    let_pass(overlay, 1)
    awaited = talk.take(UPLINK, payload=b"x")
    assert awaited.reason == "heartbeat"
    suspend(talk, 30)
    awaited.inside()
    for direction in (UPLINK, WORKLOAD) * 3:
        trip = talk.data(direction)
        assert (trip.reason, trip.events) == ("unknown_flow", {})
    let_pass(overlay, 60 * jiffies_per_second() / overlay.second)
    for direction in (UPLINK, WORKLOAD):
        trip = talk.data(direction)
        assert (trip.reason, trip.events) == ("heartbeat", {"renewed": 1})
        expect_fast(talk.send(direction))
