#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read a pinned BPF map."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bpf_map_info
version_added: "1.0.0"
short_description: Read a pinned BPF map
description:
  - Returns what a pinned map is and what it holds, decoded by the same schemas as M(ebpf.overlay.bpf_map_sync) takes.
  - Values of per-CPU maps are summed over all CPUs.
options:
  map:
    description: The pin of the map.
    type: path
    required: true
  key:
    description:
      - The schema of the keys, as in M(ebpf.overlay.bpf_map_sync).
      - Where it is not given and not known, keys are returned as hexadecimal bytes.
    type: raw
  value:
    description:
      - The schema of the values, as in M(ebpf.overlay.bpf_map_sync).
      - Where it is not given and not known, values are returned as hexadecimal bytes, for a per-CPU map those of the
        first CPU that has any.
    type: raw
  limit:
    description: Return at most this many entries; V(0) returns none.
    type: int
    default: 10000
extends_documentation_fragment:
  - ebpf.overlay.attributes
  - ebpf.overlay.attributes.info
seealso:
  - module: ebpf.overlay.bpf_map_sync
author:
  - ebpf.overlay maintainers (@ebpf-overlay)
"""

EXAMPLES = r"""
- name: Read what the overlay counted
  ebpf.overlay.bpf_map_info:
    map: /sys/fs/bpf/ebpf-overlay/stats
  register: stats

- name: Show it
  ansible.builtin.debug:
    msg: "{{ stats.entries }}"

- name: See how full a map is, without its entries
  ebpf.overlay.bpf_map_info:
    map: /sys/fs/bpf/ebpf-overlay/flows
    limit: 0
  register: flows

- name: Warn before it is full
  ansible.builtin.debug:
    msg: "{{ flows.count }} of {{ flows.max_entries }} flows"
  when: flows.count > 0.9 * flows.max_entries

- name: Read a map of a program of our own
  ebpf.overlay.bpf_map_info:
    map: /sys/fs/bpf/mine/networks
    key: cidr
    value:
      - {name: out, type: ifindex}
      - {name: port, type: be16}
      - {type: "pad:2"}
"""

RETURN = r"""
exists:
  description: Whether a map is pinned there. If not, nothing else is returned but an empty RV(entries).
  returned: success
  type: bool
  sample: true
id:
  description: The kernel's number of the map.
  returned: when the map exists
  type: int
  sample: 117
name:
  description: The map's own name, cut by the kernel to 15 characters.
  returned: when the map exists
  type: str
  sample: ifindex_map
type:
  description: The type of the map.
  returned: when the map exists
  type: str
  sample: lpm_trie
key_size:
  description: Bytes of a key.
  returned: when the map exists
  type: int
  sample: 20
value_size:
  description: Bytes of a value, for one CPU.
  returned: when the map exists
  type: int
  sample: 24
max_entries:
  description: How many entries the map can hold.
  returned: when the map exists
  type: int
  sample: 4096
flags:
  description: The flags that the map was made with.
  returned: when the map exists
  type: int
  sample: 1
frozen:
  description: Whether programs outside of the kernel can no longer write to it.
  returned: when the map exists
  type: bool
  sample: false
count:
  description: How many entries the map holds; in an array, how many slots are not zero.
  returned: when the map exists
  type: int
  sample: 2
truncated:
  description: Whether RV(entries) leaves some out because of O(limit).
  returned: when the map exists
  type: bool
  sample: false
entries:
  description: The entries in the order of the bytes of their keys.
  returned: success
  type: list
  elements: dict
  sample:
    - key: 10.244.2.0/24
      value: {uplink: ens47f1, mtu: 1500, next_hop: 198.18.0.12}
"""

import os
from heapq import nsmallest
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.ebpf.overlay.plugins.module_utils._core.shell import run
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.layout import schemas_at
from ansible_collections.ebpf.overlay.plugins.module_utils._maps.pinned import codecs, opened


def read(module: AnsibleModule) -> dict[str, Any]:
    path, limit = os.path.normpath(module.params["map"]), module.params["limit"]
    with opened(path) as found:
        if found is None:
            return {"exists": False, "entries": []}
        key, value = codecs(
            path, found, module.params["key"], module.params["value"], schemas_at(path), ("bytes", "bytes")
        )
        held = found.read(value.total)
        shown = nsmallest(max(limit, 0), held, key.order)
        entries = [{"key": key.decode(raw), "value": value.decode(held[raw])} for raw in shown]
        info = found.info
        return {
            "exists": True,
            "id": info.id,
            "name": info.name,
            "type": info.type_name,
            "key_size": info.key_size,
            "value_size": info.value_size,
            "max_entries": info.max_entries,
            "flags": info.flags,
            "frozen": found.traits.frozen,
            "count": len(held),
            "truncated": len(entries) < len(held),
            "entries": entries,
        }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "map": {"type": "path", "required": True},
            "key": {"type": "raw", "no_log": False},
            "value": {"type": "raw"},
            "limit": {"type": "int", "default": 10000},
        },
        supports_check_mode=True,
    )
    run(module, lambda: read(module))


if __name__ == "__main__":
    main()
