#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which generation a node is at, and what differs from it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: overlay_generation_info
version_added: "1.0.0"
short_description: Tell which generation an overlay node is at, and what differs from it
description:
  - Reads what M(ebpf.overlay.overlay_generation) keeps on the node.
  - Compares the node with its confirmed generation, by making the generation's calls in check mode with the code that
    is kept with it.
options:
  compare:
    description: Whether to compare. It takes about a second.
    type: bool
    default: true
extends_documentation_fragment:
  - ebpf.overlay.attributes
  - ebpf.overlay.attributes.info
attributes:
  platform:
    support: full
seealso:
  - module: ebpf.overlay.overlay_generation
author:
  - ebpf.overlay maintainers (@ebpf-overlay)
"""

EXAMPLES = r"""
- name: See whether anybody has changed the overlay of this node
  ebpf.overlay.overlay_generation_info:
  register: found

- name: Show what differs
  ansible.builtin.debug:
    var: found.differences
"""

RETURN = r"""
number:
  description: The confirmed generation; 0 for a node without the overlay.
  returned: success
  type: int
  sample: 2
digest:
  description: Its digest; empty for generation 0.
  returned: success
  type: str
  sample: 5f3b103b75d4b809c8b9e5f2039cb174a01a6bb91c8fd7617e81a5ff643c3038
pending:
  description: The number of a generation that waits for confirmation, 0 if none does.
  returned: success
  type: int
  sample: 0
generations:
  description: The generations that the node can go back to.
  returned: success
  type: list
  elements: dict
  sample:
    - {number: 1, former: 0, digest: 9b0c…, when: "2026-01-15T10:21:07+00:00"}
differences:
  description: What differs from the confirmed generation, by module.
  returned: success
  type: list
  elements: dict
  sample:
    - module: bpf_map_sync
      target: /sys/fs/bpf/ebpf-overlay/services
      reason: differs
      diff: {before: "services: 1 entries\n", after: "services: 2 entries\n"}
"""

import json
import subprocess
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.ebpf.overlay.plugins.module_utils import _watchdog
from ansible_collections.ebpf.overlay.plugins.module_utils._errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._generation_store import Store
from ansible_collections.ebpf.overlay.plugins.module_utils._generations import History, calls_to
from ansible_collections.ebpf.overlay.plugins.module_utils._module import run
from ansible_collections.ebpf.overlay.plugins.module_utils._way_back import interfaces, mode_on


def compare(store: Store, history: History) -> list[dict[str, Any]]:
    """Raises :class:`OverlayError`."""
    runtime = store.runtime(history.confirmed)
    calls = [*calls_to(history, history.confirmed, interfaces()), mode_on(history.confirmed)]
    command = [_watchdog.python(), runtime, "rehearse"]
    done = subprocess.run(command, input=json.dumps(calls), text=True, capture_output=True, check=False, cwd="/")
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1])["differences"]
    except (ValueError, IndexError, KeyError):
        reason = (done.stderr or done.stdout).strip()[-300:] or f"it ended with {done.returncode}"
        raise OverlayError(
            "compare the node with its generation", runtime, reason, "Run site.yml, which writes it anew."
        ) from None
    return found


def read(module: AnsibleModule) -> dict[str, Any]:
    store = Store()
    history = store.read()
    comparable = module.params["compare"] and history.confirmed in history.generations
    return {
        "changed": False,
        "number": history.confirmed,
        "digest": history.digest,
        "pending": history.attempt.number if history.attempt else 0,
        "generations": [
            {name: getattr(generation, name) for name in ("number", "former", "digest", "when")}
            for _number, generation in sorted(history.generations.items())
        ],
        "differences": compare(store, history) if comparable else [],
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={"compare": {"type": "bool", "default": True}},
        supports_check_mode=True,
    )
    run(module, lambda: read(module))


if __name__ == "__main__":
    main()
