# SPDX-License-Identifier: GPL-3.0-or-later
"""Dry run, roll-out, proof of the bypass, second run, rollback: each step is checked, and a wrong one ends the demo."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fleet import play, state
from lab.api import Lab, Node

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.reasons import DIRECTIONS, EVENTS, PASSED, REASONS

LAB = str(play.ROOT / "tests/lab/lab")
REQUESTS = 50
STATES = ["conntrack ESTABLISHED", "conntrack TIME_WAIT"]
FAST = ("uplink.to_workload", "workload.to_uplink")
# Why the kernel got a packet. Those of other connections are of none of the overlay's services.
KEPT = [name for number, (name, _meaning) in REASONS.items() if PASSED <= number < EVENTS]
OTHERS = ("not_ip", "not_tcp", "not_service")
SEGMENTS = struct.Struct("=136xII")  # tcpi_segs_out and tcpi_segs_in in struct tcp_info


class DemoError(Exception):
    """A step that is not as it should be."""


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    print(f"\n=== {title}", flush=True)
    began = time.monotonic()
    yield
    print(f"    ok, {time.monotonic() - began:.1f} s", flush=True)


def say(text: str) -> None:
    print(f"    {text}", flush=True)


def expect(condition: bool, text: str) -> None:
    if not condition:
        raise DemoError(text)
    say(text)


@dataclass(frozen=True)
class Path:
    """Where the packets of one connection were seen on the server's node, until it was closed and afterwards."""

    sent: int
    """By both ends, as the client's TCP counts them."""
    overlay: int
    forwarded: int
    kept: Counter[str]
    """Packets that the overlay left to the kernel, by reason."""
    forwarded_at_the_end: int
    overlay_at_the_end: int
    states: list[str]
    """Of conntrack's entry: before the end and after it."""


def requests(lab: Lab) -> Path:
    """HTTP requests over one connection from ovl-n1 to the first workload on ovl-n2, and who saw its packets there."""
    client, server, workload = lab.nodes[1], lab.nodes[2], lab.workload(2, 1)
    ask = b"GET / HTTP/1.1\r\nHost: workload\r\n\r\n"
    before, forwarded = state.counted(server), server.nft_counter("forwarded").packets
    with client.connect(workload.ipv4, 8080) as connection:
        port = str(connection.getsockname()[1])
        answers = connection.makefile("rb")
        for __ in range(REQUESTS):  # for more than a second: heartbeats are due
            connection.sendall(ask)
            while not (line := answers.readline()).startswith(b"{"):
                if not line:
                    raise DemoError("the workload ended the connection")
            time.sleep(0.03)
        time.sleep(0.2)  # the last acknowledgement
        sent = sum(SEGMENTS.unpack(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, SEGMENTS.size)))
        seen, went = state.counted(server), server.nft_counter("forwarded").packets
        states = [tracked(server, port)]
        answers.close()
    time.sleep(0.3)
    states.append(tracked(server, port))
    after, end = state.counted(server), server.nft_counter("forwarded").packets
    kept = Counter[str]()
    for reason in KEPT:
        labels = [f"{direction}.{reason}" for direction in DIRECTIONS if reason not in OTHERS]
        kept[reason] = sum(seen.get(label, 0) - before.get(label, 0) for label in labels)
    path = Path(
        sent=sent,
        overlay=fast(seen) - fast(before),
        forwarded=went - forwarded,
        kept=+kept,
        forwarded_at_the_end=end - went,
        overlay_at_the_end=fast(after) - fast(seen),
        states=states,
    )
    told = ", ".join(f"{reason} {count}" for reason, count in path.kept.items()) or "none"
    say(f"{REQUESTS} requests to http://{workload.ipv4}:8080 from {client.name} over one connection: {sent} packets")
    say(f"on {server.name}: overlay {path.overlay}, FORWARD chain {path.forwarded} ({told}), {states[0]}")
    say(f"its end: overlay {path.overlay_at_the_end}, FORWARD chain {path.forwarded_at_the_end}, {states[1]}")
    return path


def tracked(server: Node, port: str) -> str:
    """The state of the entry that conntrack has of a connection from this port."""
    found = [entry for entry in server.conntrack() if entry.get("original.sport") == port]
    return f"conntrack {found[0].get('state')}" if found else "not tracked"


def fast(counters: Mapping[str, int]) -> int:
    """Packets that the overlay redirected, both directions."""
    return sum(counters.get(name, 0) for name in FAST)


def kernels_path(path: Path) -> bool:
    """As without the overlay: netfilter saw every packet."""
    return (path.overlay, path.forwarded, path.states) == (0, path.sent, STATES)


def progress(line: str) -> None:
    """One line for each step that is done."""
    if " · step " in line:
        say(line)


def run_playbook(name: str, *options: str) -> play.Run:
    # The first node alone, then the others together: as careful as the default, and quicker with three nodes.
    done = play.playbook(name, *options, variables={"overlay_batches": [1, "100%"]}, follow=progress)
    recap = done.output.partition("Recap: ")[2].splitlines()[1:]
    for line in filter(None, recap):
        say(line)
    if done.code:
        print(done.output)
        raise DemoError(f"{name} {' '.join(options)} ended with {done.code}")
    return done


def show(lab: Lab) -> None:
    before = {node.name: state.observe(node) for node in lab.nodes.values()}
    with step("HTTP requests before the roll-out take the kernel's path"):
        expect(kernels_path(requests(lab)), "netfilter saw every packet, no overlay did")
    with step("Dry run: site.yml --check --diff"):
        predicted = run_playbook("site.yml", "--check", "--diff")
        expect(bool(predicted.changes), f"{len(predicted.changes)} changes predicted")
        unchanged = all(state.observe(node) == before[node.name] for node in lab.nodes.values())
        expect(unchanged, "and nothing was changed")
    with step("Roll-out: site.yml"):
        applied = run_playbook("site.yml")
        expect(applied.changes == predicted.changes, "the same changes as predicted, host by host and task by task")
    with step("The same requests take the overlay"):
        path = requests(lab)
        expect(path.overlay + path.forwarded == path.sent, "every packet took the overlay or the kernel's path")
        expect(
            set(path.kept) <= {"handshake", "heartbeat"} and path.kept.total() == path.forwarded,
            f"netfilter saw the handshake, {path.kept['heartbeat']} heartbeats, and nothing else",
        )
        expect(path.overlay > 5 * path.forwarded, "the overlay all others")
        expect(path.overlay_at_the_end == 0 and path.forwarded_at_the_end >= 3, "the end is netfilter's again")
        expect(path.states == STATES, "conntrack followed the connection")
    with step("Second run: nothing to do"):
        expect(not run_playbook("site.yml").changes, "changed=0 on every node")
    with step("Rollback: rollback.yml"):
        run_playbook("rollback.yml")
        for node in lab.nodes.values():
            after = state.observe(node)
            expect(
                (after.filters, after.qdiscs, after.pins)
                == (before[node.name].filters, before[node.name].qdiscs, before[node.name].pins),
                f"{node.name}: filters, qdiscs and pins as before the roll-out",
            )
    with step("The same requests take the kernel's path again"):
        expect(kernels_path(requests(lab)), "netfilter saw every packet, no overlay did")


def main() -> int:
    try:
        with step("Lab: 3 nodes, 2 workloads each"):
            subprocess.run([LAB, "up", "--nodes", "3", "--workloads", "2", "--base", "fresh"], check=True)
        show(Lab.load())
    except (DemoError, AssertionError, subprocess.CalledProcessError) as error:
        print(f"\nNot as it should be: {error}", file=sys.stderr)
        return 1
    finally:
        print("\n=== Lab down", flush=True)
        subprocess.run([LAB, "down"], check=False)
    print("\nEverything was as it should be.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
