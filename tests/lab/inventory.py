# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory that makes the lab's nodes ordinary SSH hosts for Ansible."""

from __future__ import annotations

import json

from . import wirings
from .cluster import FABRIC, ClusterPlan
from .paths import CONNECTIONS, INVENTORY, KEY, write_atomically

# There is no route from the machine into the lab: each connection starts in the fabric's namespace, so that it
# arrives at the node's uplink like any other packet. Host keys change with every "up".
SSH_OPTIONS = (
    f'-o ProxyCommand="ip netns exec {FABRIC} nc %h %p"',
    "-o StrictHostKeyChecking=no",
    "-o UserKnownHostsFile=/dev/null",
    "-o GlobalKnownHostsFile=/dev/null",
    "-o LogLevel=ERROR",
    "-o IdentitiesOnly=yes",
)


def text(cluster: ClusterPlan) -> str:
    """The inventory as YAML; the group is ``overlay_nodes``."""
    lines = [
        "# Written by tests/lab/lab up; gone after tests/lab/lab down.",
        "overlay_nodes:",
        "  hosts:",
    ]
    for node in cluster.nodes:
        lines += [f"    {node.name}:", f"      ansible_host: {node.ipv4}"]
    options = " ".join(SSH_OPTIONS)
    lines += [
        "  vars:",
        "    ansible_user: root",
        "    ansible_ssh_private_key_file: '{{ inventory_dir }}/" + KEY.name + "'",
        f"    ansible_ssh_common_args: '{options}'",
        f"    ansible_control_path_dir: {CONNECTIONS}",
        "    ansible_host_key_checking: false",
        "    ansible_pipelining: true",
        "    ansible_python_interpreter: /usr/bin/python3",
        *(f"    {name}: {json.dumps(value)}" for name, value in wirings.named(cluster.wiring).variables.items()),
        "",
    ]
    return "\n".join(lines)


def write(cluster: ClusterPlan) -> None:
    """Write ``tests/lab/run/inventory.yml``."""
    write_atomically(INVENTORY, text(cluster))
