#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compile a C file with bcc on the target, load its programs, pin them and their maps."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bpf_object
version_added: "1.0.0"
short_description: Compile, load and pin the programs and maps of a BPF C file
description:
  - Compiles a C file with bcc on the target, loads the programs that it is asked for (all of type C(SCHED_CLS)), and
    pins them and every map of the file in a folder below a bpffs.
  - Needs no kernel headers on the target. It needs bcc (C(python3-bpfcc) on Debian and Ubuntu, C(python3-bcc) on Fedora
    and RHEL) and the UAPI headers (C(linux-libc-dev), C(kernel-headers)). The package C(bcc) on the Python package
    index is something else.
  - The identity of a build is a digest of the source with everything that it includes, the macros, the compiler's
    version and the machine's architecture. As long as it is unchanged and everything is still loaded and pinned,
    nothing is compiled and bcc is not imported.
  - A map whose type, key size, value size, capacity and flags are unchanged is carried over with its entries into the
    new build. Programs of a new build are new kernel objects, so they must be attached again afterwards, for example
    with M(ebpf.overlay.tc_bpf_attach).
  - Everything is compiled and loaded before the first pin is made, in a dry run too. A dry run therefore reports what
    the compiler and the verifier say, as long as bcc is installed.
  - New pins are renamed into place. A run that is killed leaves what the next run finishes or removes.
notes:
  - One O(pin_dir) holds one object. What is ours in it is recorded in the symbolic link C(build) beside the pins.
  - Nothing that is pinned survives a reboot.
  - A file that is included by quotes is compiled as a part of the main file, so it may use maps. A macro name in an
    C(#include) is not followed.
requirements:
  - bcc (the distribution's package)
  - Linux 5.10 or newer
options:
  src:
    description:
      - The C file. It is looked for on the controller, in the role's or play's C(files) folder (as in
        M(ansible.builtin.copy)), and taken to the target with every file beside it that it includes by quotes.
      - Where the controller has no such file, and with O(remote_src=true), it is an absolute path on the target.
      - Required with O(state=present).
    type: path
  remote_src:
    description: Look for O(src) on the target only.
    type: bool
    default: false
  pin_dir:
    description: The folder for the pins, below a bpffs. It is made when missing. Names below a bpffs may not have dots.
    type: path
    required: true
  programs:
    description:
      - The names of the programs to load.
      - Required with O(state=present).
    type: list
    elements: str
  defines:
    description:
      - Macros to define, by name.
      - V(true) becomes V(1), V(false) becomes V(0), an empty value defines only the name.
    type: dict
    default: {}
  on_map_change:
    description:
      - What to do when the layout of a map that is already pinned differs from the one in the source.
      - V(refuse) fails before anything is changed.
      - V(migrate) copies the entries into the new map, if only its capacity changed and they fit. What the running
        program writes into the old map after that is lost.
      - V(replace) starts with an empty map.
    type: str
    choices: [refuse, migrate, replace]
    default: refuse
  state:
    description:
      - V(present) has the build loaded and pinned.
      - V(absent) removes the pins that builds of this module made in O(pin_dir), and the folder if nothing else is in
        it. Programs that are attached keep running until they are detached.
    type: str
    choices: [present, absent]
    default: present
  bundle:
    description: The source as the action plugin hands it over. Not for use in playbooks.
    type: str
extends_documentation_fragment:
  - ebpf.overlay.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
seealso:
  - module: ebpf.overlay.bpffs
  - module: ebpf.overlay.tc_bpf_attach
  - module: ebpf.overlay.bpf_map_sync
author:
  - ebpf.overlay maintainers (@ebpf-overlay)
"""

EXAMPLES = r"""
- name: Have the overlay's programs loaded
  ebpf.overlay.bpf_object:
    src: bpf/overlay.c
    pin_dir: /sys/fs/bpf/ebpf-overlay
    programs: [from_uplink, from_workload, to_uplink, to_workload]
    defines:
      OVERLAY_REDIRECT: 1

- name: Load a program with a larger map, and keep its entries
  ebpf.overlay.bpf_object:
    src: firewall.c
    pin_dir: /sys/fs/bpf/firewall
    programs: [ingress]
    defines:
      RULES: 20000
    on_map_change: migrate

- name: Remove everything that was pinned
  ebpf.overlay.bpf_object:
    pin_dir: /sys/fs/bpf/firewall
    state: absent
"""

RETURN = r"""
digest:
  description:
    - The identity of the build.
    - C(null) with O(state=absent), and in a dry run on a target where the compiler is not installed yet.
  returned: success
  type: str
  sample: 5f3b103b75d4b809c8b9e5f2039cb174a01a6bb91c8fd7617e81a5ff643c3038
compiled:
  description: Whether the source had to be compiled (in a dry run, whether it would have to be).
  returned: success
  type: bool
  sample: true
programs:
  description: The loaded programs. In a dry run the ids of programs that are not loaded yet are C(null).
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The name of the function in the source.
      type: str
    id:
      description: The kernel's id of the program.
      type: int
    tag:
      description: The kernel's hash of the program. It differs between kernels and compilers.
      type: str
    pin:
      description: Where the program is pinned.
      type: str
    xlated_size:
      description: The size of the program as the kernel runs it, in bytes.
      type: int
  sample:
    - name: from_uplink
      id: 1423
      tag: 257639606e4c2c3a
      pin: /sys/fs/bpf/ebpf-overlay/from_uplink
      xlated_size: 488
maps:
  description: All maps of the source. Empty in a dry run on a target without the compiler.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The name of the map in the source.
      type: str
    id:
      description: The kernel's id of the map; C(null) in a dry run for a map that does not exist yet.
      type: int
    type:
      description: The kernel's name of the map type.
      type: str
    key_size:
      description: Bytes of a key.
      type: int
    value_size:
      description: Bytes of a value (of one CPU's, in a per-CPU map).
      type: int
    max_entries:
      description: The capacity.
      type: int
    flags:
      description: The map's flags (C(BPF_F_*)).
      type: int
    fresh:
      description: Whether this run made (or would make) the map without entries.
      type: bool
    pin:
      description: Where the map is pinned.
      type: str
  sample:
    - name: ifindex_map
      id: 311
      type: hash
      key_size: 16
      value_size: 8
      max_entries: 1024
      flags: 0
      fresh: true
      pin: /sys/fs/bpf/ebpf-overlay/ifindex_map
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.ebpf.overlay.plugins.module_utils._core.shell import respawn_where_importable, run
from ansible_collections.ebpf.overlay.plugins.module_utils._objects.resource import (
    REQUIRED_IF,
    SPEC,
    Present,
    settle,
    wanted_of,
)


def main() -> None:
    module = AnsibleModule(argument_spec=SPEC, required_if=REQUIRED_IF, supports_check_mode=True)
    run(module, lambda: ensure(module))


def ensure(module: AnsibleModule) -> dict[str, object]:
    wanted = wanted_of(module.params)
    # Before the lock: a respawned module would wait for the one that waits for it.
    if isinstance(wanted, Present) and wanted.wants_compiler():
        respawn_where_importable("bcc")
    return settle(wanted, module.check_mode, module.warn)


if __name__ == "__main__":
    main()
