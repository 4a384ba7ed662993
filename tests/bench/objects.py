# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs and maps of the benchmark: compiled as on a node, held by this process, pinned nowhere."""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ansible

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import layout as _layout
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import call
from ansible_collections.ebpf.overlay.plugins.module_utils._maps import codec
from ansible_collections.ebpf.overlay.plugins.module_utils._objects import compiler

PYTHON = "/usr/bin/python3"  # the one that has bcc
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OVERLAY = Path(os.environ.get("BENCH_SOURCE") or ROOT / "roles/node/files/bpf/overlay.c")


class BenchError(Exception):
    """The benchmark cannot run, or what it ran was not what it meant to measure."""


@dataclass(frozen=True)
class Loaded:
    """File descriptors by name."""

    programs: Mapping[str, int]
    maps: Mapping[str, int]

    def write(self, name: str, entries: Iterable[tuple[Any, Any]], schemas: Mapping[str, tuple[Any, Any]]) -> None:
        """Entries as people write them, in the schema of the map ``name``."""
        info = bpf.map_info(self.maps[name])
        key = codec.Codec(schemas[name][0], "key", info.key_size)
        value = codec.Codec(schemas[name][1], "value", info.value_size)
        for one, other in entries:
            bpf.map_update(self.maps[name], key.encode(one), value.encode(other))

    def counters(self) -> dict[str, int]:
        """Packets by reason, such as ``uplink.to_workload``."""
        info = bpf.map_info(self.maps["stats"])
        value = codec.Codec(_layout.SCHEMAS["stats"][1], "value", info.value_size)
        packets = {}
        for index, label in enumerate(_layout.LABELS):
            raw = bpf.map_lookup(self.maps["stats"], index.to_bytes(4, "little"), info.value_stride) or b""
            copies = [raw[at : at + info.value_size] for at in range(0, len(raw), (info.value_size + 7) // 8 * 8)]
            packets[label] = int(value.decode(value.total(copies))["packets"])
        return packets


def build(source: Path, programs: Sequence[str], **defines: int) -> Loaded:
    """Compile, make the maps, load. Raises BenchError with the compiler's or the verifier's words."""
    paths = [ROOT / "collections", ROOT / "tests", Path(ansible.__file__).parents[1]]
    done = subprocess.run(
        [PYTHON, "-m", "bench.compile", str(source), ",".join(programs), *(f"-D{k}={v}" for k, v in defines.items())],
        env={**os.environ, "PYTHONPATH": ":".join(map(str, paths))},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BenchError(f"compiling {source.name} failed:\n{done.stderr.strip()}")
    product = json.loads(done.stdout)
    maps, replace = {}, {}
    for name, layout in product["maps"].items():
        # A devmap gets this flag from the kernel, which refuses to take it from us (kernel/bpf/devmap.c).
        flags = layout["flags"] & ~bpf.F_RDONLY_PROG
        maps[name] = bpf.map_create(
            layout["type"], layout["key_size"], layout["value_size"], layout["max_entries"], flags, name
        )
        replace[layout["fd"]] = maps[name]
    loaded = {}
    for name, code in product["programs"].items():
        try:
            loaded[name] = bpf.prog_load(compiler.with_maps(base64.b64decode(code), replace), name)
        except bpf.VerifierError as error:
            raise BenchError(f"loading {name} of {source.name} failed:\n{error.log[-2000:]}") from error
    return Loaded(loaded, maps)


def overlay(**defines: int) -> Loaded:
    return build(OVERLAY, ("from_uplink", "from_workload", "to_uplink", "to_workload"), **defines)


def original() -> Loaded:
    return build(HERE / "original.c", ("request", "reply"))


def blind(uplink: int, host_side: int, client: str) -> Loaded:
    """Redirects without looking, between these interfaces."""
    defines = {"UPLINK": uplink, "HOST_SIDE": host_side, "CLIENT": int(ipaddress.IPv4Address(client))}
    return build(HERE / "blind.c", ("blind_request", "blind_reply"), **defines)


def empty() -> Loaded:
    return build(HERE / "empty.c", ("empty",))


def verified_instructions(fd: int) -> int:
    """How many instructions the verifier looked at (``verified_insns`` in struct bpf_prog_info, offset 220)."""
    return int.from_bytes(call.object_info(fd, 224)[216:220], "little")
