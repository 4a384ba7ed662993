#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Begin, confirm and take back what a node is told to be."""

from __future__ import annotations

DOCUMENTATION = r"""
module: overlay_generation
version_added: "1.0.0"
short_description: Keep the generations of an overlay node, and go back to one of them
description:
  - A generation is what a node was told to be, an ordered list of calls of modules of this collection. It is kept on
    the node below C(/var/lib/ebpf-overlay) with the code that makes these calls, so that the node can go back to it
    without the controller.
  - A roll-out begins an attempt, makes the calls, and confirms the attempt. Until then a process on the node watches
    it, and takes the node back to the generation that it had when nobody confirms in time. Where systemd runs, a unit
    does the same after a reboot.
  - Generation 0 is the node without the overlay. Going there removes every generation.
  - The last three confirmed generations are kept.
options:
  state:
    description:
      - V(begun) records an attempt when O(calls) are not what the node is already. That is told by the digest of the
        confirmed generation, and by what the calls would change.
      - V(confirmed) makes the attempt the generation of the node, and takes the lease off the datapath's mode.
      - V(restored) takes the node to the generation O(to). The present one is left, and the other made, by the code
        that is kept with each.
      - V(switched_off) records that the node stays off whatever is rolled out, through reboots too, until an attempt
        that began with O(enable) is confirmed. It does not set the mode; M(ebpf.overlay.overlay_mode) does. A node
        without the overlay has nothing to record.
    type: str
    choices: [begun, confirmed, restored, switched_off]
    required: true
  calls:
    description: The calls, in their order. Required with O(state=begun).
    type: list
    elements: dict
    default: []
    suboptions:
      module:
        description: The name of a module of this collection.
        type: str
        required: true
      arguments:
        description: Its arguments.
        type: dict
        required: true
  timeout:
    description: The seconds after which the node goes back when nobody has confirmed the attempt.
    type: float
    default: 300
  gathered_from:
    description:
      - The C(machine_id), C(boot_id) and C(running_since) of the machine from whose facts O(calls) were worked out, as
        M(ebpf.overlay.overlay_facts) returns them in C(identity) and C(running_since).
      - With O(state=begun) another machine under this name, or one that has started anew since, is refused. What is
        not given is not compared.
    type: dict
  attempt:
    description:
      - Which attempt to confirm, as RV(attempt) of O(state=begun) named it. Required with O(state=confirmed).
      - With V(former) of O(to), the attempt to undo. When another run has the node by now, nothing is changed, and
        RV(foreign) says who has it. The empty text is a run that began nothing. When not given, whatever is there is
        undone.
    type: str
  number:
    description:
      - The number of the attempt's generation. Required with O(state=confirmed).
      - With V(former) of O(to), the generation that was there before the attempt, for a node on which no attempt waits
        any more because it was confirmed.
    type: int
  to:
    description:
      - With O(state=restored), V(previous) is the generation that the confirmed one replaced, V(former) the one that
        was there before an attempt that nobody confirmed. Anything else is the number of a generation.
      - A node that went to its V(previous) generation stays there when that is asked for again.
    type: str
    default: previous
  drain_timeout:
    description:
      - How long to wait for known flows to finish before the datapath is switched off, in seconds.
      - With O(state=begun) that is done where the present generation was made by release 1.0.0, and where maps change
        their layout.
    type: float
    default: 10
  enable:
    description:
      - Whether a node that somebody switched off is switched on again.
      - With O(state=begun) it is when the attempt is confirmed, with O(state=restored) at once.
    type: bool
    default: false
  switched_on:
    description:
      - Whether the overlay is on after O(state=restored).
      - With V(former) of O(to) and an attempt that nobody confirmed, it is so if it was before the attempt and nobody
        has switched it off since.
    type: bool
    default: true
  runtime:
    description: The code that makes the calls, as the action plugin hands it over. Not for use in playbooks.
    type: str
extends_documentation_fragment:
  - ebpf.overlay.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
notes:
  - What a generation needs of interfaces that are gone by then is left out when it is restored.
seealso:
  - module: ebpf.overlay.overlay_mode
author:
  - ebpf.overlay maintainers (@ebpf-overlay)
"""

EXAMPLES = r"""
- name: Begin
  ebpf.overlay.overlay_generation:
    state: begun
    calls:
      - module: bpffs
        arguments: {}
    timeout: 120
  register: begun

- name: Keep it
  ebpf.overlay.overlay_generation:
    state: confirmed
    number: "{{ begun.number }}"
    attempt: "{{ begun.attempt }}"

- name: Go back
  ebpf.overlay.overlay_generation:
    state: restored
    to: previous
"""

RETURN = r"""
number:
  description: The generation that the node is at after the run (with O(state=begun), the one that it shall be at).
  returned: success
  type: int
  sample: 2
former:
  description: The confirmed generation before the run.
  returned: success
  type: int
  sample: 1
digest:
  description: The digest of the generation RV(number); empty for generation 0.
  returned: success
  type: str
  sample: 5f3b103b75d4b809c8b9e5f2039cb174a01a6bb91c8fd7617e81a5ff643c3038
attempt:
  description: The name of the attempt; empty when nothing has to be done.
  returned: success
  type: str
  sample: 2-183f2a6c11
was_on:
  description: Whether the overlay was on before the run.
  returned: success
  type: bool
  sample: true
switched_off:
  description: Whether somebody has switched the node off, and it stays so.
  returned: success
  type: bool
  sample: false
foreign:
  description: Who has the node, where the attempt to undo is not what it has. Empty otherwise.
  returned: success
  type: str
  sample: another run's attempt 2-183f2a6c11 (generation 3) waits for confirmation
replaced:
  description: With O(state=begun), the maps whose layout changes, so that they start empty.
  returned: success
  type: list
  elements: str
  sample: []
differences:
  description: What differs from what the node shall be, by module.
  returned: success
  type: list
  elements: dict
  sample:
    - module: bpf_map_sync
      target: /sys/fs/bpf/ebpf-overlay/services
      reason: differs
      diff: {before: "services: 1 entries\n", after: "services: 2 entries\n"}
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.ebpf.overlay.plugins.module_utils._core.shell import run
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.resource import REQUIRED_IF, SPEC, ensure


def main() -> None:
    module = AnsibleModule(argument_spec=SPEC, required_if=REQUIRED_IF, supports_check_mode=True)
    run(module, lambda: ensure(module.params, module.check_mode, module.warn))


if __name__ == "__main__":
    main()
