#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Attach pinned eBPF programs to interfaces."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tc_bpf_attach
short_description: Attach pinned eBPF programs to the traffic-control hooks of interfaces
version_added: "1.0.0"
author:
  - ebpf.overlay maintainers (@ebpf-overlay)
description:
  - Attaches programs of type SCHED_CLS that are pinned on a bpffs to the ingress or egress hook of interfaces, as
    direct-action filters of a clsact qdisc or as TCX links.
  - Who owns a filter is written into the kernel's own record, its name C(OWNER:PROGRAM). A filter is right only if its
    name, program id, tag, priority, handle and direct-action are right. A wrong one is replaced in place, without a
    packet that misses it.
  - Programs run last on their hook, behind whatever others have there. What others take, they do not see.
  - Nothing that belongs to somebody else is changed, neither a filter nor a TCX link nor a qdisc. A clsact qdisc is
    removed only if this module made it and no filter is left on it.
  - Works in the network namespace in which it is started.
extends_documentation_fragment:
  - ebpf.overlay.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
requirements:
  - pyroute2 (on Debian and Ubuntu C(python3-pyroute2)), unless only TCX links change
options:
  attachments:
    description:
      - Which programs run where. Hooks are handled in this order.
      - A program is known by the base name of its pin; on one hook it can be attached once.
    type: list
    elements: dict
    default: []
    suboptions:
      interface:
        description:
          - An interface's name, which must exist, or a glob such as V(cali*).
          - A glob that matches nothing is a warning.
        type: str
        required: true
      direction:
        description: Incoming or outgoing packets, as the host sees them.
        type: str
        choices: [ingress, egress]
        default: ingress
      program:
        description: The program's pin.
        type: path
        required: true
      priority:
        description:
          - Filters run by ascending priority, O(priority) by default. Programs that use TCX have none, those of lower
            priority number run first when attached by one task.
        type: int
      handle:
        description:
          - The filter's handle within its priority. A handle that somebody else has is refused.
          - By default the lowest that nobody else has.
        type: int
  programs:
    description:
      - What M(ebpf.overlay.bpf_object) returned as RV(ebpf.overlay.bpf_object#module:programs) earlier in the play.
      - In a dry run it names the programs that would be built anew (those without an C(id)). What is pinned in their
        place at that moment is then not taken for what will be attached, so that the dry run of an upgrade predicts the
        change of the filters too.
    type: list
    elements: dict
    default: []
    suboptions:
      pin:
        description: The program's pin.
        type: path
        required: true
      id:
        description: The program's id; none for a program that is still to be built.
        type: int
      tag:
        description: The program's tag.
        type: str
      name:
        description: The function's name, not used.
        type: str
      xlated_size:
        description: The program's size, not used.
        type: int
  priority:
    description:
      - The priority of the filters of O(attachments) that give none. The default is behind the filters of everybody
        else, and also behind those to which the kernel gives a priority (at most 49152).
      - A program that is attached with another priority, such as V(1), the default of release 1.0.0, is attached with
        the new one before it leaves the old one.
    type: int
    default: 60000
  owner:
    description: Whose filters these are. Filters of other owners are left alone.
    type: str
    default: ebpf.overlay
  purge:
    description:
      - Remove everything of O(owner) in this network namespace that O(attachments) does not name; with an empty list
        all of it.
    type: bool
    default: false
  mechanism:
    description:
      - V(clsact) works on all kernels. V(tcx) needs 6.6; its links run before all clsact filters of the hook.
      - V(auto) uses TCX where the kernel has it, but clsact on hooks where a filter of somebody else may take packets
        (anything but an eBPF program that always says "next", and a filter with the one action C(continue)), since
        TCX would run before it. The choice is explained in the result.
      - A TCX link is attached at the tail of its hook. One behind which somebody else has attached since is moved
        there. Links of other owners who use this module stay where they are.
      - A program that changes from one to the other, or its place, is attached by the new one before it leaves the old
        one. For that moment it may run twice on a packet.
    type: str
    choices: [auto, clsact, tcx]
    default: auto
  state:
    description:
      - V(absent) removes the named programs of O(owner) from the named hooks, whatever their priority, handle and
        mechanism. With O(purge) it removes everything of O(owner).
    type: str
    choices: [present, absent]
    default: present
  bpffs:
    description: Where the bpffs is mounted on which the TCX links are pinned, in C(ebpf-overlay/links/).
    type: path
    default: /sys/fs/bpf
  lock_timeout:
    description: How many seconds to wait for another run on this node to end.
    type: int
    default: 30
seealso:
  - module: ebpf.overlay.bpf_object
  - module: ebpf.overlay.tc_bpf_info
"""

EXAMPLES = r"""
- name: Attach the reply side to the workloads, then the uplink
  ebpf.overlay.tc_bpf_attach:
    attachments:
      - interface: cali*
        program: /sys/fs/bpf/ebpf-overlay/from_workload
      - interface: eth0
        program: /sys/fs/bpf/ebpf-overlay/from_uplink

- name: Have a program of our own built
  ebpf.overlay.bpf_object:
    src: count.c
    pin_dir: /sys/fs/bpf/acme
    programs: [count]
  register: built

- name: Run it on the way out; a dry run after a change of count.c predicts that its filter changes
  ebpf.overlay.tc_bpf_attach:
    owner: acme
    programs: "{{ built.programs }}"
    attachments:
      - interface: eth0
        direction: egress
        program: /sys/fs/bpf/acme/count
        priority: 65000

- name: Detach everything of ours
  ebpf.overlay.tc_bpf_attach:
    owner: acme
    attachments: []
    purge: true
"""

RETURN = r"""
attachments:
  description: What is attached, one entry for each program on each interface; empty with O(state=absent).
  returned: success
  type: list
  elements: dict
  contains:
    interface:
      description: The interface.
      type: str
    direction:
      description: The direction.
      type: str
    program:
      description: The program's pin.
      type: str
    program_id:
      description: The program's id; none in a dry run before the program is pinned.
      type: int
    tag:
      description: The program's tag, as the kernel of this node computed it. Do not compare it between nodes.
      type: str
    map_ids:
      description: The ids of the maps that the program uses.
      type: list
      elements: int
    priority:
      description: The filter's priority; none with TCX.
      type: int
    handle:
      description: The filter's handle; none with TCX.
      type: int
    mechanism:
      description: V(clsact) or V(tcx).
      type: str
    mechanism_reason:
      description: Why this mechanism.
      type: str
    qdisc_created:
      description: Whether this run added the interface's clsact qdisc.
      type: bool
  sample:
    - interface: eth0
      direction: ingress
      program: /sys/fs/bpf/ebpf-overlay/from_uplink
      program_id: 431
      tag: 8d3c6ffba1d6eb9c
      map_ids: [17, 18]
      priority: 60000
      handle: 1
      mechanism: clsact
      mechanism_reason: this kernel has no TCX
      qdisc_created: true
removed:
  description: Filters and links of O(owner) that were removed or moved away from their place.
  returned: success
  type: list
  elements: dict
  sample:
    - interface: cali12
      direction: ingress
      program: from_workload
      priority: 7
      handle: 1
      mechanism: clsact
"""


from ansible.module_utils.basic import AnsibleModule

from ansible_collections.ebpf.overlay.plugins.module_utils._core.shell import respawn_where_importable, run
from ansible_collections.ebpf.overlay.plugins.module_utils._hooks.resource import SPEC, ensure


def main() -> None:
    module = AnsibleModule(argument_spec=SPEC, supports_check_mode=True)
    respawn_where_importable("pyroute2")
    run(module, lambda: ensure(module.params, module.check_mode, module.warn))


if __name__ == "__main__":
    main()
