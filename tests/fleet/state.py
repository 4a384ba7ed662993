# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything on a node that the overlay could change, read from outside with the machine's own tools."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.api import Node

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.layout import PIN_DIR, SCHEMAS
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps
from ansible_collections.ebpf.overlay.plugins.module_utils._maps.codec import Codec
from ansible_collections.ebpf.overlay.plugins.module_utils._maps.pinned import opened

# Written by connecting and running anything at all, by time passing, or by the kernel.
_NOISE = re.compile(
    r"^/(proc|sys|dev|tmp|root/\.ansible|var/log|var/tmp|run/(sshd|motd|utmp))|/__pycache__/|/home/.*/\.ansible"
)


@dataclass(frozen=True)
class NodeState:
    """``filters`` and ``qdiscs``: what tc prints, and what runs through TCX. ``pins``: what is on the bpffs, None where
    none is mounted."""

    qdiscs: tuple[str, ...]
    filters: tuple[str, ...]
    pins: tuple[str, ...] | None
    files: tuple[str, ...]


# No tool of the machine's tells what runs through TCX.
LINKS = """
import os, socket
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
for index, name in sorted(socket.if_nameindex()):
    for direction, way in (("ingress", bpf.ATTACH_TCX_INGRESS), ("egress", bpf.ATTACH_TCX_EGRESS)):
        for number, _link in bpf.prog_query_tcx(index, way)[1]:
            program = bpf.prog_fd_by_id(number)
            print(name, direction, "tcx", bpf.prog_info(program).name, "id", number)
            os.close(program)
"""


def observe(node: Node) -> NodeState:
    """The state of a node, comparable with ``==``."""
    qdiscs = _qdiscs(node)
    interfaces = sorted({line.split()[-1] for line in qdiscs if re.match(r"(clsact|ingress) ", line)})
    filters = [
        f"{interface} {direction} {line}"
        for interface in interfaces
        for direction in ("ingress", "egress")
        for line in node.host_run(["tc", "filter", "show", "dev", interface, direction], check=False).splitlines()
    ]
    collections = Path(__file__).resolve().parents[2] / "collections"
    filters += node.host_run(["env", f"PYTHONPATH={collections}", sys.executable, "-c", LINKS]).splitlines()
    mounted = node.run(["sh", "-c", "grep -c ' /sys/fs/bpf bpf ' /proc/mounts"], check=False).stdout.strip() != "0"
    pins = node.run(["find", "/sys/fs/bpf", "-mindepth", "1"]).stdout.splitlines() if mounted else None
    listed = node.run(["find", "/", "-xdev", "-type", "f", "-printf", "%p %s %T@\n"]).stdout.splitlines()
    listed += node.run(["find", "/run", "-type", "f", "-printf", "%p %s\n"]).stdout.splitlines()
    return NodeState(
        tuple(qdiscs),
        tuple(filters),
        None if pins is None else tuple(sorted(pin for pin in pins if not pin.endswith(".debug"))),
        tuple(sorted(line for line in listed if not _NOISE.search(line))),
    )


def assert_same(seen: NodeState, wanted: NodeState) -> None:
    """Equal, or an AssertionError with what came and what went."""
    for name in ("qdiscs", "filters", "pins", "files"):
        after, before = set(getattr(seen, name) or ()), set(getattr(wanted, name) or ())
        assert after == before, f"{name}: new {sorted(after - before)}, gone {sorted(before - after)}"
    assert seen == wanted


def _qdiscs(node: Node) -> list[str]:
    listed: list[dict[str, Any]] = json.loads(node.host_run(["tc", "-j", "qdisc", "show"]))
    return sorted(f"{q['kind']} {q['handle']} {q.get('parent', 'root')} {q['dev']}" for q in listed)


def loaded() -> dict[str, set[str]]:
    """Programs and maps of the whole kernel, as ``id name``."""
    return {"programs": _walk("prog"), "maps": _walk("map")}


def _walk(kind: str) -> set[str]:
    found = set()
    step = bpf_maps.next_prog_id if kind == "prog" else bpf_maps.next_map_id
    number = step(0)
    while number is not None:
        found.add(str(number))
        number = step(number)
    return found


def counted(node: Node) -> dict[str, int]:
    """Packets by ``direction.reason``, read from the node's own map; empty where no datapath is loaded."""
    path = f"/proc/{node.pid}/root{PIN_DIR}/stats"
    key, value = (Codec(schema, what) for schema, what in zip(SCHEMAS["stats"], ("key", "value")))
    with opened(path) as found:
        entries = found.read(value.total) if found else {}
        return {key.decode(raw): value.decode(data)["packets"] for raw, data in entries.items()}


def program_ids(node: Node) -> dict[str, int]:
    """Name -> id of the programs that run as our filters, or through TCX, on a node."""
    text = "\n".join(observe(node).filters)
    found = re.findall(r"(?:ebpf\.overlay:|tcx )(\w+).*? id (\d+)", text)
    return {f"{name} {number}": int(number) for name, number in found}
