# SPDX-License-Identifier: GPL-3.0-or-later
"""Attributes that the modules of this collection document."""

from __future__ import annotations


class ModuleDocFragment:
    # Every module; support of check_mode and diff_mode is stated by the module itself.
    DOCUMENTATION = r"""
options: {}
attributes:
  action_group:
    description: Use C(group/ebpf.overlay.overlay) in C(module_defaults) to set defaults for this module.
    support: full
    membership:
      - ebpf.overlay.overlay
  check_mode:
    description: Can run in check mode and predict what a run would change, without changing anything.
  diff_mode:
    description: Returns what has changed, or in check mode would change, when in diff mode.
  platform:
    description: Target operating systems that can be operated against.
    support: full
    platforms: Linux
"""

    # Modules that only read.
    INFO = r"""
options: {}
attributes:
  check_mode:
    support: full
    details:
      - This module never changes anything.
  diff_mode:
    support: N/A
    details:
      - This module never changes anything.
"""

    # Modules that return ansible_facts.
    FACTS = r"""
options: {}
attributes:
  facts:
    description: Returns an C(ansible_facts) dictionary that updates the facts of the host.
    support: full
"""
