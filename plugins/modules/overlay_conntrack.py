#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make conntrack accept connections whose packets it did not see, and make it as it was before."""

from __future__ import annotations

DOCUMENTATION = r"""
module: overlay_conntrack
version_added: "1.1.0"
short_description: Make conntrack liberal for the overlay, and take that back without cutting connections
description:
  - Conntrack does not see the packets that take the fast path. It must not check the sequence numbers of the others
    against what it saw, or it would refuse them as invalid.
  - Sets C(net.netfilter.nf_conntrack_tcp_be_liberal) to 1 in the node's network namespace. So a reset is accepted
    whatever its number, where the kernel has C(nf_conntrack_tcp_ignore_invalid_rst) (5.14), which is set to 1 too.
  - Sets C(nf_conntrack_tcp_timeout_unacknowledged) and C(nf_conntrack_tcp_timeout_max_retrans) to the value of
    C(nf_conntrack_tcp_timeout_established), since conntrack does not see what was acknowledged.
  - Keeps these values over a reboot by a file of its own, C(/etc/sysctl.d/60-ebpf-overlay.conf), and the former ones in
    C(/var/lib/ebpf-overlay/conntrack.json).
  - Where conntrack is not loaded nothing else is needed, and RV(message) says so.
notes:
  - With these values conntrack accepts any sequence number of a connection that it knows. The two ends still check
    theirs.
  - A module of the kernel that is loaded after the boot scripts ran starts with the kernel's own values. The next run
    sets them.
options:
  state:
    description:
      - V(present) sets the values.
      - V(absent) sets the former ones again and removes the file. Every connection that is established gets
        conntrack's own liberal flag before that, so that it lives on. The datapath must be off.
      - Where the flags cannot be set, V(absent) leaves the values as they are, removes the file and warns.
    type: str
    choices: [present, absent]
    default: present
  manage:
    description:
      - With V(present), whether to set anything. When V(false), nothing is changed, and the run is refused where
        conntrack is loaded and not liberal.
    type: bool
    default: true
extends_documentation_fragment:
  - ebpf.overlay.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
seealso:
  - module: ebpf.overlay.overlay_mode
author:
  - ebpf.overlay maintainers (@ebpf-overlay)
"""

EXAMPLES = r"""
- name: Make conntrack liberal
  ebpf.overlay.overlay_conntrack:

- name: Refuse to go on where it is not
  ebpf.overlay.overlay_conntrack:
    manage: false

- name: Make it as it was before
  ebpf.overlay.overlay_conntrack:
    state: absent
"""

RETURN = r"""
loaded:
  description: Whether this network namespace has conntrack.
  returned: success
  type: bool
  sample: true
liberal:
  description: Whether it is liberal after the run (in a dry run, whether it would be); true where it is not loaded.
  returned: success
  type: bool
  sample: true
settings:
  description: The values after the run (in a dry run, those that would be), of the sysctls that are there.
  returned: success
  type: dict
  sample: {net.netfilter.nf_conntrack_tcp_be_liberal: 1, net.netfilter.nf_conntrack_tcp_ignore_invalid_rst: 1}
former:
  description: The values before the overlay, as they are recorded.
  returned: success
  type: dict
  sample: {net.netfilter.nf_conntrack_tcp_be_liberal: 0, net.netfilter.nf_conntrack_tcp_ignore_invalid_rst: 0}
flagged:
  description: Entries of conntrack that got its liberal flag. A dry run does not count them.
  returned: success
  type: int
  sample: 812
held:
  description: Why conntrack stays liberal although O(state=absent); empty where it does not.
  returned: success
  type: str
  sample: ""
message:
  description: Says that nothing is needed where conntrack is not loaded; empty otherwise.
  returned: success
  type: str
  sample: ""
"""


from ansible.module_utils.basic import AnsibleModule

from ansible_collections.ebpf.overlay.plugins.module_utils._core.shell import run
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.liberal import SPEC, ensure


def main() -> None:
    module = AnsibleModule(argument_spec=SPEC, supports_check_mode=True)
    run(module, lambda: ensure(module.params, module.check_mode, module.warn))


if __name__ == "__main__":
    main()
