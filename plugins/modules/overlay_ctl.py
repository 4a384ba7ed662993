#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Install the command overlayctl on a node, or remove it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: overlay_ctl
version_added: "1.1.0"
short_description: Install the command overlayctl on a node, or remove it
description:
  - C(overlayctl) is what a person at the node's console uses. It tells what the overlay does there and why, and
    switches it on and off.
  - It is one file, C(/usr/local/sbin/overlayctl), of the same code as the modules of this release. It needs the node's
    own Python and nothing else.
  - A file there that is not of this collection is left alone. Where the file system is read-only, nothing is installed,
    and the module warns.
options:
  state:
    description:
      - V(present) installs it, or replaces that of another release.
      - V(absent) removes it.
    type: str
    choices: [present, absent]
    default: present
  runtime:
    description: The code. The module's action plugin gives it.
    type: str
extends_documentation_fragment:
  - ebpf.overlay.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
seealso:
  - module: ebpf.overlay.overlay_generation
author:
  - ebpf.overlay maintainers (@ebpf-overlay)
"""

EXAMPLES = r"""
- name: Install overlayctl
  ebpf.overlay.overlay_ctl:

- name: Look whether the node has the one of this release
  ebpf.overlay.overlay_ctl:
  check_mode: true
  register: command_of_release

- name: Tell what was found
  ansible.builtin.debug:
    msg: "{{ command_of_release.path }} is {{ 'not ' if command_of_release is changed else '' }}of this release"

- name: Remove overlayctl
  ebpf.overlay.overlay_ctl:
    state: absent
"""

RETURN = r"""
path:
  description: Where the command is, or would be.
  returned: success
  type: str
  sample: /usr/local/sbin/overlayctl
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.ebpf.overlay.plugins.module_utils._core.shell import run
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.command import SPEC, ensure


def main() -> None:
    module = AnsibleModule(argument_spec=SPEC, supports_check_mode=True)
    run(module, lambda: ensure(module.params, module.check_mode, module.warn))


if __name__ == "__main__":
    main()
