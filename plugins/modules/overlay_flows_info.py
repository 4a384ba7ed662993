#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who talks to whom through the overlay of a node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: overlay_flows_info
version_added: "1.0.0"
short_description: Tell which workloads talk to whom through the overlay of a node
description:
  - Counts the connections that the datapath has admitted and not seen end, by workload and remote address.
options:
  limit:
    description: Return at most this many pairs, those with the most flows.
    type: int
    default: 500
extends_documentation_fragment:
  - ebpf.overlay.attributes
  - ebpf.overlay.attributes.info
attributes:
  platform:
    support: full
seealso:
  - module: ebpf.overlay.bpf_map_info
author:
  - ebpf.overlay maintainers (@ebpf-overlay)
"""

EXAMPLES = r"""
- name: See who talks to whom
  ebpf.overlay.overlay_flows_info:
  register: found

- name: Show the busiest pair
  ansible.builtin.debug:
    var: found.pairs[0]

- name: Count the open flows only
  ebpf.overlay.overlay_flows_info:
    limit: 0
  register: open

- name: Wait until the node has none any more
  ebpf.overlay.overlay_flows_info:
    limit: 0
  register: left
  until: left.flows == 0
  retries: 60
  delay: 5
"""

RETURN = r"""
flows:
  description: How many flows the datapath knows that are open; 0 where no datapath is loaded.
  returned: success
  type: int
  sample: 3
pairs:
  description: The flows by workload and remote address, the most frequent first.
  returned: success
  type: list
  elements: dict
  sample:
    - {workload: 10.244.2.11, remote: 198.18.0.11, flows: 3}
truncated:
  description: Whether RV(pairs) leaves some out because of O(limit).
  returned: success
  type: bool
  sample: false
"""

from collections import Counter
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.ebpf.overlay.plugins.module_utils._core.shell import run
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.control import known_flows
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.layout import PIN_DIR


def read(limit: int) -> dict[str, Any]:
    """Raises :class:`OverlayError`."""
    flows = known_flows(PIN_DIR)
    pairs = Counter((flow["workload"], flow["remote"]) for flow in flows)
    ranked = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    shown = ranked[: max(limit, 0)]
    return {
        "changed": False,
        "flows": len(flows),
        "pairs": [{"workload": workload, "remote": remote, "flows": count} for (workload, remote), count in shown],
        "truncated": len(shown) < len(ranked),
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={"limit": {"type": "int", "default": 500}},
        supports_check_mode=True,
    )
    run(module, lambda: read(module.params["limit"]))


if __name__ == "__main__":
    main()
