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

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.ebpf.overlay.plugins.module_utils._core.shell import run
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.probe import SPEC, probe


def main() -> None:
    module = AnsibleModule(argument_spec=SPEC, supports_check_mode=True)
    run(module, lambda: probe(module.params, module.check_mode, module.run_command))


if __name__ == "__main__":
    main()
