# SPDX-License-Identifier: GPL-3.0-or-later
"""The maps of the loaded datapath, as people write what is in them, and the flows in them, suspended or removed."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Callable

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.lock import one_run
from ansible_collections.ebpf.overlay.plugins.module_utils._core.plan import Change, Plan
from ansible_collections.ebpf.overlay.plugins.module_utils._core.resource import Warn, converge
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.conntrack import LIBERAL
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.control import jiffies_per_second
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.layout import FLOW_KEY, PIN_DIR, SCHEMAS
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.sysctls import read_values
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.conntrack import Connection, delete_entries
from ansible_collections.ebpf.overlay.plugins.module_utils._maps.pinned import PinnedMap, codecs, opened

from .flow_states import Flow, Selection, state_of, suspended

# linux/jiffies.h, INITIAL_JIFFIES: they begin five minutes before 2^32.
_BEGIN = 1 << 32
_BEGIN_SECONDS = 300
_ENDS = {field["name"] for field in FLOW_KEY if "name" in field}


def jiffies() -> int:
    """As the datapath reads them (``bpf_jiffies64``), within a third of a second."""
    second = jiffies_per_second()
    return _BEGIN + int((time.monotonic() - _BEGIN_SECONDS) * second)


class Map:
    """One map, open, with the codecs of its keys and values."""

    def __init__(self, name: str, found: PinnedMap) -> None:
        self.found = found
        self.key, self.value = codecs(found.path, found, None, None, SCHEMAS[name])

    def lookup(self, key: Any) -> Any:
        """None where it has no such entry."""
        raw = bpf.map_lookup(self.found.fd, self.key.encode(key), self.value.size)
        return None if raw is None else self.value.decode(raw)

    def entries(self, wanted: Callable[[Any], bool] = bool) -> Iterator[tuple[bytes, Any, Any]]:
        """Key as bytes, key, value; of the keys that are wanted."""
        for raw, held in self.found.read(self.value.total).items():
            key = self.key.decode(raw)
            if wanted(key):
                yield raw, key, self.value.decode(held)


def read(name: str, ask: Callable[[Map], Any], otherwise: Any = None) -> Any:
    """What ``ask`` finds in the map; ``otherwise`` where no datapath is loaded. Raises :class:`OverlayError`."""
    with opened(f"{PIN_DIR}/{name}") as found:
        return otherwise if found is None else ask(Map(name, found))


def flows(selection: Selection) -> list[tuple[bytes, dict[str, Any]]]:
    """Those that match, key as bytes, and key and value in one. Raises :class:`OverlayError`."""
    now = jiffies()

    def ask(known: Map) -> list[tuple[bytes, dict[str, Any]]]:
        matching = [(raw, {**key, **value}) for raw, key, value in known.entries(selection.matches)]
        return [(raw, flow) for raw, flow in matching if selection.state in (None, state_of(flow, now))]

    found: list[tuple[bytes, dict[str, Any]]] = read("flows", ask, [])
    return found


def counters() -> dict[str, dict[str, int]]:
    """Packets and bytes by ``direction.reason``, without zeros. Raises :class:`OverlayError`."""

    def ask(stats: Map) -> dict[str, dict[str, int]]:
        return {key: value for _raw, key, value in stats.entries() if value["packets"]}

    found: dict[str, dict[str, int]] = read("stats", ask, {})
    return found


# --- flows put back on the kernel's path ------------------------------------------------------------------------------


@dataclass(frozen=True)
class SuspendFlow:
    key: bytes
    flow: Flow


@dataclass(frozen=True)
class RemoveFlow:
    key: bytes


@dataclass(frozen=True)
class DeleteEntries:
    """Those of conntrack."""

    connections: frozenset[Connection]


def describe(flow: Flow) -> str:
    return f"{_end(flow['workload'], flow['workload_port'])} <-> {_end(flow['remote'], flow['remote_port'])}"


def _end(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class Chosen:
    """The flows that match at the first look. Those that begin later are not meant, however often it is looked at."""

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self._keys: set[bytes] | None = None

    def observe(self) -> list[tuple[bytes, dict[str, Any]]]:
        found = flows(self.selection)
        if self._keys is None:
            self._keys = {raw for raw, _flow in found}
        return [(raw, flow) for raw, flow in found if raw in self._keys]


class Suspended(Chosen):
    """Flows leave the shortcut until ``until`` (jiffies), and live on in the kernel's path."""

    def __init__(self, selection: Selection, until: int) -> None:
        super().__init__(selection)
        self.until = until

    def plan(self, seen: Sequence[tuple[bytes, Flow]]) -> Plan:
        wanted = [(raw, flow) for raw, flow in seen if flow["seen"] < self.until and not flow["ended"]]
        return Plan(
            tuple(SuspendFlow(raw, flow) for raw, flow in wanted),
            tuple(Change("flow", describe(flow), None, f"{describe(flow)} suspended") for _raw, flow in wanted),
            result={"flows": [describe(flow) for _raw, flow in wanted]},
        )

    def apply(self, operations: tuple[Any, ...]) -> None:
        def write(known: Map) -> None:
            for operation in operations:
                flow = {name: part for name, part in operation.flow.items() if name not in _ENDS}
                value = known.value.encode(suspended(flow, self.until))
                try:
                    bpf.map_update(known.found.fd, operation.key, value, bpf.BPF_EXIST)
                except FileNotFoundError:  # ended or evicted meanwhile: in the kernel's path already
                    continue
                except OSError as error:
                    raise OverlayError("suspend a flow", describe(operation.flow), error, "Run as root.") from error

        read("flows", write)


class Cut(Chosen):
    """Flows are forgotten, by the datapath and by conntrack, so that the packet filter decides about them anew."""

    def __init__(self, selection: Selection) -> None:
        super().__init__(selection)
        self.deleted = 0

    def plan(self, seen: Sequence[tuple[bytes, Flow]]) -> Plan:
        connections = frozenset(connection_of(flow) for _raw, flow in seen)
        # The datapath first: until it has forgotten them, its packets do not come to conntrack.
        removals = tuple(RemoveFlow(raw) for raw, _flow in seen)
        return Plan(
            (*removals, DeleteEntries(connections)) if seen else (),
            tuple(Change("flow", describe(flow), describe(flow), None) for _raw, flow in seen),
            result={"flows": [describe(flow) for _raw, flow in seen]},
        )

    def apply(self, operations: tuple[Any, ...]) -> None:
        def remove(known: Map) -> None:
            for operation in operations:
                if isinstance(operation, RemoveFlow):
                    bpf.map_delete(known.found.fd, operation.key)

        read("flows", remove)
        for operation in operations:
            # To ask a kernel that has not loaded conntrack would load it.
            if isinstance(operation, DeleteEntries) and LIBERAL in read_values():
                self.deleted += delete_entries(operation.connections)


def connection_of(flow: Flow) -> Connection:
    return frozenset((ipaddress.ip_address(flow[end]).packed, flow[f"{end}_port"]) for end in ("workload", "remote"))


def suspend(selection: Selection, seconds: float, warn: Warn) -> dict[str, Any]:
    """Raises :class:`OverlayError`."""
    wanted = Suspended(selection, jiffies() + int(seconds * jiffies_per_second()))
    with one_run():
        return {**converge(wanted, False, warn).result, "seconds": seconds}


def cut(selection: Selection, check: bool, warn: Warn) -> dict[str, Any]:
    """Raises :class:`OverlayError`."""
    wanted = Cut(selection)
    with one_run():
        planned = converge(wanted, check, warn)
    return {**planned.result, "conntrack_entries": wanted.deleted}
