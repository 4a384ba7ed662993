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
        generation: {number: 2, digest: 5f3b103b75d4…, switched_off: false, as_confirmed: true}
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
          - {prefix: 10.244.2.0/24, interface: ens47f1, gateway: 198.18.0.12, metric: 0, source: null}
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
            ifindex: 5
            interface: cali0a1b2c3d
            mac: "02:00:0a:f4:01:0b"
            may_be_taken: ""
            mtu: 1500
            never_admitted: ""
            never_by_peer: "the qdisc tbf"
"""

import os
import platform
import shutil
import time
from dataclasses import asdict
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.shell import available, run
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import topology
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import uplinks as _uplinks
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import workloads as _workloads
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.conntrack import LIBERAL, is_liberal
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.control import known_control
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.layout import BPFFS, PIN_DIR
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.peers import PEER
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.sysctls import read_values
from ansible_collections.ebpf.overlay.plugins.module_utils._generations import model
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.runtime import is_as_confirmed
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.store import Store
from ansible_collections.ebpf.overlay.plugins.module_utils._hooks.inspect import read_interfaces
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import features, ip
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.helper_ports import find_helper_ports
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.machine import identity, running_since
from ansible_collections.ebpf.overlay.plugins.module_utils._objects.headers import SYSTEM

PACKAGE_MANAGERS = {"apt": "apt-get", "dnf": "dnf"}
HEADER = f"{SYSTEM}/linux/if_packet.h"  # one of the UAPI headers, which are in one package


def known_peers(interfaces: list[dict[str, Any]]) -> list[str]:
    """The prefixes of the confirmed generation's peers, without the node's own addresses."""
    history = Store().read()
    if history.confirmed not in history.generations:
        return []
    ifindexes = {interface["name"]: interface["ifindex"] for interface in interfaces}
    calls = model.calls_to(history, history.confirmed, ifindexes)
    filled = {call["arguments"].get("map"): call["arguments"].get("entries", []) for call in calls}
    found = []
    for entry in filled.get(f"{PIN_DIR}/peers", []):
        value = entry["value"]
        # Release 1.0.0 noted the way to a peer instead.
        if value["uplink"] if isinstance(value, dict) else value == PEER:
            found.append(entry["key"])
    return found


def confirmed_generation(code: str | None) -> dict[str, Any]:
    """Where the node is, and whether it is known to be what that says."""
    store = Store()
    history = store.read(mending=True)
    return {
        "number": history.confirmed,
        "digest": history.digest,
        "switched_off": history.switched_off,
        "as_confirmed": bool(code) and is_as_confirmed(store, history, str(code)),
    }


def look_at_workloads(workloads: list[dict[str, Any]], chains: list[dict[str, str]]) -> None:
    """Add to each workload what somebody else has on its interface."""
    interfaces = {workload["interface"]: workload["ifindex"] for workload in workloads}
    try:
        found = {one["name"]: one for one in read_interfaces(interfaces, BPFFS)}
    except OSError as error:
        raise OverlayError(
            "read what hangs on the interfaces of workloads",
            ", ".join(sorted(interfaces)[:3]),
            error,
            "Check that the module runs as root (become), then run again.",
        ) from None
    for workload in workloads:
        workload.update(_workloads.hindrances(found[workload["interface"]], chains))


def gather(module: AnsibleModule) -> dict[str, Any]:
    def command(arguments: list[str]) -> tuple[int, str, str]:
        return module.run_command(arguments, handle_exceptions=False)

    globs, workload_globs = module.params["uplinks"], module.params["workload_interfaces"]
    chains, unknown = ip.netdev_chains(command)
    if unknown:
        module.warn(f"Whether nft has chains on single interfaces is not known: {unknown}")
    interfaces = ip.interfaces(command)
    for interface in interfaces:
        interface["unfit"] = _uplinks.why_unfit(interface, workload_globs, chains)
    routes = ip.routes(command)
    workloads = _workloads.find_workloads(interfaces, routes, ip.neighbours(command), workload_globs)
    look_at_workloads(workloads, chains)
    uplinks, left_out = _uplinks.find_uplinks(interfaces, routes, globs)
    if not workloads:
        module.warn(
            f"No workload found: no host route leads to an interface that matches {', '.join(workload_globs)}. "
            "That is right for a node without workloads; otherwise correct workload_interfaces."
        )
    carriers = {one["name"] for one in interfaces if _workloads.matches(one["name"], workload_globs)}
    others = [interface for interface in interfaces if interface["name"] not in carriers]
    control = known_control(PIN_DIR)
    conntrack = read_values()
    version = features.stable_version(platform.release(), platform.version())
    return {
        "format": topology.FORMAT,
        "uplinks": uplinks,
        "uplinks_by_route": not globs,
        "links_left_out": left_out,
        "workloads": workloads,
        "workload_prefixes": sorted({route["prefix"] for route in routes if route["interface"] is None}),
        "interfaces": [interface for interface in others if not interface["loopback"]],
        "addresses": sorted(address.split("/")[0] for interface in interfaces for address in interface["addresses"]),
        "own_addresses": _uplinks.own_addresses(others, routes),
        "routes": [route for route in routes if route["interface"] and route["interface"] not in carriers],
        "kernel": {"release": platform.release(), "version": ".".join(map(str, version))},
        "capabilities": {**features.capabilities(version), "btf": os.path.exists("/sys/kernel/btf/vmlinux")},
        "package_manager": next((name for name, tool in PACKAGE_MANAGERS.items() if shutil.which(tool)), ""),
        "libraries": {**{name: available(name) for name in ("bcc", "pyroute2")}, "headers": os.path.exists(HEADER)},
        "identity": identity(),
        "running_since": running_since(),
        "gathered_at": int(time.time()),
        "generation": confirmed_generation(module.params["code"]) if module.params["compare"] else None,
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
            "compare": {"type": "bool", "default": False},
            "code": {"type": "str"},
        },
        supports_check_mode=True,
    )
    run(module, lambda: {"changed": False, "ansible_facts": {"overlay": gather(module)}})


if __name__ == "__main__":
    main()
