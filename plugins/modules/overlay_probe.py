#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Connect to services as a client would, and read what the datapath counted."""

from __future__ import annotations

DOCUMENTATION = r"""
module: overlay_probe
version_added: "1.0.0"
short_description: Connect to services on workloads, and read the overlay's counters
description:
  - Opens a TCP connection to each of O(targets) from the node that it runs on, and closes it.
  - A target that refuses the connection was reached, but has no service. A target that does not answer at all is an
    error.
  - Returns how many packets the overlay of this node has redirected so far, so that two runs before and after a probe
    from elsewhere tell whether the probe went through the overlay.
options:
  targets:
    description: Where to connect to.
    type: list
    elements: dict
    default: []
    suboptions:
      address:
        description: The address of a workload.
        type: str
        required: true
      port:
        description: The port of a service.
        type: int
        required: true
  timeout:
    description: How long to wait for each connection, in seconds.
    type: float
    default: 3
extends_documentation_fragment:
  - ebpf.overlay.attributes
attributes:
  check_mode:
    support: full
    details: Nothing is connected in check mode.
  diff_mode:
    support: none
    details: It changes nothing.
author:
  - ebpf.overlay maintainers (@ebpf-overlay)
"""

EXAMPLES = r"""
- name: Connect to a workload of another node
  ebpf.overlay.overlay_probe:
    targets:
      - {address: 10.244.2.11, port: 8080}
  delegate_to: another-node
"""

RETURN = r"""
connected:
  description: Targets that accepted the connection.
  returned: success
  type: list
  elements: str
  sample: ["10.244.2.11:8080"]
would_connect:
  description: Targets that a real run would connect to; empty in a real run.
  returned: success
  type: list
  elements: str
  sample: []
refused:
  description: Targets that were reached, and have no service there.
  returned: success
  type: list
  elements: str
  sample: []
redirected:
  description: Packets that the overlay of this node has redirected so far; 0 while no overlay is loaded.
  returned: success
  type: int
  sample: 1234
"""

import errno
import socket
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.ebpf.overlay.plugins.module_utils._errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._layout import PIN_DIR
from ansible_collections.ebpf.overlay.plugins.module_utils._maps import codecs, opened
from ansible_collections.ebpf.overlay.plugins.module_utils._module import run

REDIRECTED = ("uplink.to_workload", "workload.to_uplink")


def redirected() -> int:
    path = f"{PIN_DIR}/stats"
    with opened(path) as found:
        if found is None:
            return 0
        key, value = codecs(path, found, None, None)
        counted = {key.decode(raw): value.decode(held) for raw, held in found.read(value.total).items()}
        return sum(counted[name]["packets"] for name in REDIRECTED if name in counted)


def connect(address: str, port: int, timeout: float) -> bool:
    """Whether somebody accepts connections there. Raises :class:`OverlayError` when nobody answers at all."""
    try:
        with socket.create_connection((address, port), timeout):
            return True
    except OSError as error:
        if error.errno == errno.ECONNREFUSED:
            return False
        reason = f"no answer within {timeout:g} s" if isinstance(error, socket.timeout) else error
        raise OverlayError(
            "connect to a workload",
            f"{address} port {port} from {socket.gethostname()}",
            reason,
            "Compare with mode off: playbooks/disable.yml switches the overlay off everywhere.",
        ) from error


def probe(module: AnsibleModule) -> dict[str, Any]:
    told: dict[str, list[str]] = {"connected": [], "would_connect": [], "refused": []}
    for target in module.params["targets"]:
        if module.check_mode:
            found = "would_connect"
        else:
            accepted = connect(target["address"], target["port"], module.params["timeout"])
            found = "connected" if accepted else "refused"
        told[found].append(f"{target['address']}:{target['port']}")
    return {**told, "redirected": redirected(), "changed": False}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "targets": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"address": {"type": "str", "required": True}, "port": {"type": "int", "required": True}},
            },
            "timeout": {"type": "float", "default": 3},
        },
        supports_check_mode=True,
    )
    run(module, lambda: probe(module))


if __name__ == "__main__":
    main()
