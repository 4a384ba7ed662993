# SPDX-License-Identifier: GPL-3.0-or-later
"""New connections over the overlay, and what it did with them."""

from __future__ import annotations

import errno
import socket
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.resource import Params
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import keepalives
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.ip import Run, link_to
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.workload_namespace import NotEnteredError, inside

from .flows import COUNTED, read_counters, read_flows
from .layout import PIN_DIR


def options(**types: str) -> dict[str, Any]:
    """A list of dicts with these members."""
    members = {name: {"type": kind, "required": True} for name, kind in types.items()}
    return {"type": "list", "elements": "dict", "default": [], "options": members}


SPEC: dict[str, Any] = {
    "targets": options(address="str", port="int"),
    "workloads": options(address="str", interface="str"),
    "flows": options(workload="str", workload_port="int", remote="str", remote_port="int"),
    "timeout": {"type": "float", "default": 3},
    "duration": {"type": "float", "default": 5},
}


class Probe:
    """What is told of it. Raises :class:`OverlayError`."""

    def __init__(self, targets: list[dict[str, Any]], timeout: float, duration: float) -> None:
        self.targets = targets
        self.timeout = timeout
        self.duration = duration
        self.connections: list[dict[str, Any]] = []
        self.flows: list[dict[str, Any]] = []
        self.told: dict[str, list[str]] = {
            name: [] for name in ("connected", "would_connect", "refused", "silent", "not_entered")
        }

    def from_here(self) -> None:
        """To every target."""
        opened = []
        try:
            for target in self.targets:
                try:
                    opened.append(self._connect(target))
                except ConnectionRefusedError:
                    continue
                except OSError as error:
                    raise OverlayError(
                        "connect to a workload",
                        f"{target['address']} port {target['port']} from {socket.gethostname()}",
                        keepalives.why_not(error, self.timeout),
                        "Compare with mode off: playbooks/disable.yml switches the overlay off everywhere.",
                    ) from error
            keepalives.keep_alive(opened, self.duration)
            for connection in opened:
                (workload, workload_port), (remote, remote_port) = connection.remote, connection.local
                self._report(connection, workload, workload_port, remote, remote_port)
        finally:
            for connection in opened:
                connection.socket.close()

    def from_workload(self, workload: dict[str, Any]) -> bool:
        """To the first target that accepts. Whether there was one, or nobody else would find one."""
        address, interface = workload["address"], workload["interface"]
        reachable = [target for target in self.targets if (":" in target["address"]) == (":" in address)]
        if not reachable:
            return False
        try:
            connection = inside(interface, lambda: self._first(reachable, address))
        except NotEnteredError as why:
            self.told["not_entered"].append(f"{address}: {why}")
            return False
        if connection is None:
            return True
        try:
            (remote, remote_port), (_address, port) = connection.remote, connection.local
            flow = {"workload": address, "workload_port": port, "remote": remote, "remote_port": remote_port}

            def took_the_fast_path() -> bool:
                seen = read_flows(PIN_DIR, [flow])[0]
                return all(seen[name] for name in COUNTED)

            keepalives.keep_alive([connection], self.duration, took_the_fast_path)
            self._report(connection, *flow.values())
            self.flows += read_flows(PIN_DIR, [flow])
        finally:
            connection.socket.close()
        return True

    def _first(self, targets: list[dict[str, Any]], source: str) -> keepalives.Connection | None:
        for target in targets:
            try:
                return self._connect(target, source)
            except ConnectionRefusedError:
                continue
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    raise NotEnteredError("the network namespace behind it does not have the address") from error
                why = keepalives.why_not(error, self.timeout)
                self.told["silent"].append(f"{name_of(target)}: {why}")
        return None

    def _connect(self, target: dict[str, Any], source: str = "") -> keepalives.Connection:
        try:
            connection = keepalives.connect(target["address"], target["port"], self.timeout, source)
        except ConnectionRefusedError:
            self.told["refused"].append(name_of(target))
            raise
        self.told["connected"].append(name_of(target))
        return connection

    def _report(
        self, connection: keepalives.Connection, workload: str, workload_port: int, remote: str, remote_port: int
    ) -> None:
        flow = {"workload": workload, "workload_port": workload_port, "remote": remote, "remote_port": remote_port}
        self.connections.append({"flow": flow, **keepalives.report(connection)})


def name_of(target: dict[str, Any]) -> str:
    return f"{target['address']}:{target['port']}"


def probe(params: Params, check: bool, run_command: Run) -> dict[str, Any]:
    """The return values of the module. Nothing is connected where ``check`` is true."""
    made = Probe(params["targets"], params["timeout"], params["duration"])
    if check:
        made.told["would_connect"] = [name_of(target) for target in params["targets"]]
    elif params["workloads"]:
        for workload in params["workloads"]:
            if made.from_workload(workload):
                break
    else:
        made.from_here()
    flows = made.flows + read_flows(PIN_DIR, params["flows"])
    for flow in flows:
        flow["link"] = "" if flow["admitted"] else link_to(run_command, flow["remote"])
    counters = read_counters(PIN_DIR)
    return {**made.told, "connections": made.connections, "flows": flows, "counters": counters, "changed": False}
