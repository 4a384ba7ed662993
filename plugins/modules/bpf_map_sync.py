#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a pinned BPF map hold what it should."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bpf_map_sync
version_added: "1.0.0"
short_description: Make a pinned BPF map hold what it should
description:
  - Adds, changes and removes entries of a map that is pinned on a bpffs, and touches no other entry unless O(purge) is
    set.
  - Reads the whole map first, and checks sizes, types and capacity before the first write. Writes in batches where the
    kernel has them for this type of map. When a write fails half way, everything written before it is undone.
  - Knows maps of the types hash, array, LRU hash, LPM trie, devmap and devmap hash, and per-CPU hashes and arrays.
  - Needs neither bcc nor any other library on the target.
options:
  map:
    description: The pin of the map.
    type: path
    required: true
  key:
    description:
      - The schema of the keys.
      - Not needed for the overlay's own maps, for maps with BTF, and for arrays, whose keys are C(u32).
      - A schema is either a scalar type or a list of fields.
      - >-
        Scalar types: C(ipv4), C(ipv6), C(ip) (16 bytes, IPv4 as C(::ffff:a.b.c.d)), C(cidr) (key of an LPM trie over
        such an address), C(mac), C(u8) to C(u64) and C(s8) to C(s64) in the host's byte order, C(be16), C(be32) and
        C(be64) in the network's, C(ifindex) (given by number or by the interface's name), C(bytes:N) (in hexadecimal)
        and C(bytes) (as many as the map has room for).
      - "A scalar can have names for its numbers: C({type: u32, labels: [off, drain, on]})."
      - >-
        A field is a dictionary with C(name) and C(type); C(type) may be a list of fields again. Structs are packed:
        state the padding that C puts in as C({type: pad:N}). Padding is written as zeros.
    type: raw
  value:
    description:
      - The schema of the values, as in O(key).
      - Not needed for the overlay's own maps and for maps with BTF, and not with O(state=absent).
    type: raw
  entries:
    description:
      - Dictionaries with C(key) and C(value), in the form that the schemas ask for. With O(state=absent), C(value) is
        ignored.
      - A slot of an array that is all zeros counts as absent, and removing one sets it to zero.
      - Where keys are numbers, a range such as C(8000-8010) as the key stands for an entry with each of them.
      - The value of a per-CPU entry is the sum over all CPUs. Setting it writes the value on CPU 0 and zeros on the
        others.
    type: list
    elements: raw
    default: []
  maps:
    description:
      - What M(ebpf.overlay.bpf_object) returned as RV(ebpf.overlay.bpf_object#module:maps) earlier in the play.
      - In a dry run it names the maps that would be made anew (those without an C(id)). What is pinned in the place of
        such a map at that moment is then not taken for what will be filled, neither its capacity nor, if the new one
        begins empty, its entries.
    type: list
    elements: dict
    default: []
    suboptions:
      pin:
        description: The map's pin.
        type: path
        required: true
      id:
        description: The map's id; none for a map that is still to be made.
        type: int
      fresh:
        description: Whether the map begins empty.
        type: bool
      type:
        description: The type of the map.
        type: str
      max_entries:
        description: The map's capacity.
        type: int
      name:
        description: The map's name, not used.
        type: str
      key_size:
        description: The size of its keys, not used.
        type: int
      value_size:
        description: The size of its values, not used.
        type: int
      flags:
        description: The map's flags, not used.
        type: int
  purge:
    description: Remove all entries that are not listed. With O(state=absent), remove all.
    type: bool
    default: false
  state:
    description: Whether the O(entries) shall be in the map or not.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - ebpf.overlay.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details:
      - At most 100 entries are shown. The counts are exact.
notes:
  - Arguments of more than 1 MB are decoded block by block; O(entries) are then not repeated in the log and the result.
seealso:
  - module: ebpf.overlay.bpf_map_info
  - module: ebpf.overlay.bpf_object
author:
  - ebpf.overlay maintainers (@ebpf-overlay)
"""

EXAMPLES = r"""
- name: Let the overlay accelerate ports 8080 and 9090 to 9099 over TCP, and no other
  ebpf.overlay.bpf_map_sync:
    map: /sys/fs/bpf/ebpf-overlay/services
    entries:
      - {key: 8080, value: 1}
      - {key: 9090-9099, value: 1}
    purge: true

- name: Tell a program of our own what to do with two networks
  ebpf.overlay.bpf_map_sync:
    map: /sys/fs/bpf/mine/networks
    key: cidr
    value:
      - {name: out, type: ifindex}
      - {name: port, type: be16}
      - {type: "pad:2"}
    entries:
      - {key: 10.20.0.0/16, value: {out: eth1, port: 8080}}
      - {key: "fd00:20::/32", value: {out: eth1, port: 8080}}

- name: Load a program whose map has grown
  ebpf.overlay.bpf_object:
    src: mine.c
    pin_dir: /sys/fs/bpf/mine
    programs: [count]
    defines: {NETWORKS: 20000}
    on_map_change: migrate
  register: built

- name: Fill it; a dry run knows of the new capacity
  ebpf.overlay.bpf_map_sync:
    map: /sys/fs/bpf/mine/networks
    maps: "{{ built.maps }}"
    key: cidr
    value: ifindex
    entries: "{{ networks }}"

- name: Forget one address
  ebpf.overlay.bpf_map_sync:
    map: /sys/fs/bpf/mine/blocked
    key: ipv4
    value: u64
    entries:
      - key: 192.0.2.7
    state: absent
"""

RETURN = r"""
added:
  description: How many entries were added, or would be.
  returned: success
  type: int
  sample: 2
changed_entries:
  description: How many entries got another value, or would get one.
  returned: success
  type: int
  sample: 1
removed:
  description: How many entries were removed, or would be.
  returned: success
  type: int
  sample: 0
size:
  description: How many entries the map holds afterwards; in an array, how many slots are not zero.
  returned: success
  type: int
  sample: 12
diff:
  description: The entries concerned, at most 100 of them, as they were and as they are.
  returned: success
  type: dict
  sample:
    before: |
      ifindex_map: 1 entries
      10.244.2.10 -> ifindex=cali1, flags=0
    after: |
      ifindex_map: 2 entries
      10.244.2.10 -> ifindex=cali3, flags=0
      10.244.2.11 -> ifindex=cali2, flags=0
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.ebpf.overlay.plugins.module_utils._core.shell import run
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.layout import schemas_at
from ansible_collections.ebpf.overlay.plugins.module_utils._maps.bulk import set_aside
from ansible_collections.ebpf.overlay.plugins.module_utils._maps.resource import SPEC, ensure


def main() -> None:
    bulk = set_aside("entries")
    module = AnsibleModule(argument_spec=SPEC, supports_check_mode=True)
    run(
        module,
        lambda: ensure(module.params, module.check_mode, module.warn, schemas_at(module.params["map"]), bulk),
    )


if __name__ == "__main__":
    main()
