#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which generation a node is at, and what differs from it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: overlay_generation_info
version_added: "1.0.0"
short_description: Tell which generation an overlay node is at, and what differs from it
description:
  - Reads what M(ebpf.overlay.overlay_generation) keeps on the node.
  - Compares the node with its confirmed generation, by making the generation's calls in check mode with the code that
    is kept with it, and names each object that differs, RV(drift).
options:
  compare:
    description: Whether to compare. It takes about a second.
    type: bool
    default: true
extends_documentation_fragment:
  - ebpf.overlay.attributes
  - ebpf.overlay.attributes.info
attributes:
  platform:
    support: full
seealso:
  - module: ebpf.overlay.overlay_generation
author:
  - ebpf.overlay maintainers (@ebpf-overlay)
"""

EXAMPLES = r"""
- name: See whether anybody has changed the overlay of this node
  ebpf.overlay.overlay_generation_info:
  register: found

- name: Show what differs
  ansible.builtin.debug:
    var: found.drift

- name: Read the generation without comparing
  ebpf.overlay.overlay_generation_info:
    compare: false
  register: at

- name: Insist that nothing waits for its confirmation
  ansible.builtin.assert:
    that: at.pending == 0

- name: Wait for the node's own way back after a run that was killed
  ebpf.overlay.overlay_generation_info:
    compare: false
  register: back
  until: back.pending == 0
  retries: 60
  delay: 5
"""

RETURN = r"""
number:
  description: The confirmed generation; 0 for a node without the overlay.
  returned: success
  type: int
  sample: 2
digest:
  description: Its digest; empty for generation 0.
  returned: success
  type: str
  sample: 5f3b103b75d4b809c8b9e5f2039cb174a01a6bb91c8fd7617e81a5ff643c3038
pending:
  description: The number of a generation that waits for confirmation, 0 if none does.
  returned: success
  type: int
  sample: 0
attempt:
  description: The name of the attempt that waits for confirmation; empty if none does.
  returned: success
  type: str
  sample: ""
by:
  description: The name of the attempt that was confirmed, or how else the node came to its generation.
  returned: success
  type: str
  sample: 2-183f2a6c11
mode:
  description:
    - The mode as the datapath acts on it, V(on), V(drain) or V(off).
    - V(absent) where no datapath is pinned, V(unknown) for one of another release.
  returned: success
  type: str
  sample: "on"
switched_off:
  description: Whether somebody has switched the node off, and it stays so whatever is rolled out.
  returned: success
  type: bool
  sample: false
trouble:
  description: What the node's own way back could not do in its last try; empty where there is none.
  returned: success
  type: list
  elements: str
  sample: []
generations:
  description: The generations that the node can go back to.
  returned: success
  type: list
  elements: dict
  sample:
    - {number: 1, former: 0, digest: 9b0c…, when: "2026-01-15T10:21:07+00:00"}
drift:
  description:
    - The objects that differ from the confirmed generation, and foreign filters that run before ours.
    - For a node without a generation, the list is empty.
  returned: success
  type: list
  elements: dict
  contains:
    kind:
      description:
        - V(missing), V(changed) and V(extra) say how the object differs. V(hidden) is a filter of ours that never runs,
          V(ahead) one that another filter may keep packets from. V(unknown) could not be compared.
      type: str
    object:
      description: Which interface and filter, map and key, pin, package or mount.
      type: str
    wanted:
      description: What it should be; none if it should not be there.
      type: str
    found:
      description: What it is, or what is there instead; none if nothing is.
      type: str
    owner:
      description: Who owns what is there instead, as far as its name says so.
      type: str
  sample:
    - kind: missing
      object: filter on cali0a1b2c3d ingress, priority 1, handle 0x1
      wanted: protocol 0x0003 ebpf.overlay:from_workload program 723 tag 96d9978f9f8bb4cd direct-action
      found: bpf filter priority 1 handle 0x1 cilium:from_container program 801
      owner: cilium
differences:
  description: What differs from the confirmed generation, by module.
  returned: success
  type: list
  elements: dict
  sample:
    - module: bpf_map_sync
      target: /sys/fs/bpf/ebpf-overlay/services
      reason: differs
      diff: {before: "services: 1 entries\n", after: "services: 2 entries\n"}
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.ebpf.overlay.plugins.module_utils._core.shell import run
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.report import read


def main() -> None:
    module = AnsibleModule(
        argument_spec={"compare": {"type": "bool", "default": True}},
        supports_check_mode=True,
    )
    run(module, lambda: read(module.params["compare"]))


if __name__ == "__main__":
    main()
