#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mount the file system that BPF pins live on, and unmount it only if it was mounted here."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bpffs
version_added: "1.0.0"
short_description: Mount and unmount a BPF file system
description:
  - Mounts a bpffs where none is mounted. One that is there already, for example because systemd mounted it, is left
    as it is.
  - Unmounts it only if this module mounted it and nothing is pinned on it any more. Who mounted it is told by the
    mount's source, C(ebpf-overlay) in C(findmnt), so no record can be lost or outlive the mount.
  - A bpffs that is mounted twice, or is hidden by a later mount, is an error, since its pins are out of sight then.
notes:
  - The mount is one of the running system; it is gone after a reboot.
options:
  path:
    description: The folder to mount on. It must exist.
    type: path
    default: /sys/fs/bpf
  state:
    description:
      - V(mounted) has a bpffs mounted on O(path).
      - V(unmounted) has the one unmounted that this module mounted. Any other stays.
    type: str
    choices: [mounted, unmounted]
    default: mounted
  emptied:
    description:
      - With V(unmounted), folders on it that an earlier task empties. Pins below them do not keep it mounted in a dry
        run; in a real run it is an error if they are still there.
    type: list
    elements: path
    default: []
extends_documentation_fragment:
  - ebpf.overlay.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
seealso:
  - module: ebpf.overlay.bpf_object
author:
  - ebpf.overlay maintainers (@ebpf-overlay)
"""

EXAMPLES = r"""
- name: Have a place for pins
  ebpf.overlay.bpffs:

- name: Have one of our own, beside that of the system
  ebpf.overlay.bpffs:
    path: /run/mine/bpf

- name: Take it away again, if it was not there before and nobody uses it
  ebpf.overlay.bpffs:
    state: unmounted
"""

RETURN = r"""
path:
  description: The folder.
  returned: success
  type: str
  sample: /sys/fs/bpf
mounted:
  description: Whether a bpffs is mounted there after the run (in a dry run, whether one would be).
  returned: success
  type: bool
  sample: true
ours:
  description: Whether it is (or would be) one that this module mounted.
  returned: success
  type: bool
  sample: true
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.ebpf.overlay.plugins.module_utils._core.shell import run
from ansible_collections.ebpf.overlay.plugins.module_utils._objects.mount import SPEC, ensure


def main() -> None:
    module = AnsibleModule(argument_spec=SPEC, supports_check_mode=True)
    run(module, lambda: ensure(module.params, module.check_mode, module.warn))


if __name__ == "__main__":
    main()
