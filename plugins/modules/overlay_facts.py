#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the overlay must know of a node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: overlay_facts
version_added: "1.0.0"
short_description: Gather what the overlay must know of a node
description:
  - Returns uplinks, workloads, addresses, routes, kernel and libraries as C(ansible_facts.overlay).
  - Workloads are found by the host routes that point at their interfaces, as Calico installs them. No API is asked.
  - Reads with C(ip), with C(nft) where it is installed, and below C(/proc) and C(/sys); nothing needs to be installed
    beforehand.
  - Where there are C(nft) and C(iptables-save), they tell which ports have a conntrack helper.
options:
  uplinks:
    description:
      - Names of the node's uplinks, globs allowed.
      - When empty, the links of all default routes, by all next hops, to which the links of the routes to the other
        nodes and their workloads are added later.
      - Links on which the datapath cannot work are left out; C(links_left_out) names them.
    type: list
    elements: str
    default: []
  workload_interfaces:
    description: Names of the host-side interfaces of workloads, globs allowed.
    type: list
    elements: str
    default: [cali*]
  exclude:
    description:
      - Workloads that stay in the kernel's path, by address, prefix or name of their interface, globs allowed.
      - They are told as all others are, each with all its addresses, with the entry that names it in C(excluded).
    type: list
    elements: str
    default: []
  known_peers:
    description:
      - Whether to tell the peers of the node's confirmed generation. They stay where they are while the facts of other
        nodes are missing.
    type: bool
    default: false
  compare:
    description:
      - Whether to compare the node with its confirmed generation, as C(ansible_facts.overlay.generation) tells.
      - That is done where the generation was made by the code of this collection, and takes half a second.
    type: bool
    default: false
  code:
    description: The digest of that code, as the action plugin hands it over. Not for use in playbooks.
    type: str
extends_documentation_fragment:
  - ebpf.overlay.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
    details: It changes nothing.
author:
  - ebpf.overlay maintainers (@ebpf-overlay)
"""

EXAMPLES = r"""
- name: Gather the overlay's facts
  ebpf.overlay.overlay_facts:
    workload_interfaces: [cali*, veth-app*]

- name: Show the workloads of this node
  ansible.builtin.debug:
    var: ansible_facts.overlay.workloads

- name: Gather them where the way to other nodes is none of the default routes
  ebpf.overlay.overlay_facts:
    uplinks: [bond0, "ens*"]

- name: Refuse kernels that are too old
  ansible.builtin.assert:
    that: ansible_facts.overlay.capabilities.supported

- name: Ask whether the node is still what its generation says
  ebpf.overlay.overlay_facts:
    compare: true
"""

RETURN = r"""
ansible_facts:
  description: Facts.
  returned: success
  type: dict
  contains:
    overlay:
      description: The overlay's facts of this node.
      returned: success
      type: dict
      sample:
        addresses: ["198.18.0.11", "fd00:198:18::11"]
        capabilities: {btf: true, check_mtu: true, redirect: peer, redirect_peer_safe: true, supported: true, tcx: true}
        conntrack:
          helpers: [{by: a rule in inet filter prerouting, first: 21, helper: ftp, last: 21}]
          liberal: false
          loaded: true
          settings: {net.netfilter.nf_conntrack_tcp_be_liberal: 0}
        control: {deadline: 0, epoch: 1, generation: 0, mode: "on", second: 250}
        format: 2
        generation: {number: 2, digest: 5f3b103b75d4…, switched_off: false, as_confirmed: true, overlayctl: true}
        interfaces:
          - addresses: ["198.18.0.11/24"]
            external: false
            ifindex: 2
            kind: veth
            link_type: ether
            loopback: false
            mac: "02:00:c6:12:00:0b"
            master: ""
            member_of: ""
            mtu: 1500
            name: ens47f1
            primary: ["198.18.0.11"]
            unfit: ""
            up: true
        gathered_at: 1764043200
        identity: {machine_id: 3e0a4c1f5a5f4a32a6d6b3a0d1f6f1aa, boot_id: 0b1c7f3e-6c0b-4f43-9d35-6a2f0c1be111}
        kernel: {release: "6.12.43+deb13-amd64", version: "6.12.43"}
        libraries: {bcc: true, pyroute2: true, headers: true}
        package_manager: apt
        known_peers: []
        links_left_out:
          - {name: tunl0, reason: "its packets have no Ethernet header (link type ipip)"}
        own_addresses: ["198.18.0.11", "fd00:198:18::11"]
        routes:
          - {prefix: 10.244.2.0/24, interface: ens47f1, gateway: 198.18.0.12, metric: 0, source: null, table: null}
        uplinks:
          - addresses: ["198.18.0.11/24"]
            gateways: ["198.18.0.1"]
            ifindex: 2
            mac: "02:00:c6:12:00:0b"
            mtu: 1500
            name: ens47f1
            primary: ["198.18.0.11"]
        uplinks_by_route: true
        workload_prefixes: [10.244.1.0/26]
        workloads:
          - address: 10.244.1.11
            excluded: ""
            ifindex: 5
            interface: cali0a1b2c3d
            mac: "02:00:0a:f4:01:0b"
            may_be_taken: ""
            mtu: 1500
            never_admitted: ""
            never_by_peer: "the qdisc tbf"
            unfit: ""
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.ebpf.overlay.plugins.module_utils._core.shell import available, run
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.facts import SPEC, gather


def main() -> None:
    module = AnsibleModule(argument_spec=SPEC, supports_check_mode=True)

    def command(arguments: list[str]) -> tuple[int, str, str]:
        return module.run_command(arguments, handle_exceptions=False)

    def facts() -> dict[str, object]:
        return {"overlay": gather(module.params, command, available, module.warn)}

    run(module, lambda: {"changed": False, "ansible_facts": facts()})


if __name__ == "__main__":
    main()
