# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a node is between generations, read from outside: nothing here goes through SSH or runs on the node."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

from lab.api import Lab, Node, wait_until

from ansible_collections.ebpf.overlay.plugins.module_utils._maps.pinned import opened

from . import state
from .datapath import Datapath

STATE = "/var/lib/ebpf-overlay"
FILLED = ("ifindex_map", "services", "peers", "devices")


def history(node: Node) -> dict[str, Any]:
    """Number and digest that the node is confirmed to be at; number 0 without any record."""
    script = f"cat {STATE}/confirmed.json 2>/dev/null || echo '{{\"number\": 0}}'"
    number = json.loads(node.run(["sh", "-c", script]).stdout)["number"]
    if not number:
        return {"number": 0, "digest": ""}
    manifest = json.loads(node.run(["cat", f"{STATE}/generations/{number}/manifest.json"]).stdout)
    return {"number": number, "digest": manifest["digest"]}


def pending(node: Node) -> bool:
    """Whether an attempt waits for confirmation, or a process for the attempt."""
    script = f"ls {STATE}/attempt.json; grep -sl runtime[.]zip /proc/[0-9]*/cmdline; true"
    return bool(node.run(["sh", "-c", script]).stdout.strip())


def settled(lab: Lab, timeout: float) -> None:
    """Wait until no node has an attempt that waits. Raises LabError."""
    wait_until(lambda: not any(pending(node) for node in lab.nodes.values()), timeout, "no attempt waits")


def dump(node: Node) -> dict[str, Any]:
    """Everything that a generation sets: filters, qdiscs, pins, the mode, the bytes of every map that a run fills."""
    observed = state.observe(node)
    datapath = Datapath(node)
    control = datapath.control
    return {
        "filters": observed.filters,
        "qdiscs": observed.qdiscs,
        "pins": observed.pins,
        "history": history(node),
        "maps": {name: _contents(datapath, name) for name in FILLED} if control else None,
        "control": (control.mode, control.deadline, control.generation) if control else None,
    }


def recorded(seen: dict[str, Any]) -> dict[str, Any]:
    """What of a dump is the same whenever the node is made that generation: ids of programs are not."""
    return {**seen, "filters": [line.partition(" id ")[0] for line in seen["filters"]]}


def _contents(datapath: Datapath, name: str) -> str:
    with opened(f"{datapath.pins}/{name}") as found:
        assert found is not None, f"{datapath.node.name} has no map {name}"
        entries = found.read(b"".join)
    digest = hashlib.sha256(b"".join(key + value for key, value in sorted(entries.items()) if any(value)))
    return f"{sum(any(value) for value in entries.values())} entries, {digest.hexdigest()}"


REQUESTS = 30


def takes_the_overlay(node: Node, client: Node) -> bool:
    """Whether the packet filter of the node sees few packets of requests to its workload, over one connection.

    Handshake, heartbeats and end go its way in any case.
    """
    forwarded = node.nft_counter("forwarded").packets
    with client.connect(node.workloads[1].ipv4, 8080) as connection, connection.makefile("rb") as answers:
        for __ in range(REQUESTS):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: workload\r\n\r\n")
            length = 0
            while (line := answers.readline()) != b"\r\n":
                assert line, "the workload ended the connection"
                name, _colon, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            answers.read(length)
    time.sleep(0.1)
    grown = node.nft_counter("forwarded").packets - forwarded
    assert grown < REQUESTS or grown >= 2 * REQUESTS, f"{grown} packets forwarded"
    return grown < REQUESTS
