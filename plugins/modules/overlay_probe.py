#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Connect to services as a client would, let keepalives travel, and read which way they took."""

from __future__ import annotations

DOCUMENTATION = r"""
module: overlay_probe
version_added: "1.0.0"
short_description: Connect to services on workloads, and tell whether the connections take the overlay
description:
  - Opens a TCP connection to each of O(targets), lets keepalives travel over it, and closes it. Keepalives carry no
    data, so no server minds.
  - A target that refuses the connection was reached, but has no service. A target that does not answer at all is an
    error.
  - With O(workloads), the connection comes from a workload of this node. Its network namespace is entered for that.
  - Tells of the connections in O(flows), and of its own from O(workloads), how many of their packets the overlay of
    this node sent by the fast path. So the node of the workload tells of a connection that another node made.
options:
  targets:
    description: Where to connect to.
    type: list
    elements: dict
    default: []
    suboptions:
      address:
        description: The address of a workload.
        type: str
        required: true
      port:
        description: The port of a service.
        type: int
        required: true
  workloads:
    description:
      - Connect from the first of these workloads that can be entered, to the first target that accepts.
      - A workload that cannot be entered, such as a virtual machine, and a target that does not answer, are no error
        then.
    type: list
    elements: dict
    default: []
    suboptions:
      address:
        description: The address of the workload.
        type: str
        required: true
      interface:
        description: The host side of its interface.
        type: str
        required: true
  flows:
    description: Connections of workloads of this node, as RV(connections[].flow) of another node names them.
    type: list
    elements: dict
    default: []
    suboptions:
      workload:
        description: The address of the workload.
        type: str
        required: true
      workload_port:
        description: The port on the side of the workload.
        type: int
        required: true
      remote:
        description: The address of the other end.
        type: str
        required: true
      remote_port:
        description: The port of the other end.
        type: int
        required: true
  timeout:
    description: How long to wait for each connection, in seconds.
    type: float
    default: 3
  duration:
    description:
      - How long to let keepalives travel, in seconds; one travels in any case, and the next ones 0.6 s apart.
      - With O(workloads) they end as soon as they took the fast path in both directions.
      - A connection may have to wait for up to 3 s until it gets the fast path, and for another second until its turn.
    type: float
    default: 5
extends_documentation_fragment:
  - ebpf.overlay.attributes
attributes:
  check_mode:
    support: full
    details: Nothing is connected in check mode.
  diff_mode:
    support: none
    details: It changes nothing.
author:
  - ebpf.overlay maintainers (@ebpf-overlay)
"""

EXAMPLES = r"""
- name: Connect to a workload of another node
  ebpf.overlay.overlay_probe:
    targets:
      - {address: 10.244.2.11, port: 8080}
  delegate_to: another-node
  register: probed

- name: Ask the node which way that took
  ebpf.overlay.overlay_probe:
    flows: "{{ probed.connections | map(attribute='flow') }}"

- name: Connect from a workload of this node to one of another node
  ebpf.overlay.overlay_probe:
    workloads:
      - {address: 10.244.2.11, interface: cali12345}
    targets:
      - {address: 10.244.1.11, port: 8080}
"""

RETURN = r"""
connections:
  description: The connections that were accepted.
  returned: success
  type: list
  elements: dict
  contains:
    flow:
      description: The connection, as O(flows) wants it on the node of the workload.
      type: dict
    keepalives:
      description: How many were sent.
      type: int
    answered:
      description: How many of them were answered.
      type: int
    retransmissions:
      description: How many segments were sent again.
      type: int
    closed:
      description: Whether the other end closed the connection meanwhile.
      type: bool
  sample:
    - flow: {workload: 10.244.2.11, workload_port: 8080, remote: 198.18.0.11, remote_port: 40312}
      keepalives: 1
      answered: 1
      retransmissions: 0
      closed: false
connected:
  description: Targets that accepted the connection.
  returned: success
  type: list
  elements: str
  sample: ["10.244.2.11:8080"]
would_connect:
  description: Targets that a real run would connect to; empty in a real run.
  returned: success
  type: list
  elements: str
  sample: []
refused:
  description: Targets that were reached, and have no service there.
  returned: success
  type: list
  elements: str
  sample: []
silent:
  description: Targets that did not answer, each with the reason; only with O(workloads).
  returned: success
  type: list
  elements: str
  sample: []
not_entered:
  description: Workloads that no connection could be made from, each with the reason.
  returned: success
  type: list
  elements: str
  sample: []
flows:
  description: The flows that were asked for, and those of the connections from O(workloads).
  returned: success
  type: list
  elements: dict
  contains:
    admitted:
      description: Whether the datapath has admitted it.
      type: bool
    interface:
      description: The number of the workload's interface; 0 where the flow was not admitted.
      type: int
    link:
      description: The link by which the node reaches the other end of a flow that was not admitted.
      type: str
    to_workload:
      description: Packets that took the fast path to the workload.
      type: int
    to_uplink:
      description: Packets that took the fast path to the uplink.
      type: int
  sample:
    - workload: 10.244.2.11
      workload_port: 8080
      remote: 198.18.0.11
      remote_port: 40312
      admitted: true
      interface: 7
      link: ""
      to_workload: 1
      to_uplink: 1
counters:
  description: Packets by direction and reason that the overlay of this node has counted so far, without zeros.
  returned: success
  type: dict
  sample: {uplink.to_workload: 1234, uplink.heartbeat: 17}
"""

import errno
import socket
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.shell import run
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.flows import COUNTED, read_counters, read_flows
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.layout import PIN_DIR
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import keepalives
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.ip import link_to
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.workload_namespace import NotEnteredError, inside


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


def probe(module: AnsibleModule) -> dict[str, Any]:
    params = module.params
    made = Probe(params["targets"], params["timeout"], params["duration"])
    if module.check_mode:
        made.told["would_connect"] = [name_of(target) for target in params["targets"]]
    elif params["workloads"]:
        for workload in params["workloads"]:
            if made.from_workload(workload):
                break
    else:
        made.from_here()
    flows = made.flows + read_flows(PIN_DIR, params["flows"])
    for flow in flows:
        flow["link"] = "" if flow["admitted"] else link_to(module.run_command, flow["remote"])
    counters = read_counters(PIN_DIR)
    return {**made.told, "connections": made.connections, "flows": flows, "counters": counters, "changed": False}


def options(**types: str) -> dict[str, Any]:
    """A list of dicts with these members."""
    members = {name: {"type": kind, "required": True} for name, kind in types.items()}
    return {"type": "list", "elements": "dict", "default": [], "options": members}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "targets": options(address="str", port="int"),
            "workloads": options(address="str", interface="str"),
            "flows": options(workload="str", workload_port="int", remote="str", remote_port="int"),
            "timeout": {"type": "float", "default": 3},
            "duration": {"type": "float", "default": 5},
        },
        supports_check_mode=True,
    )
    run(module, lambda: probe(module))


if __name__ == "__main__":
    main()
