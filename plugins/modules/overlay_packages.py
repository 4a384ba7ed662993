#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: overlay_packages
short_description: Install packages of the distribution, with a dry run that works on a bare node
version_added: "1.0.0"
description:
  - Installs packages with C(apt-get) or C(dnf) when they are missing. Never removes one, and leaves installed ones
    as they are.
  - The dry run asks only the database of installed packages. It needs neither package lists nor a Python library, so
    it is right on a node that was installed a minute ago, where M(ansible.builtin.apt) cannot run in check mode.
author:
  - ebpf.overlay maintainers (@ebpf-overlay)
options:
  packages:
    description:
      - Names of packages, as the distribution of the node calls them.
      - Names of real packages only, without version or architecture.
    type: list
    elements: str
    required: true
  state:
    description: The packages are installed.
    type: str
    choices: [present]
    default: present
extends_documentation_fragment:
  - ebpf.overlay.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
notes:
  - The package lists are fetched only when there are none, or when the installation fails with those that are there.
  - Recommended packages are not installed.
  - While somebody else works with the package manager, it waits for up to two minutes.
seealso:
  - module: ansible.builtin.package
  - module: ebpf.overlay.bpf_object
"""

EXAMPLES = r"""
- name: Install what compiles and attaches programs on Debian
  ebpf.overlay.overlay_packages:
    packages:
      - linux-libc-dev
      - python3-bpfcc
      - python3-pyroute2

- name: The same on Fedora and RHEL
  ebpf.overlay.overlay_packages:
    packages: [kernel-headers, python3-bcc, python3-pyroute2]

- name: Install a tool for looking at programs
  ebpf.overlay.overlay_packages:
    packages: [bpftool]
  register: tools

- name: Say what that changed
  ansible.builtin.debug:
    msg: "installed: {{ tools.installed | join(', ') }}"
    verbosity: 1
"""

RETURN = r"""
installed:
  description: Packages that were missing and that this run installed, or in check mode would install.
  returned: success
  type: list
  elements: str
  sample: [python3-bpfcc]
present:
  description: Packages that were installed already.
  returned: success
  type: list
  elements: str
  sample: [linux-libc-dev, python3-pyroute2]
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.ebpf.overlay.plugins.module_utils._core.shell import run
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.packages import SPEC, ensure


def main() -> None:
    module = AnsibleModule(argument_spec=SPEC, supports_check_mode=True)
    run(module, lambda: ensure(module.params, module.check_mode, module.warn))


if __name__ == "__main__":
    main()
