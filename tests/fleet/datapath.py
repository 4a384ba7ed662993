# SPDX-License-Identifier: GPL-3.0-or-later
"""The datapath of one node, seen and switched from outside by the modules' own code, without Ansible in between.

The pins of a node are reached through its PID 1's root, so nothing runs on the node and nothing is started there.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lab import namespace
from lab.api import Lab, Node, wait_until
from lab.cluster import HTTP_PORT, NODE_PORT

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import control as _control
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import switch
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.layout import SCHEMAS
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.traffic import escape
from ansible_collections.ebpf.overlay.plugins.module_utils._maps.codec import Codec
from ansible_collections.ebpf.overlay.plugins.module_utils._maps.pinned import opened

# Beside the default service, a port where tests run servers of their own.
TALK_PORT = 9090
SOAK = os.environ.get("OVERLAY_SOAK") == "1"

# Of what goes past the kernel.
BYPASSED = ("uplink.to_workload", "workload.to_uplink")


def full(count: int, otherwise: int) -> int:
    """``count`` in a soak, else the smaller number."""
    return count if SOAK else otherwise


# For roll-outs whose topic is not the batches. The lease: 20 nodes at once take their time on a small machine.
AT_ONCE = {"overlay_batches": ["100%"], "overlay_lease": full(300, 60)}


def detach(node: Node, interface: str, direction: str = "ingress") -> None:
    """Take the overlay off a hook behind its back: its TCX link, which lives by its pin, or its clsact qdisc."""
    pins = Path(Datapath(node).pins, "links").glob(f"*/*-{escape(interface)}-{direction}-*")
    for pin in (links := list(pins)):
        pin.unlink()
    if not links:
        node.host_run(["tc", "qdisc", "del", "dev", interface, "clsact"])


class Datapath:
    """What is loaded on one node."""

    def __init__(self, node: Node) -> None:
        self.node = node

    @property
    def pins(self) -> str:
        return f"/proc/{self.node.pid}/root/sys/fs/bpf/ebpf-overlay"

    def mode(self, mode: str, **options: Any) -> dict[str, Any]:
        """Run the code of ``overlay_mode``; returns what the module returns."""
        params = {
            "mode": mode, "lease": 0, "force": False, "generation": None, "lock_timeout": 3,
            "pin_dir": self.pins,
            **options,
        }  # fmt: skip
        with namespace.entered(self.node.name):
            return switch.ensure(params, False, print)

    @property
    def control(self) -> Any:
        """The entry as it is in the map."""
        return _control.read_control(self.pins)

    def entries(self, name: str) -> list[tuple[Any, Any]]:
        """Keys and values of one map, decoded; interfaces by the names that they have on the node."""
        key, value = (Codec(schema, what) for schema, what in zip(SCHEMAS[name], ("key", "value")))
        with namespace.entered(self.node.name), opened(f"{self.pins}/{name}") as found:
            assert found is not None, f"{self.node.name} has no map {name}"
            return [(key.decode(raw), value.decode(held)) for raw, held in found.read(value.total).items()]

    def size(self, name: str) -> tuple[int, int]:
        """How many entries a map holds, and how many it can hold."""
        with opened(f"{self.pins}/{name}") as found:
            assert found is not None
            return len(found.read(b"".join)), found.info.max_entries

    def clear(self, name: str) -> None:
        """Remove every entry of a hash."""
        with opened(f"{self.pins}/{name}") as found:
            assert found is not None
            for key in list(found.read(b"".join)):
                bpf.map_delete(found.fd, key)

    def counters(self) -> dict[str, int]:
        """Packets by direction and reason, such as ``uplink.to_workload``; reasons without packets are missing."""
        return {key: value["packets"] for key, value in self.entries("stats")}

    @contextlib.contextmanager
    def counted(self) -> Iterator[dict[str, int]]:
        """What the block adds to the counters, filled in at its end."""
        before, grown = self.counters(), dict[str, int]()
        yield grown
        after = self.counters()
        grown.update({key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)})


def until_fast(datapath: Datapath, packets: int = 20, timeout: float = 8) -> None:
    """Wait until so many packets of whatever talks were redirected: a way is tried by one flow before others use it.

    Raises LabError.
    """
    before = bypassed(datapath.counters())
    wait_until(
        lambda: bypassed(datapath.counters()) >= before + packets,
        timeout,
        f"{datapath.node.name}: {packets} packets are redirected",
    )


def bypassed(grown: Mapping[str, int]) -> int:
    """How many of the counted packets were redirected."""
    return sum(grown.get(name, 0) for name in BYPASSED)


class Cluster:
    """The lab with the overlay on every node."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.nodes = lab.nodes
        self.datapaths = {number: Datapath(node) for number, node in lab.nodes.items()}

    def mode(self, mode: str, **options: Any) -> list[dict[str, Any]]:
        """The same on every node, one after the other."""
        return [datapath.mode(mode, **options) for datapath in self.datapaths.values()]

    def fresh(self) -> None:
        """On, without flows, known or on trial, and nobody sends what belongs to an earlier test."""
        self.mode("off", force=True)
        self.end_connections()
        for datapath in self.datapaths.values():
            for name in ("flows", "pending", "pending_out", "trials"):
                datapath.clear(name)
        self.mode("on")

    def end_connections(self) -> None:
        """End what is left of connections to the services of the lab, on both sides.

        A connection that a test cut repeats its FIN for minutes (FIN-WAIT-1), which is INVALID to conntrack each time.
        """
        ports = " or ".join(
            f"{end} = :{port}" for port in (HTTP_PORT, TALK_PORT, NODE_PORT) for end in ("sport", "dport")
        )
        for endpoint in [*self.nodes.values(), *self.lab.workloads()]:
            endpoint.host_run(["ss", "--kill", "--tcp", "state", "connected", f"( {ports} )"])

    def invalid(self) -> int:
        """Packets that the nodes' packet filters dropped because conntrack did not know their connection."""
        return sum(node.nft_counter("invalid").packets for node in self.nodes.values())

    def forwarded(self) -> int:
        """Packets that came to the nodes' FORWARD chains."""
        return sum(node.nft_counter("forwarded").packets for node in self.nodes.values())

    @contextlib.contextmanager
    def nothing_invalid(self) -> Iterator[None]:
        """The block leaves the counters of INVALID packets where they are."""
        before = self.invalid()
        yield
        time.sleep(0.05)
        grown = self.invalid() - before
        assert not grown, f"{grown} packets were INVALID"
