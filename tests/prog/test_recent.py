# SPDX-License-Identifier: GPL-3.0-or-later
"""What processors remember of flows: it is never believed once something that it depends on has changed (rule 2)."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from prog import datapath
from prog.conftest import SOAK
from prog.datapath import NEIGH, Datapath, Object, Result
from prog.network import Interface
from prog.packets import ACK, FIN, PSH, RST, SYN, frame, icmp_error
from prog.story import BOTH, IPV4, Connection, expect_pass, expect_redirect

from ansible_collections.ebpf.overlay.plugins.module_utils import _bpf_syscall as bpf

EVERY = pytest.mark.parametrize(
    "one",
    [one.but(server=server) for one in BOTH for server in (True, False)],
    ids=["ipv4-server", "ipv4-client", "ipv6-server", "ipv6-client"],
)
ASKED_AGAIN = 255  # RECENT_PACKETS in recent.h
CPUS = sorted(os.sched_getaffinity(0))
SHARED = ("ifindex", "uplink", "next_hop", "session", "workload_epoch", "uplink_epoch", "workload_mtu", "uplink_mtu")
PARALLEL = 20_000 if SOAK else 1_000
STEPS = 100_000 if SOAK else 1_500
Step = Callable[[Datapath, Connection], Any]


@pytest.fixture(autouse=True)
def affinity() -> Iterator[None]:
    yield
    os.sched_setaffinity(0, CPUS)


def on(cpu: int) -> None:
    os.sched_setaffinity(0, {cpu})


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


def narrower(overlay: Datapath, one: Connection) -> None:
    """From now on, flows are made with an MTU of 1300 on both sides."""
    for address in (one.workload, one.other):
        overlay.put("ifindex_map", address, {**overlay.get("ifindex_map", address), "mtu": 1300})
    prefix = "10.244.2.0/24" if one.family == 4 else "fd00:10:244:2::/64"
    overlay.put("peers", prefix, {"uplink": "ens47f1", "mtu": 1300, "next_hop": datapath.PEERS[prefix]})


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


def begin_epoch(overlay: Datapath, name: str) -> None:
    place = overlay.interfaces[name].ifindex
    overlay.put("device_epochs", place, overlay.get("device_epochs", place) + 1)
    overlay.put("devices", place, name)


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


def random_step(dice: random.Random) -> Callable[[Datapath], Result | None]:
    """The same for every datapath that it is given."""
    one = dice.choice(BOTH).but(server=dice.random() < 0.6, port=dice.randrange(50000, 50003))
    if dice.random() < 0.5:
        one = one.but(remote=dice.choice((one.remote, one.peer_node)))
    kind = dice.random()
    if kind < 0.15:
        return lambda overlay: handshake(overlay, one)
    if kind < 0.88:
        flags = dice.choice((*(ACK,) * 12, *(ACK | PSH,) * 6, FIN | ACK, FIN | ACK, RST, SYN, SYN | ACK))
        size, opens = dice.choice((0, 0, 100, 1250, 1400)), dice.random() < 0.5
        return lambda overlay: (one.opener if opens else one.answerer)(overlay, flags, bytes(size))
    if kind < 0.92:
        other = dice.choice(("cali1", "cali2"))
        return lambda overlay: overlay.workload(one.outbound(ACK), other)
    name, mtu, session = dice.choice(("cali1", "ens47f1")), dice.choice((1300, 1500)), dice.choice((1, 1, 2))
    mode = dice.choice(("on", "drain", "off"))

    def change(overlay: Datapath) -> None:
        if kind < 0.93:
            overlay.mode(mode, session=session)
        elif kind < 0.95:
            overlay.mode("on")
            overlay.clear("silent")
        elif kind < 0.96:
            begin_epoch(overlay, name)
        elif kind < 0.965:
            overlay.remove("devices", overlay.interfaces[name].ifindex)
        elif kind < 0.98:
            for each in ("cali1", "ens47f1"):
                overlay.put("devices", overlay.interfaces[each].ifindex, each)
        elif mtu == 1300:
            narrower(overlay, one)
        else:
            datapath.describe(overlay)

    return change


def handshake(overlay: Datapath, one: Connection) -> Result:
    one.opener(overlay, SYN)
    one.answerer(overlay, SYN | ACK)
    return one.opener(overlay, ACK)


def test_a_datapath_that_remembers_decides_as_one_that_does_not(
    build: Callable[..., Object], interfaces: Mapping[str, Interface]
) -> None:
    """The same story told to both, packet by packet, on changing processors; one of them is made to look up each."""
    seed = random.SystemRandom().randrange(2**32) if SOAK else 11
    print(f"seed {seed}")
    dice = random.Random(seed)
    settings = {"OVERLAY_CHECK_MTU": 0, "OVERLAY_REDIRECT": NEIGH}
    remembers = Datapath(build(**settings, OVERLAY_RECENT=8), interfaces)
    forgets = Datapath(build(**settings, OVERLAY_RECENT=16), interfaces)
    for overlay in (remembers, forgets):
        datapath.fill(overlay)
    redirected = 0
    for step in range(STEPS):
        act = random_step(dice)
        if dice.random() < 0.3:
            on(dice.choice(CPUS))
        forgets.change_every_version()
        expected, result = act(forgets), act(remembers)
        if expected is None or result is None:
            continue
        assert (result.verdict, result.counted, result.data) == (expected.verdict, expected.counted, expected.data), (
            f"seed {seed}, step {step}: {result.counted} instead of {expected.counted}"
        )
        redirected += result.redirected
    assert redirected > STEPS * 0.2


def traffic(overlay: Datapath, seed: int) -> None:
    """Handshakes, data, and every way in which a flow ends, of a few connections; what became of each is not asked."""
    dice = random.Random(seed)
    for step in range(PARALLEL):
        if step % 20 == 0:
            overlay.clear("silent")
        one = dice.choice(BOTH).but(server=dice.random() < 0.5, port=dice.randrange(51000, 51003))
        inwards = one.server
        story = [(inwards, SYN), (not inwards, SYN | ACK), (inwards, ACK)] if dice.random() < 0.2 else []
        story += [(dice.random() < 0.5, dice.choice((*(ACK,) * 20, FIN | ACK, RST, SYN))) for _ in range(8)]
        for inbound, flags in story:
            packet = one.inbound(flags) if inbound else one.outbound(flags)
            program, interface = ("from_uplink", "ens47f1") if inbound else ("from_workload", "cali1")
            overlay.nanoseconds(program, frame(packet), interface, 1)


def test_processors_that_work_at_once_leave_no_record_that_is_wrong(overlay: Datapath) -> None:
    """Each ends and makes flows that the others remember. Afterwards every valid record must say what `flows` says."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    children = []
    for cpu in CPUS:
        child = os.fork()
        if child == 0:
            on(cpu)
            traffic(overlay, seed + cpu)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(CPUS)
    valid = 0
    wrong: list[Any] = []
    for record in every_record(overlay):
        flow = overlay.get("flows", record["key"])
        same = flow is not None and all(record[name] == flow[name] for name in SHARED)
        valid, wrong = valid + same, wrong if same else [*wrong, (record, flow)]
    assert wrong == []
    assert valid > 0


def every_record(overlay: Datapath) -> Iterator[Any]:
    """What some processor would believe."""
    key, value = overlay.codecs["recent"]
    info = bpf.map_info(overlay.object.descriptors["recent"])
    session, round_number = overlay.get("control", 0)["session"], overlay.get("sweep", 0)["round"]
    for bucket, version in overlay.entries("versions"):
        raw = bpf.map_lookup(overlay.object.descriptors["recent"], key.encode(bucket), info.value_stride) or b""
        for cpu in range(info.value_stride // info.value_size):
            record = value.decode(raw[cpu * info.value_size :][: info.value_size])
            if record["left"] and (record["version"], record["session"], record["round"]) == (
                version, session, round_number,
            ):  # fmt: skip
                yield record
