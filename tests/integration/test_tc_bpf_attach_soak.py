# SPDX-License-Identifier: GPL-3.0-or-later
"""``tc_bpf_attach`` from random states, and under traffic. ``OVERLAY_SOAK=1`` runs the full counts. Needs root."""

from __future__ import annotations

import json
import os
import random
import re
from typing import Any

import pytest
from integration.tc_checks import TCX_ATTACH, foreign_state
from integration.tc_sandbox import PINS, Sandbox, at, returns

pytest_plugins = ["integration.tc_fixtures"]

SOAK = bool(os.environ.get("OVERLAY_SOAK"))
STEPS = 1000 if SOAK else 12
REPLACEMENTS = 1000 if SOAK else 60
INTERFACES = ("eth0", "eth1.1", "cali1", "cali2")

# Puts filters where no run of the module would: stale, moved, half done, with or without the record of their qdisc.
MESS = """
import socket, sys
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._hooks import records
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.tc import TrafficControl
interface, direction, priority, handle, name, pin, record = sys.argv[1:]
index = socket.if_nametoindex(interface)
with TrafficControl() as control:
    if record == "only":
        records.note(index, interface)
        sys.exit()
    try:
        if record == "yes":
            records.note(index, interface)
        control.add_clsact(index)
    except OSError:
        if record == "yes":
            records.forget(index, interface)
    try:
        control.add_filter(index, direction, int(priority), int(handle), name, bpf.obj_get(pin))
    except OSError:
        pass
"""


def foreign_view(node: Sandbox) -> list[str]:
    """Filters and links of everybody else; read with tc(8) and by link id, not by what is tested."""
    lines = []
    for interface in INTERFACES:
        # cali2 has an ingress qdisc, which lists its filters for both, and labels them by the last one who added any.
        for direction in ("ingress", "egress") if interface != "cali2" else ("ingress",):
            found = [line for line in node.filters(interface, direction) if "ebpf.overlay:" not in line]
            lines += [f"{interface} {direction} {re.sub('filter (in|e)gress', 'filter', line)}" for line in found]
    pinned = node.python(FOREIGN_LINKS)
    return [*lines, pinned, node.sh("tc qdisc show | grep -E 'ingress|dev eth0' || true")]


FOREIGN_LINKS = """
import socket
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
link = bpf.link_info(bpf.obj_get("/sys/fs/bpf/foreign/link"))
print(link, (link.prog_id, link.id) in bpf.prog_query_tcx(link.ifindex, link.attach_type)[1])
"""


def disturb(node: Sandbox, dice: random.Random) -> str:
    """One random thing that somebody, or a run that was killed, may have done."""
    interface, direction = dice.choice(INTERFACES[1:]), dice.choice(["ingress", "egress"])
    what = dice.choice(["nothing", "mess", "mess", "mess", "qdisc", "load", "record"])
    if what in ("mess", "record"):
        owner = dice.choice(["ebpf.overlay", "ebpf.overlay", "acme"])
        place = (str(dice.choice([1, 2, 10])), str(dice.choice([1, 2])))
        name = f"{owner}:{dice.choice(['one', 'two', 'old'])}"
        record = "only" if what == "record" else dice.choice(["yes", "no"])
        node.python(MESS, interface, direction, *place, name, f"{PINS}/{dice.choice(['one', 'two'])}", record)
        return f"{what} {interface} {direction} {place} {name} {record}"
    if what == "qdisc":
        node.sh(f"tc qdisc del dev {interface} clsact 2>/dev/null", check=False)
    elif what == "load":
        node.load(dice.choice(["one", "two"]), returns(-1, dice.randrange(9)))
    return f"{what} {interface}"


def wish(dice: random.Random) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    entries = [
        at(
            dice.choice([*INTERFACES, "cali*", "eth*"]),
            dice.choice(["one", "two"]),
            direction=dice.choice(["ingress", "egress"]),
            priority=dice.choice([1, 2, 10, 50]),
            handle=dice.choice([1, 2]),
        )
        for __ in range(dice.randrange(4))
    ]
    state = dice.choice(["present", "present", "present", "absent"])
    return entries, {"purge": dice.random() < 0.5, "mechanism": dice.choice(["auto", "clsact", "tcx"]), "state": state}


def test_random_runs_from_random_states_are_predicted_idempotent_and_harm_nobody(node: Sandbox) -> None:
    seed = int(os.environ.get("OVERLAY_SEED", random.randrange(1 << 32)))
    print(f"OVERLAY_SEED={seed}")
    dice = random.Random(seed)
    foreign_state(node)
    node.sh("tc qdisc add dev cali2 handle ffff: ingress")
    node.python(TCX_ATTACH, "/sys/fs/bpf/foreign/link", "cali1", "46", f"{PINS}/theirs")
    refusals = 0
    for step in range(STEPS):
        told = f"seed {seed} step {step}: {disturb(node, dice)}"
        entries, params = wish(dice)
        told += f", then {entries} {params}"
        before, foreign = node.state(), foreign_view(node)
        dry = node.attach(*entries, check=True, **params)
        assert node.state() == before, f"{told}: the dry run changed something"
        real = node.attach(*entries, **params)
        assert foreign_view(node) == foreign, f"{told}: something foreign changed"
        if real["rc"]:
            refusals += 1
            assert dry["error"] == real["error"], told
            assert node.state() == before, f"{told}: a refused run changed something"
            continue
        for key in ("changed", "attachments", "removed", "diff", "warnings"):
            assert dry[key] == real[key], (told, key, dry[key], real[key])
        assert real["changed"] == (node.state() != before), told
        after = node.state()
        again = node.attach(*entries, **params)
        assert not again["changed"], (told, again["diff"])
        assert node.state() == after, told
    assert refusals < STEPS * 0.7
    node.attach(purge=True)
    node.attach(purge=True, owner="acme")
    assert "ebpf.overlay:" not in node.state()
    assert "ebpf-overlay" not in node.state()


QUIET_AND_UP = "sysctl -qw net.ipv6.conf.all.disable_ipv6=1; ip link set eth0 up; ip link set p0 up"

# Sends as fast as it can while programs are swapped, then says how many packets came and how many runs were counted.
UNDER_TRAFFIC = """
import json, os, socket, sys, time
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import tcx
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.call import attribute, bpf as call
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.tc import TrafficControl
mechanism, replacements, pin, pins = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:]
stats = call(32, attribute("I", 0))  # BPF_ENABLE_STATS, as long as the descriptor lives
index = socket.if_nametoindex("eth0")
programs = [bpf.obj_get(path) for path in pins]
ids = [bpf.prog_info(fd).id for fd in programs]
def received():
    return int(open("/sys/class/net/eth0/statistics/rx_packets").read())
reader, writer = os.pipe()
sender = os.fork()
if sender == 0:
    os.close(writer)
    os.set_blocking(reader, False)
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.setsockopt(263, 20, 1)  # PACKET_QDISC_BYPASS
    sock.bind(("p0", 0))
    frame = b"\\xff" * 6 + b"\\x02" * 6 + b"\\x88\\xb5" + bytes(46)
    while True:
        for _ in range(500):
            sock.send(frame)
        try:
            os.read(reader, 1)
            os._exit(0)
        except BlockingIOError:
            pass
os.close(reader)
start, before = time.monotonic(), received()
with TrafficControl() as control:
    for number in range(1, replacements + 1):
        if mechanism == "clsact":
            control.change_filter(index, "ingress", 1, 1, "ebpf.overlay:one", programs[number % 2])
        else:
            tcx.update(pin, programs[number % 2], ids[(number + 1) % 2])
        time.sleep(0.002)
seconds, arrived = time.monotonic() - start, received() - before
os.close(writer)
os.waitpid(sender, 0)
print(json.dumps([received(), sum(bpf.prog_info(fd).run_cnt for fd in programs), arrived / seconds]))
"""


@pytest.mark.parametrize("mechanism", ["clsact", "tcx"])
def test_no_packet_misses_the_program_while_it_is_replaced(node: Sandbox, mechanism: str) -> None:
    node.sh(QUIET_AND_UP)
    node.attach(at("eth0", "one", priority=1), mechanism=mechanism)
    pin = node.sh("find /sys/fs/bpf/ebpf-overlay -type f 2>/dev/null", check=False).strip() or "-"
    already = int(node.sh("cat /sys/class/net/eth0/statistics/rx_packets"))
    said = node.python(UNDER_TRAFFIC, mechanism, str(REPLACEMENTS), pin, f"{PINS}/one", f"{PINS}/two")
    received, counted, rate = json.loads(said)
    print(f"{received - already} packets, {rate:.0f} a second, {REPLACEMENTS} replacements, {counted} runs")
    assert counted == received - already
    assert rate > 50_000 or not SOAK
    assert received - already > 1000


@pytest.mark.parametrize(("old", "new"), [("clsact", "tcx"), ("tcx", "clsact")])
def test_no_packet_is_missed_by_both_while_a_program_migrates(node: Sandbox, old: str, new: str) -> None:
    """Each packet runs through one of them, or through both: at least as many runs as packets."""
    node.sh(QUIET_AND_UP)
    node.attach(at("eth0", "one"), mechanism=old)
    already = int(node.sh("cat /sys/class/net/eth0/statistics/rx_packets"))
    received, counted = json.loads(node.python(MIGRATE, f"{PINS}/one", *([new, old] * (50 if SOAK else 4)), new))
    assert received - already > 1000
    assert counted >= received - already


MIGRATE = """
import json, os, socket, sys
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._hooks.apply import apply
from ansible_collections.ebpf.overlay.plugins.module_utils._hooks.observe import Watch
from ansible_collections.ebpf.overlay.plugins.module_utils._hooks.wish import Attachment, Wish
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.call import attribute, bpf as call
from ansible_collections.ebpf.overlay.plugins.module_utils._hooks.plan import plan_filters
stats = call(32, attribute("I", 0))
entries = (Attachment("eth0", "ingress", sys.argv[1]),)
reader, writer = os.pipe()
sender = os.fork()
if sender == 0:
    os.close(writer)
    os.set_blocking(reader, False)
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sock.bind(("p0", 0))
    while True:
        for _ in range(500):
            sock.send(b"\\xff" * 6 + b"\\x02" * 6 + b"\\x88\\xb5" + bytes(46))
        try:
            os.read(reader, 1)
            os._exit(0)
        except BlockingIOError:
            pass
os.close(reader)
for mechanism in sys.argv[2:]:
    wish = Wish(entries, mechanism=mechanism)
    operations = plan_filters(wish, Watch(wish).observe()).operations
    assert operations
    apply(operations, print)
os.close(writer)
os.waitpid(sender, 0)
received = int(open("/sys/class/net/eth0/statistics/rx_packets").read())
print(json.dumps([received, bpf.prog_info(bpf.obj_get(sys.argv[1])).run_cnt]))
"""
