# SPDX-License-Identifier: GPL-3.0-or-later
"""Processors that remember flows decide as ones that do not, in random stories and all at once."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prog import datapath
from prog.conftest import SOAK
from prog.datapath import NEIGH, Datapath, Object, Result
from prog.network import Interface
from prog.packets import ACK, FIN, PSH, RST, SYN, frame
from prog.processors import CPUS, affinity, begin_epoch, narrower, on  # noqa: F401
from prog.story import BOTH, Connection

from ansible_collections.ebpf.overlay.plugins.module_utils import _bpf_syscall as bpf

SHARED = ("ifindex", "uplink", "next_hop", "session", "workload_epoch", "uplink_epoch", "workload_mtu", "uplink_mtu")
PARALLEL = 20_000 if SOAK else 1_000
STEPS = 100_000 if SOAK else 1_500


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
