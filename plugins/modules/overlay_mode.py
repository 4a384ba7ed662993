#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Switch the datapath on and off without cutting connections."""

from __future__ import annotations

DOCUMENTATION = r"""
module: overlay_mode
version_added: "1.0.0"
short_description: Set the mode of the overlay's datapath
description:
  - Sets the mode of the datapath that is loaded on a node, by one write of one map entry.
  - No mode cuts a connection, and nothing has to be prepared. The kernel knows every connection, so any packet may take
    its path at any moment.
  - A node without datapath is off already. One whose pins are gone while its filters still run is switched off through
    them.
options:
  mode:
    description:
      - V(on) admits new connections and speeds up known ones. It is refused where conntrack is loaded and not liberal,
        see M(ebpf.overlay.overlay_conntrack).
      - V(confirm) removes the deadline of a mode that was set with O(lease). It fails when the lease is over.
      - V(drain) speeds up known connections only.
      - V(off) leaves every packet to the kernel.
    type: str
    choices: ["on", confirm, drain, "off"]
    required: true
  lease:
    description:
      - With V(on), the seconds after which the datapath acts as off by itself unless somebody confirms.
      - V(0) sets no deadline.
    type: float
    default: 0
  force:
    description: Switch off even while another run holds the lock of the node.
    type: bool
    default: false
  generation:
    description:
      - Number of the generation that the mode belongs to. Left as it is when not given.
      - With V(confirm), the mode of another generation is not confirmed.
    type: int
  pin_dir:
    description: Where the datapath is pinned.
    type: path
    default: /sys/fs/bpf/ebpf-overlay
  lock_timeout:
    description: How long to wait for another run on this node to finish, in seconds. O(force) does not wait.
    type: int
    default: 30
extends_documentation_fragment:
  - ebpf.overlay.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
seealso:
  - module: ebpf.overlay.bpf_object
  - module: ebpf.overlay.overlay_conntrack
author:
  - ebpf.overlay maintainers (@ebpf-overlay)
"""

EXAMPLES = r"""
- name: Switch on for a minute
  ebpf.overlay.overlay_mode:
    mode: "on"
    lease: 60

- name: Keep it on
  ebpf.overlay.overlay_mode:
    mode: confirm

- name: Switch off
  ebpf.overlay.overlay_mode:
    mode: "off"
"""

RETURN = r"""
mode:
  description: The mode after the run (in a dry run, the one that would be).
  returned: success
  type: str
  sample: "on"
epoch:
  description: Grows each time the overlay is switched on; known connections are proven anew then.
  returned: success
  type: int
  sample: 3
generation:
  description: Number of the generation that the mode belongs to.
  returned: success
  type: int
  sample: 2
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.ebpf.overlay.plugins.module_utils._core.shell import run
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.switch import SPEC, ensure


def main() -> None:
    module = AnsibleModule(argument_spec=SPEC, supports_check_mode=True)
    run(module, lambda: ensure(module.params, module.check_mode, module.warn))


if __name__ == "__main__":
    main()
