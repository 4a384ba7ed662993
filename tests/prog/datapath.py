# SPDX-License-Identifier: GPL-3.0-or-later
"""The compiled datapath in the hands of a test: fill its maps, give it a packet, see what it did."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ansible
from prog.network import Interface
from prog.testrun import run_program

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.layout import SCHEMAS
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.reasons import LABELS
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.topology import candidates
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.call import object_info
from ansible_collections.ebpf.overlay.plugins.module_utils._maps.codec import Codec

ROOT = Path(__file__).resolve().parents[2]
OVERLAY = ROOT / "roles/node/files/bpf/overlay.c"
PYTHON = "/usr/bin/python3"  # the one that has bcc

PASS, REDIRECT = -1, 7  # TC_ACT_UNSPEC, TC_ACT_REDIRECT (include/uapi/linux/pkt_cls.h)
PEER, NEIGH = 2, 1
PROGRAMS = ("from_uplink", "from_workload", "to_uplink", "to_workload")
# Jiffies in a second, as the datapath is told: no heartbeat is due while a test runs. Seconds pass by let_pass().
SECOND = 1_000_000
COUNTER = struct.Struct("=QQ")


@dataclass(frozen=True)
class Object:
    """File descriptors by name; ``compiler``: what clang wrote."""

    descriptors: Mapping[str, int]
    compiler: str

    def verified(self, program: str) -> int:
        """Instructions that the verifier looked at (``verified_insns`` of struct bpf_prog_info)."""
        return int.from_bytes(object_info(self.descriptors[program], 224)[216:220], "little")


def build(source: Path = OVERLAY, *flags: str, **defines: object) -> Object:
    """Compile and load with the project's own code. Raises AssertionError with the compiler's or verifier's words."""
    ours, theirs = socket.socketpair()
    paths = [ROOT / "collections", ROOT / "tests", Path(ansible.__file__).parents[1]]
    with ours, theirs:
        process = subprocess.Popen(
            [PYTHON, "-m", "prog.compile", str(theirs.fileno()), str(source), *flags,
             *(f"-D{name}={value}" for name, value in defines.items())],
            env={**os.environ, "PYTHONPATH": ":".join(map(str, paths))},
            pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        theirs.close()
        head, descriptors, _flags, _address = socket.recv_fds(ours, 4, 64)
        text = b"".join(iter(lambda: ours.recv(65536), b"")) if head else b""
        __, errors = process.communicate()
    assert process.returncode == 0, errors
    said = json.loads(text)
    return Object(dict(zip(said["names"], descriptors)), said["compiler"])


@dataclass(frozen=True)
class Result:
    """``counted``: what grew, by label such as ``uplink.to_workload``: packets, and bytes beside them."""

    verdict: int
    sent: bytes
    data: bytes
    mark: int
    priority: int
    counted: Mapping[str, int]
    bytes: Mapping[str, int] = field(default_factory=dict)

    @property
    def redirected(self) -> bool:
        return self.verdict == REDIRECT

    @property
    def reason(self) -> str:
        """Why it went where it went: the one counter that holds the packet's bytes, without its direction."""
        reasons = [label.partition(".")[2] for label, count in self.bytes.items() if count]
        assert len(reasons) == 1, self.counted
        assert sum(self.bytes.values()) == len(self.data if self.redirected else self.sent)
        return reasons[0]

    @property
    def events(self) -> dict[str, int]:
        """The other counters: what became of flows."""
        return {label.partition(".")[2]: self.counted[label] for label, count in self.bytes.items() if not count}


class Datapath:
    """Runs in the network namespace of the caller."""

    def __init__(self, built: Object, interfaces: Mapping[str, Interface]) -> None:
        self.object = built
        self.interfaces = interfaces
        self.second = SECOND
        known = {name: interface.ifindex for name, interface in interfaces.items()}
        self.codecs = {
            name: (Codec(key, "key", info.key_size, known), Codec(value, "value", info.value_size, known))
            for name, (key, value) in SCHEMAS.items()
            for info in [bpf.map_info(built.descriptors[name])]
        }
        self._stride = bpf.map_info(built.descriptors["stats"]).value_stride
        self._before = self._read_stats()
        self.epoch = int(self.get("control", 0)["epoch"])

    # -- maps ------------------------------------------------------------------------------------------------------

    def put(self, name: str, key: Any, value: Any) -> None:
        codec = self.codecs[name]
        bpf.map_update(self.object.descriptors[name], codec[0].encode(key), codec[1].encode(value))

    def get(self, name: str, key: Any) -> Any:
        codec = self.codecs[name]
        raw = bpf.map_lookup(self.object.descriptors[name], codec[0].encode(key), codec[1].size)
        return None if raw is None else codec[1].decode(raw)

    def remove(self, name: str, key: Any) -> bool:
        return bpf.map_delete(self.object.descriptors[name], self.codecs[name][0].encode(key))

    def entries(self, name: str) -> list[tuple[Any, Any]]:
        key, value = self.codecs[name]
        found = []
        for keys, values in bpf.map_lookup_batch(self.object.descriptors[name], key.size, value.size):
            for one in range(len(keys) // key.size):
                found.append((key.decode(keys[one * key.size :][: key.size]),
                              value.decode(values[one * value.size :][: value.size])))  # fmt: skip
        return found

    def size(self, name: str) -> int:
        key, value = self.codecs[name]
        blocks = bpf.map_lookup_batch(self.object.descriptors[name], key.size, value.size, 1024)
        return sum(len(keys) // key.size for keys, __ in blocks)

    def clear(self, *names: str) -> None:
        for name in names:
            descriptor, size = self.object.descriptors[name], self.codecs[name][0].size
            while (key := bpf.map_next_key(descriptor, None, size)) is not None:
                bpf.map_delete(descriptor, key)

    def forget(self) -> None:
        """Every processor, everything."""
        descriptor = self.object.descriptors["recent"]
        info = bpf.map_info(descriptor)
        keys = b"".join(number.to_bytes(4, "little") for number in range(info.max_entries))
        bpf.map_update_batch(descriptor, keys, bytes(info.max_entries * info.value_stride), info.max_entries)

    def mode(self, mode: str, *, lease: float | None = None, grows: bool = True) -> None:
        """``lease``: seconds from now; negative ones are over. ``grows``: the epoch does, as with every activation."""
        deadline = 0 if lease is None else time.monotonic_ns() + int(lease * 1e9)
        self.epoch += grows
        self.put("control", 0, {"deadline": deadline, "mode": mode, "epoch": self.epoch, "generation": 1,
                                "second": self.second})  # fmt: skip

    def crossings(self) -> list[int]:
        """By processor: the interface that it redirected a packet to, until that is seen there."""
        descriptor = self.object.descriptors["crossing"]
        raw = bpf.map_lookup(descriptor, bytes(4), bpf.map_info(descriptor).value_stride) or b""
        return [number for number, __ in struct.iter_unpack("=II", raw)]

    def place(self, name: str) -> int:
        """Where the interface stands in ``devices``."""
        ifindex = self.interfaces[name].ifindex
        found = [at for at in candidates(ifindex) if self.get("devices", at) in (name, ifindex)]
        return found[0]

    # -- packets ---------------------------------------------------------------------------------------------------

    def run(
        self, program: str, frame: bytes, interface: str, *, gso_size: int = 0, mark: int = 0, priority: int = 0
    ) -> Result:
        """One frame at a hook of ``interface``."""
        found = run_program(
            self.object.descriptors[program], frame, self.interfaces[interface].ifindex,
            gso_size=gso_size, mark=mark, priority=priority,
        )  # fmt: skip
        after = self._read_stats()
        packets: dict[str, int] = {}
        sizes: dict[str, int] = {}
        if after != self._before:
            for index, (old, new) in enumerate(zip(COUNTER.iter_unpack(self._before), COUNTER.iter_unpack(after))):
                if old != new:
                    label = LABELS[index * COUNTER.size // self._stride]
                    packets[label] = packets.get(label, 0) + new[0] - old[0]
                    sizes[label] = sizes.get(label, 0) + new[1] - old[1]
        self._before = after
        return Result(found.verdict, frame, found.data, found.mark, found.priority, packets, sizes)

    def nanoseconds(self, program: str, frame: bytes, interface: str, repeat: int) -> int:
        descriptor, port = self.object.descriptors[program], self.interfaces[interface]
        return run_program(descriptor, frame, port.ifindex, repeat=repeat).nanoseconds

    # -- counters --------------------------------------------------------------------------------------------------

    def _read_stats(self) -> bytes:
        blocks = bpf.map_lookup_batch(self.object.descriptors["stats"], 4, self._stride, len(LABELS))
        return b"".join(values for __, values in blocks)

    def total(self, reason: str) -> int:
        """Both directions, since the programs were loaded."""
        raw, found = self._read_stats(), 0
        for index, (packets, __) in enumerate(COUNTER.iter_unpack(raw)):
            if packets and LABELS[index * COUNTER.size // self._stride].partition(".")[2] == reason:
                found += packets
        return found

    def totals(self, reasons: Iterable[str]) -> dict[str, int]:
        return {reason: self.total(reason) for reason in reasons}


def fill(datapath: Datapath) -> None:
    """A node with two workloads and one peer, ready and on. Flows of earlier tests are gone."""
    datapath.clear("ifindex_map", "peers", "flows", "pending", "pending_out", "trials")
    datapath.forget()
    datapath.put("services", 8080, 1)
    for address, name in WORKLOADS.items():
        datapath.put("ifindex_map", address, {"ifindex": name, "flags": 0})
    for prefix in PEERS:
        datapath.put("peers", prefix, "peer")
    for prefix in OWN:
        datapath.put("peers", prefix, "own")
    for name in ("ens47f1", "ens48f1", "cali1", "cali2"):
        datapath.put("devices", next(candidates(datapath.interfaces[name].ifindex)), name)
    datapath.second = SECOND
    datapath.mode("on")


WORKLOADS = {
    "10.244.1.10": "cali1",
    "10.244.1.11": "cali2",
    "fd00:10:244:1::10": "cali1",
    "fd00:10:244:1::11": "cali2",
}
PEERS = ("198.18.0.12/32", "10.244.2.0/24", "fd00:198:18::12/128", "fd00:10:244:2::/64")
OWN = ("198.18.0.11/32", "fd00:198:18::11/128")
