# SPDX-License-Identifier: GPL-3.0-or-later
"""Dry run, roll-out, proof of the bypass, second run, rollback: each step is checked, and a wrong one ends the demo."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from fleet import play, state
from lab.api import Lab

LAB = str(play.ROOT / "tests/lab/lab")


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
    """Where the packets of one HTTP request were seen on the server's node."""

    overlay: int
    forwarded: int
    tracked: bool


def request(lab: Lab) -> Path:
    """An HTTP request from ovl-n1 to the first workload on ovl-n2, and who saw its packets on ovl-n2."""
    client, server, workload = lab.nodes[1], lab.nodes[2], lab.workload(2, 1)
    before = redirected(lab), server.nft_counter("forwarded").packets
    answer = client.http_get(workload.ipv4)
    time.sleep(0.1)  # the last acknowledgement
    after = redirected(lab), server.nft_counter("forwarded").packets
    tracked = any(entry.get("original.sport") == str(answer["client_port"]) for entry in server.conntrack())
    path = Path(after[0] - before[0], after[1] - before[1], tracked)
    say(f"GET http://{workload.ipv4}:8080 from {client.name}: {answer['workload']} answered")
    say(
        f"on {server.name}: overlay {path.overlay} packets, FORWARD chain {path.forwarded} packets, "
        f"conntrack entry: {'yes' if tracked else 'no'}"
    )
    return path


def redirected(lab: Lab) -> int:
    """Packets that the overlay redirected on ovl-n2, both directions."""
    counters = state.counted(lab.nodes[2])
    return counters.get("uplink.to_workload", 0) + counters.get("workload.to_uplink", 0)


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
    with step("An HTTP request before the roll-out takes the kernel's path"):
        path = request(lab)
        expect(path.forwarded > 0 and path.tracked and path.overlay == 0, "netfilter saw it, no overlay did")
    with step("Dry run: site.yml --check --diff"):
        predicted = run_playbook("site.yml", "--check", "--diff")
        expect(bool(predicted.changes), f"{len(predicted.changes)} changes predicted")
        unchanged = all(state.observe(node) == before[node.name] for node in lab.nodes.values())
        expect(unchanged, "and nothing was changed")
    with step("Roll-out: site.yml"):
        applied = run_playbook("site.yml")
        expect(applied.changes == predicted.changes, "the same changes as predicted, host by host and task by task")
    with step("The same request takes the overlay"):
        path = request(lab)
        expect(path.overlay > 0 and path.forwarded == 0 and not path.tracked, "the overlay saw it, netfilter did not")
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
    with step("The same request takes the kernel's path again"):
        path = request(lab)
        expect(path.forwarded > 0 and path.tracked and path.overlay == 0, "netfilter saw it, no overlay did")


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
