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
  - Reads with C(ip) and below C(/proc) and C(/sys); nothing needs to be installed beforehand.
  - Where there are C(nft) and C(iptables-save), they tell which ports have a conntrack helper.
options:
  uplinks:
    description:
      - Names of the node's uplinks, globs allowed.
      - When empty, the interfaces of the default routes, to which the interfaces of the routes to the other nodes are
        added later.
    type: list
    elements: str
    default: []
  workload_interfaces:
    description: Names of the host-side interfaces of workloads, globs allowed.
    type: list
    elements: str
    default: [cali*]
  known_peers:
    description:
      - Whether to tell the peers of the node's confirmed generation. They stay where they are while the facts of other
        nodes are missing.
    type: bool
    default: false
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
        capabilities: {btf: true, check_mtu: true, redirect_peer_safe: true, supported: true, tcx: true}
        conntrack:
          helpers: [{by: a rule in inet filter prerouting, first: 21, helper: ftp, last: 21}]
          liberal: false
          loaded: true
          settings: {net.netfilter.nf_conntrack_tcp_be_liberal: 0}
        control: {deadline: 0, generation: 0, mode: "on", session: 1}
        interfaces:
          - addresses: ["198.18.0.11/24"]
            ifindex: 2
            kind: veth
            loopback: false
            mac: "02:00:c6:12:00:0b"
            mtu: 1500
            name: ens47f1
            up: true
        gathered_at: 1764043200
        identity: {machine_id: 3e0a4c1f5a5f4a32a6d6b3a0d1f6f1aa, boot_id: 0b1c7f3e-6c0b-4f43-9d35-6a2f0c1be111}
        kernel: {release: "6.12.43+deb13-amd64", version: "6.12.43"}
        libraries: {bcc: true, pyroute2: true}
        package_manager: apt
        known_peers: []
        routes:
          - {prefix: 10.244.2.0/24, interface: ens47f1, gateway: 198.18.0.12, metric: 0}
        uplinks:
          - addresses: ["198.18.0.11/24"]
            gateways: ["198.18.0.1"]
            ifindex: 2
            mac: "02:00:c6:12:00:0b"
            mtu: 1500
            name: ens47f1
        uplinks_by_route: true
        workloads:
          - {address: 10.244.1.11, interface: cali0a1b2c3d, ifindex: 5, mtu: 1500, mac: "02:00:0a:f4:01:0b"}
"""

import os
import platform
import shutil
import time
from dataclasses import asdict
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.ebpf.overlay.plugins.module_utils import _generations, _kernel, _links, _topology
from ansible_collections.ebpf.overlay.plugins.module_utils._control import known_control
from ansible_collections.ebpf.overlay.plugins.module_utils._generation_store import Store
from ansible_collections.ebpf.overlay.plugins.module_utils._helper_ports import find_helper_ports
from ansible_collections.ebpf.overlay.plugins.module_utils._identity import identity
from ansible_collections.ebpf.overlay.plugins.module_utils._layout import PIN_DIR
from ansible_collections.ebpf.overlay.plugins.module_utils._module import importable, run
from ansible_collections.ebpf.overlay.plugins.module_utils._plan_conntrack import LIBERAL, is_liberal
from ansible_collections.ebpf.overlay.plugins.module_utils._sysctls import read_values


def known_peers(interfaces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The peers of the confirmed generation, without the node's own addresses."""
    history = Store().read()
    if history.confirmed not in history.generations:
        return []
    ifindexes = {interface["name"]: interface["ifindex"] for interface in interfaces}
    calls = _generations.calls_to(history, history.confirmed, ifindexes)
    filled = {call["arguments"].get("map"): call["arguments"].get("entries", []) for call in calls}
    return [entry for entry in filled.get(f"{PIN_DIR}/peers", []) if entry["value"]["uplink"]]


def gather(module: AnsibleModule) -> dict[str, Any]:
    def command(arguments: list[str]) -> tuple[int, str, str]:
        return module.run_command(arguments)

    globs, workload_globs = module.params["uplinks"], module.params["workload_interfaces"]
    interfaces = _links.interfaces(command)
    routes = _links.routes(command)
    workloads = _topology.find_workloads(interfaces, routes, _links.neighbours(command), workload_globs)
    uplinks = _topology.find_uplinks(interfaces, routes, globs, workload_globs)
    if not workloads:
        module.warn(
            f"No workload found: no host route leads to an interface that matches {', '.join(workload_globs)}. "
            "That is right for a node without workloads; otherwise correct workload_interfaces."
        )
    carriers = {workload["interface"] for workload in workloads}
    control = known_control(PIN_DIR)
    conntrack = read_values()
    version = _kernel.stable_version(platform.release(), platform.version())
    return {
        "uplinks": uplinks,
        "uplinks_by_route": not globs,
        "workloads": workloads,
        "interfaces": [
            interface for interface in interfaces if not interface["loopback"] and interface["name"] not in carriers
        ],
        "addresses": sorted(address.split("/")[0] for interface in interfaces for address in interface["addresses"]),
        "routes": [route for route in routes if route["interface"] not in carriers],
        "kernel": {"release": platform.release(), "version": ".".join(map(str, version))},
        "capabilities": {**_kernel.capabilities(version), "btf": os.path.exists("/sys/kernel/btf/vmlinux")},
        "package_manager": "apt" if shutil.which("apt-get") else "dnf",
        "libraries": {library: importable(library) for library in ("bcc", "pyroute2")},
        "identity": identity(),
        "gathered_at": int(time.time()),
        "known_peers": known_peers(interfaces) if module.params["known_peers"] else [],
        "control": asdict(control) if control else None,
        "conntrack": {
            "loaded": LIBERAL in conntrack,
            "liberal": is_liberal(conntrack),
            "settings": conntrack,
            "helpers": find_helper_ports(command, module.warn),
        },
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "uplinks": {"type": "list", "elements": "str", "default": []},
            "workload_interfaces": {"type": "list", "elements": "str", "default": ["cali*"]},
            "known_peers": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    run(module, lambda: {"changed": False, "ansible_facts": {"overlay": gather(module)}})


if __name__ == "__main__":
    main()
