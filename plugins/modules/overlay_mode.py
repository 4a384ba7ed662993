#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Switch the datapath on and off without cutting connections."""

from __future__ import annotations

DOCUMENTATION = r"""
module: overlay_mode
version_added: "1.0.0"
short_description: Set the mode of the overlay's datapath
description:
  - Sets the mode of the datapath that is loaded on a node, by one write of one map entry.
  - Before it switches off, it lets known flows finish, and hands those that remain over to the kernel's connection
    tracking, so that they live on in the kernel's path.
  - A node without datapath is off already. One whose pins are gone while its filters still run is switched off through
    them, without handing over.
options:
  mode:
    description:
      - V(on) redirects new and known flows. It is refused where conntrack is loaded and not liberal, see
        M(ebpf.overlay.overlay_conntrack).
      - V(confirm) removes the deadline of a mode that was set with O(lease). It fails when the lease is over.
      - V(drain) redirects known flows only and waits up to O(drain_timeout) for them to finish.
      - V(off) drains as V(drain) does, hands over what remains, and redirects nothing any more.
    type: str
    choices: ["on", confirm, drain, "off"]
    required: true
  lease:
    description:
      - With V(on), the seconds after which the datapath acts as off by itself unless somebody confirms.
      - V(0) sets no deadline.
    type: float
    default: 0
  drain_timeout:
    description: How long to wait for known flows to finish, in seconds.
    type: float
    default: 10
  force:
    description:
      - Switch off at once, even while another run holds the lock of the node.
      - Known flows are cut loose; how many is returned as RV(cut_loose).
    type: bool
    default: false
  generation:
    description:
      - Number of the generation that the mode belongs to. Left as it is when not given.
      - With V(confirm), the mode of another generation is not confirmed.
    type: int
  pin_dir:
    description: Where the datapath is pinned.
    type: path
    default: /sys/fs/bpf/ebpf-overlay
  lock_timeout:
    description: How long to wait for another run on this node to finish, in seconds. O(force) does not wait.
    type: int
    default: 30
requirements:
  - pyroute2, where flows are handed over
extends_documentation_fragment:
  - ebpf.overlay.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
seealso:
  - module: ebpf.overlay.bpf_object
  - module: ebpf.overlay.overlay_conntrack
author:
  - ebpf.overlay maintainers (@ebpf-overlay)
"""

EXAMPLES = r"""
- name: Switch on for a minute
  ebpf.overlay.overlay_mode:
    mode: "on"
    lease: 60

- name: Keep it on
  ebpf.overlay.overlay_mode:
    mode: confirm

- name: Switch off without cutting a connection
  ebpf.overlay.overlay_mode:
    mode: "off"
    drain_timeout: 30
"""

RETURN = r"""
mode:
  description: The mode after the run (in a dry run, the one that would be).
  returned: success
  type: str
  sample: "on"
session:
  description: Number of the session; flows of earlier sessions are forgotten.
  returned: success
  type: int
  sample: 3
generation:
  description: Number of the generation that the mode belongs to.
  returned: success
  type: int
  sample: 2
flows:
  description: Known flows before the run.
  returned: success
  type: int
  sample: 17
finished:
  description: Known flows that finished while draining.
  returned: success
  type: int
  sample: 15
handed_over:
  description: Flows that conntrack took over.
  returned: success
  type: int
  sample: 2
cut_loose:
  description: Known flows that lost the overlay without being handed over.
  returned: success
  type: int
  sample: 0
"""

import contextlib
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.ebpf.overlay.plugins.module_utils import _conntrack
from ansible_collections.ebpf.overlay.plugins.module_utils._control import (
    known_flows,
    other_layout,
    read_control,
    write_control,
    write_zeros,
)
from ansible_collections.ebpf.overlay.plugins.module_utils._errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._layout import PIN_DIR
from ansible_collections.ebpf.overlay.plugins.module_utils._lock import one_run
from ansible_collections.ebpf.overlay.plugins.module_utils._module import (
    converge,
    importable,
    respawn_where_importable,
    run,
)
from ansible_collections.ebpf.overlay.plugins.module_utils._plan_conntrack import refusal
from ansible_collections.ebpf.overlay.plugins.module_utils._plan_mode import (
    AwaitFlows,
    HandOver,
    Observed,
    SetControl,
    SetUnpinned,
    SetZeros,
    Wanted,
    plan_mode,
)
from ansible_collections.ebpf.overlay.plugins.module_utils._sysctls import read_values

POLL = 0.1  # seconds
# The last acknowledgement of a connection that was just closed is still on its way.
LINGER = 0.25


def _unpinned() -> Any:
    # Late, because the one node in a thousand that needs it should not cost the others.
    from ansible_collections.ebpf.overlay.plugins.module_utils import _unpinned

    return _unpinned


def observe(pin_dir: str) -> Observed:
    now = time.monotonic_ns()
    other = other_layout(pin_dir)
    if other is not None:
        return Observed(None, 0, now, other_layout=other)
    control, strict = read_control(pin_dir), refusal(read_values())
    if control is None:
        return Observed(None, 0, now, _unpinned().controls() if pin_dir == PIN_DIR else {}, strict)
    live = known_flows(pin_dir, control.session) if control.effective(now) != "off" else []
    return Observed(control, len(live), now, refusal=strict)


def await_flows(pin_dir: str, session: int, timeout: float) -> int:
    """Returns how many flows are left."""
    deadline = time.monotonic() + timeout
    left = len(known_flows(pin_dir, session))
    while left and time.monotonic() < deadline:
        time.sleep(POLL)
        left = len(known_flows(pin_dir, session))
    time.sleep(min(LINGER, timeout))
    return left


def hand_over(pin_dir: str, session: int) -> int:
    flows = [flow for flow in known_flows(pin_dir, session) if flow["state"] == "established"]
    if not flows or not _conntrack.tracks():
        return 0
    if not importable("pyroute2"):
        raise OverlayError(
            "hand flows over to conntrack", f"{len(flows)} flow(s)", "pyroute2 is not installed",
            "Install python3-pyroute2, or use force to cut them loose. The mode is drain now: known flows go on.",
        )  # fmt: skip
    return _conntrack.hand_over(flows)


def ensure(module: AnsibleModule) -> dict[str, Any]:
    pin_dir, timeout = module.params["pin_dir"], module.params["drain_timeout"]
    wanted = Wanted(*(module.params[name] for name in ("mode", "lease", "generation", "force")))
    if wanted.lease < 0 or timeout < 0:
        raise OverlayError("set the mode", pin_dir, "lease and drain_timeout are seconds", "Give 0 or more.")
    seen = Observed(None, 0, 0)
    told = {"finished": 0, "handed_over": 0, "cut_loose": 0}

    def observe_first() -> Observed:
        nonlocal seen
        observed = observe(pin_dir)
        seen = observed if seen.control is None else seen
        return observed

    def apply(operations: tuple[Any, ...]) -> None:
        left = seen.flows
        for operation in operations:
            if isinstance(operation, SetControl):
                write_control(pin_dir, operation)
            elif isinstance(operation, SetZeros):
                write_zeros(pin_dir)
            elif isinstance(operation, SetUnpinned):
                _unpinned().write(operation)
            elif isinstance(operation, AwaitFlows) and seen.control:
                left = await_flows(pin_dir, seen.control.session, timeout)
                told["finished"] = max(seen.flows - left, 0)
            elif isinstance(operation, HandOver) and seen.control:
                told["handed_over"] = hand_over(pin_dir, seen.control.session)
        if wanted.mode == "off":
            told["cut_loose"] = max(left - told["handed_over"], 0)

    # Whoever forces it off does not wait for a run that hangs: it is one write, which nothing can tear.
    lock = contextlib.nullcontext() if wanted.mode == "off" and wanted.force else one_run(module.params["lock_timeout"])
    with lock:
        planned = converge(module, observe_first, lambda observed: plan_mode(wanted, observed, pin_dir), apply)
    return {**planned.result, **told, "changed": bool(planned.operations), "diff": planned.diff}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "mode": {"type": "str", "choices": ["on", "confirm", "drain", "off"], "required": True},
            "lease": {"type": "float", "default": 0},
            "drain_timeout": {"type": "float", "default": 10},
            "force": {"type": "bool", "default": False},
            "generation": {"type": "int"},
            "pin_dir": {"type": "path", "default": "/sys/fs/bpf/ebpf-overlay"},
            "lock_timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    if module.params["mode"] == "off":  # before the lock is taken, which a respawned module could not get
        respawn_where_importable("pyroute2")
    run(module, lambda: ensure(module))


if __name__ == "__main__":
    main()
