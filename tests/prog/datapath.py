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

from ansible_collections.ebpf.overlay.plugins.module_utils import _bpf_syscall as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._bpf_call import object_info
from ansible_collections.ebpf.overlay.plugins.module_utils._codec import Codec
from ansible_collections.ebpf.overlay.plugins.module_utils._layout import DEVICES, SCHEMAS
from ansible_collections.ebpf.overlay.plugins.module_utils._reasons import LABELS

ROOT = Path(__file__).resolve().parents[2]
OVERLAY = ROOT / "roles/node/files/bpf/overlay.c"
PYTHON = "/usr/bin/python3"  # the one that has bcc

PASS, REDIRECT = -1, 7  # TC_ACT_UNSPEC, TC_ACT_REDIRECT (include/uapi/linux/pkt_cls.h)
PEER, NEIGH, PLAIN = 2, 1, 0
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
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    said = json.loads(text)
    return Object(dict(zip(said["names"], descriptors)), said["compiler"])


@dataclass(frozen=True)
class Result:
    """``counted``: what grew, by label such as ``uplink.to_workload``: packets, and bytes beside them."""

    verdict: int
    sent: bytes
    data: bytes
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
        assert self.bytes == {**dict.fromkeys(self.bytes, 0), **{k: len(self.sent) for k, v in self.bytes.items() if v}}
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
        known = {name: interface.ifindex for name, interface in interfaces.items()}
        self.codecs = {
            name: (Codec(key, "key", info.key_size, known), Codec(value, "value", info.value_size, known))
            for name, (key, value) in SCHEMAS.items()
            for info in [bpf.map_info(built.descriptors[name])]
        }
        self._stats = bpf.map_info(built.descriptors["stats"])
        self._before = self._read_stats()

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
        return sum(len(keys) // key.size for keys, _ in blocks)

    def clear(self, *names: str) -> None:
        for name in names:
            descriptor, size = self.object.descriptors[name], self.codecs[name][0].size
            while (key := bpf.map_next_key(descriptor, None, size)) is not None:
                bpf.map_delete(descriptor, key)
        if "flows" in names:
            self.change_every_version()

    def change_every_version(self) -> None:
        """No processor believes any more what it remembers of flows."""
        known = self.entries("versions")
        key, value = self.codecs["versions"]
        keys = b"".join(key.encode(bucket) for bucket, _ in known)
        values = b"".join(value.encode((version + 1) % 2**32) for _, version in known)
        bpf.map_update_batch(self.object.descriptors["versions"], keys, values, len(known))

    def mode(self, mode: str, *, session: int = 1, lease: float | None = None) -> None:
        """``lease``: seconds from now; negative ones are over."""
        deadline = 0 if lease is None else time.monotonic_ns() + int(lease * 1e9)
        self.put("control", 0, {"deadline": deadline, "mode": mode, "session": session, "generation": 1})

    def flow(self, table: str, workload: str, remote: str, workload_port: int, remote_port: int) -> Any:
        key = {"workload": workload, "remote": remote, "workload_port": workload_port, "remote_port": remote_port}
        return self.get(table, {**key, "protocol": 6})

    # -- packets ---------------------------------------------------------------------------------------------------

    def run(
        self, program: str, frame: bytes, interface: str, *, gso_size: int = 0, repeat: int = 1, address: bool = True
    ) -> Result:
        """One packet that came in by ``interface``; its destination MAC is made that of the interface."""
        port = self.interfaces[interface]
        if address:
            frame = bytes.fromhex(port.mac.replace(":", "")) + frame[6:]
        verdict, data, _spent = self._test_run(program, frame, port.ifindex, gso_size, repeat)
        after = self._read_stats()
        grown = {
            label: (new[0] - old[0], new[1] - old[1])
            for label, new, old in zip(LABELS, after, self._before)
            if new != old
        }
        self._before = after
        packets = {label: pair[0] for label, pair in grown.items()}
        return Result(verdict, frame, data, packets, {label: pair[1] for label, pair in grown.items()})

    def nanoseconds(self, program: str, frame: bytes, interface: str, repeat: int) -> int:
        port = self.interfaces[interface]
        frame = bytes.fromhex(port.mac.replace(":", "")) + frame[6:]
        return self._test_run(program, frame, port.ifindex, 0, repeat)[2]

    def uplink(self, packet: bytes, interface: str = "ens47f1", **more: Any) -> Result:
        """``packet``: from the IP header on."""
        return self.run("from_uplink", _framed(packet), interface, **more)

    def workload(self, packet: bytes, interface: str = "cali1", **more: Any) -> Result:
        return self.run("from_workload", _framed(packet), interface, **more)

    def _test_run(self, program: str, frame: bytes, ifindex: int, gso_size: int, repeat: int) -> tuple[int, bytes, int]:
        # struct __sk_buff: ifindex at 40, gso_segs at 164, gso_size at 176 (include/uapi/linux/bpf.h).
        context = bytearray(192)
        struct.pack_into("=I", context, 40, ifindex)
        if gso_size:
            struct.pack_into("=I", context, 164, 2)
            struct.pack_into("=I", context, 176, gso_size)
        verdict, data, spent = bpf.prog_test_run(self.object.descriptors[program], frame, repeat, bytes(context))
        return verdict - (1 << 32) if verdict >> 31 else verdict, data, spent

    # -- counters --------------------------------------------------------------------------------------------------

    def _read_stats(self) -> list[tuple[int, int]]:
        stride = self._stats.value_stride
        raw = b"".join(
            values for _, values in bpf.map_lookup_batch(self.object.descriptors["stats"], 4, stride, len(LABELS))
        )
        copies = stride // COUNTER.size
        found = []
        for index in range(len(LABELS)):
            both = [COUNTER.unpack_from(raw, index * stride + cpu * COUNTER.size) for cpu in range(copies)]
            found.append((sum(one for one, _ in both), sum(other for _, other in both)))
        return found

    def total(self, reason: str) -> int:
        """Both directions, since the programs were loaded."""
        counts = dict(zip(LABELS, (packets for packets, _ in self._read_stats())))
        return counts[f"uplink.{reason}"] + counts[f"workload.{reason}"]

    def totals(self, reasons: Iterable[str]) -> dict[str, int]:
        return {reason: self.total(reason) for reason in reasons}


def _framed(packet: bytes) -> bytes:
    ethertype = 0x86DD if packet[:1] and packet[0] >> 4 == 6 else 0x0800
    return bytes(12) + struct.pack("!H", ethertype) + packet


def fill(datapath: Datapath) -> None:
    """A node with two workloads and one peer, ready and on. Flows of earlier tests are gone."""
    datapath.clear("ifindex_map", "peers", "flows", "transient", "silent")
    describe(datapath)
    for name in ("ens47f1", "ens48f1", "cali1", "cali2"):
        ifindex = datapath.interfaces[name].ifindex
        datapath.put("devices", ifindex % DEVICES, name)
    datapath.mode("on")


def describe(datapath: Datapath) -> None:
    """What the node is told about workloads and peers."""
    datapath.put("services", 8080, 1)
    for address, name in (("10.244.1.10", "cali1"), ("10.244.1.11", "cali2"),
                          ("fd00:10:244:1::10", "cali1"), ("fd00:10:244:1::11", "cali2")):  # fmt: skip
        datapath.put("ifindex_map", address, {"ifindex": name, "mtu": 1500, "flags": 0})
    for prefix, next_hop in PEERS.items():
        datapath.put("peers", prefix, {"uplink": "ens47f1", "mtu": 1500, "next_hop": next_hop})
    for address in OWN:
        datapath.put("peers", address, {"uplink": 0, "mtu": 0, "next_hop": "::"})


PEERS = {
    "198.18.0.12/32": "::",
    "10.244.2.0/24": "198.18.0.12",
    "fd00:198:18::12/128": "::",
    "fd00:10:244:2::/64": "fd00:198:18::12",
}
OWN = ("198.18.0.11/32", "fd00:198:18::11/128")
