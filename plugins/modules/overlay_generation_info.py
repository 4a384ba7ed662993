#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
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
    is kept with it, and names each object that differs, RV(drift).
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
    var: found.drift
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
attempt:
  description: The name of the attempt that waits for confirmation; empty if none does.
  returned: success
  type: str
  sample: ""
by:
  description: The name of the attempt that was confirmed, or how else the node came to its generation.
  returned: success
  type: str
  sample: 2-183f2a6c11
mode:
  description:
    - The mode as the datapath acts on it, V(on), V(drain) or V(off).
    - V(absent) where no datapath is pinned, V(unknown) for one of another release.
  returned: success
  type: str
  sample: "on"
switched_off:
  description: Whether somebody has switched the node off, and it stays so whatever is rolled out.
  returned: success
  type: bool
  sample: false
trouble:
  description: What the node's own way back could not do in its last try; empty where there is none.
  returned: success
  type: list
  elements: str
  sample: []
generations:
  description: The generations that the node can go back to.
  returned: success
  type: list
  elements: dict
  sample:
    - {number: 1, former: 0, digest: 9b0c…, when: "2026-01-15T10:21:07+00:00"}
drift:
  description:
    - The objects that differ from the confirmed generation, and foreign filters that run before ours.
    - For a node without a generation, the list is empty.
  returned: success
  type: list
  elements: dict
  contains:
    kind:
      description:
        - V(missing), V(changed) and V(extra) say how the object differs. V(hidden) is a filter of ours that never runs,
          V(ahead) one that another filter may keep packets from. V(unknown) could not be compared.
      type: str
    object:
      description: Which interface and filter, map and key, pin, package or mount.
      type: str
    wanted:
      description: What it should be; none if it should not be there.
      type: str
    found:
      description: What it is, or what is there instead; none if nothing is.
      type: str
    owner:
      description: Who owns what is there instead, as far as its name says so.
      type: str
  sample:
    - kind: missing
      object: filter on cali0a1b2c3d ingress, priority 1, handle 0x1
      wanted: protocol 0x0003 ebpf.overlay:from_workload program 723 tag 96d9978f9f8bb4cd direct-action
      found: bpf filter priority 1 handle 0x1 cilium:from_container program 801
      owner: cilium
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

import socket
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.shell import run
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.control import read_control
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.drift import find_drift
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.layout import BPFFS, PIN_DIR
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.model import History, calls_to
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.store import Store
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.stored_runtime import StoredRuntime
from ansible_collections.ebpf.overlay.plugins.module_utils._generations.way_back import interfaces
from ansible_collections.ebpf.overlay.plugins.module_utils._hooks.inspect import read_interfaces


def hooks() -> list[dict[str, Any]]:
    """What is on the interfaces, whoever owns it. Raises :class:`OverlayError`."""
    try:
        return read_interfaces({name: ifindex for ifindex, name in socket.if_nameindex()}, BPFFS)
    except OSError as error:
        raise OverlayError(
            "read the traffic-control hooks", "all interfaces", error, "Run as root (become: true)."
        ) from error


def read(module: AnsibleModule) -> dict[str, Any]:
    store = Store()
    history = store.read()
    differences: list[dict[str, Any]] = []
    drift: list[dict[str, Any]] = []
    if module.params["compare"] and history.confirmed in history.generations:
        generation = history.generations[history.confirmed]
        stored = StoredRuntime(store.runtime(history.confirmed), generation)
        differences = list(stored.rehearse("off" if history.switched_off else "on"))
        calls = calls_to(history, history.confirmed, interfaces())
        wanted = [
            {**{key: arguments[key] for key in ("priority",) if key in arguments}, **item}
            for arguments in (call["arguments"] for call in calls)
            for item in arguments.get("attachments", ())
        ]
        drift = find_drift(differences, wanted, hooks())
    elif module.params["compare"] and history.confirmed:
        lost = history.damaged.get(history.confirmed, "")
        differences = [
            {
                "module": "overlay_generation",
                "target": f"record of generation {history.confirmed}",
                "reason": "it is lost or damaged, so the node cannot be compared with it; site.yml makes a new one"
                + (f" ({lost})" if lost else ""),
                "diff": None,
            }
        ]
        drift = find_drift(differences, (), ())
    return {"changed": False, **summary(history), **told(store, history), "differences": differences, "drift": drift}


def told(store: Store, history: History) -> dict[str, Any]:
    """What a report must know to be true: read from the node, whatever a run believes."""
    trouble = store.trouble()
    return {
        "mode": mode(),
        "switched_off": history.switched_off,
        "attempt": history.attempt.identity if history.attempt else "",
        "by": history.by,
        "trouble": trouble.reasons if trouble else [],
    }


def mode() -> str:
    """As the datapath acts on it."""
    try:
        control = read_control(PIN_DIR)
    except OverlayError:
        return "unknown"
    return control.effective(time.monotonic_ns()) if control else "absent"


def summary(history: History) -> dict[str, Any]:
    return {
        "number": history.confirmed,
        "digest": history.digest,
        "pending": history.attempt.number if history.attempt else 0,
        "generations": [
            {name: getattr(generation, name) for name in ("number", "former", "digest", "when")}
            for _number, generation in sorted(history.generations.items())
        ],
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={"compare": {"type": "bool", "default": True}},
        supports_check_mode=True,
    )
    run(module, lambda: read(module))


if __name__ == "__main__":
    main()
