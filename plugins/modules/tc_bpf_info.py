#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""List everything on the traffic-control hooks of interfaces, in the order in which it runs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tc_bpf_info
short_description: List what runs on the traffic-control hooks of interfaces, whoever owns it
version_added: "1.0.0"
author:
  - ebpf.overlay maintainers (@ebpf-overlay)
description:
  - Lists the TCX links and filters of both directions in the order in which they run, and flags those that never get
    their turn since an earlier program ends the chain for every packet.
  - Whether a program always ends the chain is read from its instructions. Where its return code depends on the packet,
    later entries are marked as possibly hidden instead.
  - Works in the network namespace in which it is started. Needs no library.
extends_documentation_fragment:
  - ebpf.overlay.attributes
  - ebpf.overlay.attributes.info
options:
  interface:
    description:
      - Names of interfaces, which must exist, and globs such as V(cali*).
    type: list
    elements: str
    default: ["*"]
  bpffs:
    description: The bpffs on which TCX links of this collection are pinned.
    type: path
    default: /sys/fs/bpf
seealso:
  - module: ebpf.overlay.tc_bpf_attach
"""

EXAMPLES = r"""
- name: See what runs on the uplink
  ebpf.overlay.tc_bpf_info:
    interface: eth0
  register: hooks

- name: Insist that our program gets its turn
  ansible.builtin.assert:
    that:
      - ours | rejectattr('hidden_by') | length == 1
  vars:
    ours: "{{ hooks.interfaces[0].ingress | selectattr('owner', 'equalto', 'ebpf.overlay') }}"

- name: See what runs on all interfaces
  ebpf.overlay.tc_bpf_info:
  register: every

- name: Name the programs that never get their turn
  ansible.builtin.debug:
    msg: "{{ every.interfaces | map(attribute='ingress') | flatten | selectattr('hidden_by') | map(attribute='name') }}"

- name: See what workloads' interfaces carry
  ebpf.overlay.tc_bpf_info:
    interface: cali*
"""

RETURN = r"""
interfaces:
  description: The interfaces, by name.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The interface's name.
      type: str
    ifindex:
      description: The interface's index.
      type: int
    qdiscs:
      description:
        - The interface's qdiscs. C(ours) says whether M(ebpf.overlay.tc_bpf_attach) made it and would remove it.
      type: list
      elements: dict
    ingress:
      description: What runs on incoming packets, in running order. TCX links come first, then filters by priority.
      type: list
      elements: dict
      contains:
        mechanism:
          description: V(tcx) or V(clsact) (the latter also for filters of an C(ingress) qdisc).
          type: str
        kind:
          description: The filter's kind, such as V(bpf) or V(u32).
          type: str
        priority:
          description: The filter's priority; none for TCX.
          type: int
        handle:
          description: The filter's handle; none for TCX.
          type: int
        chain:
          description: The filter's chain. Filters of chains other than 0 run only where an action jumps there.
          type: int
        protocol:
          description: For which packets the filter is.
          type: str
        name:
          description: The filter's name; for TCX that of the pin's program, or the program's own.
          type: str
        owner:
          description: The part of the name before the colon, if any.
          type: str
        link_id:
          description: The TCX link; V(0) for a program that was attached without one.
          type: int
        pin:
          description: The link's pin, for links that this collection made.
          type: str
        program_id:
          description: The program's id; none for filters that run no eBPF program.
          type: int
        program_name:
          description: The name with which the program was loaded, at most 15 bytes.
          type: str
        tag:
          description: The program's tag.
          type: str
        map_ids:
          description: The maps that the program uses; none where they may not be read.
          type: list
          elements: int
        direct_action:
          description: Whether the program's return code is the verdict.
          type: bool
        return_codes:
          description: All codes that the program can return, where its instructions tell.
          type: list
          elements: int
        hidden_by:
          description: The earlier entry because of which this one never runs.
          type: str
        may_be_hidden_by:
          description: Earlier entries that may end the chain for some packets.
          type: list
          elements: str
    egress:
      description: The same for outgoing packets.
      type: list
      elements: dict
  sample:
    - name: eth0
      ifindex: 2
      qdiscs:
        - {kind: noqueue, handle: "0:", parent: root, ours: false}
        - {kind: clsact, handle: "ffff:", parent: "ffff:fff1", ours: true}
      ingress:
        - mechanism: clsact
          kind: bpf
          priority: 1
          handle: 1
          chain: 0
          protocol: all
          name: ebpf.overlay:from_uplink
          owner: ebpf.overlay
          link_id: null
          pin: null
          program_id: 431
          program_name: from_uplink
          tag: 8d3c6ffba1d6eb9c
          map_ids: [17, 18]
          direct_action: true
          return_codes: null
          hidden_by: null
          may_be_hidden_by: []
      egress: []
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.shell import run
from ansible_collections.ebpf.overlay.plugins.module_utils._hooks.inspect import read_interfaces
from ansible_collections.ebpf.overlay.plugins.module_utils._hooks.wish import is_glob, matching, no_such_interface
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.machine import interface_table


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "interface": {"type": "list", "elements": "str", "default": ["*"]},
            "bpffs": {"type": "path", "default": "/sys/fs/bpf"},
        },
        supports_check_mode=True,
    )
    run(module, lambda: {"changed": False, "interfaces": inspect(module.params["interface"], module.params["bpffs"])})


def inspect(wanted: list[str], bpffs: str) -> list[dict[str, object]]:
    """Raises :class:`OverlayError` for an interface that does not exist."""
    interfaces = interface_table()
    for pattern in wanted:
        if not is_glob(pattern) and pattern not in interfaces:
            raise no_such_interface("read the traffic-control hooks", pattern)
    chosen = {name for pattern in wanted for name in matching(pattern, interfaces)}
    try:
        return read_interfaces({name: interfaces[name] for name in chosen}, bpffs)
    except OSError as error:
        raise OverlayError(
            "read the traffic-control hooks",
            "interfaces " + ", ".join(sorted(chosen)),
            error,
            "Run as root (become: true); CAP_NET_ADMIN and CAP_SYS_ADMIN are needed.",
        ) from error


if __name__ == "__main__":
    main()
