# SPDX-License-Identifier: GPL-3.0-or-later
"""The overlay as a node has it: the one place here that names its programs, hooks, settings and counters."""

from __future__ import annotations

import os
from pathlib import Path

from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import features

from .. import objects, topology
from ..objects import Loaded

# (side, direction) -> program. The sides are those of topology.ifindexes().
HOOKS = {
    ("uplink", "ingress"): "from_uplink",
    ("workload", "ingress"): "from_workload",
    ("uplink", "egress"): "to_uplink",
    ("workload", "egress"): "to_workload",
}
PRIORITY = 50  # of the filters, by clsact
# Whether conntrack knows a connection of the overlay.
TRACKED = True
# Kind -> the least and the largest share of a connection's packets that the packet filter may see while it is on.
# Handshake and end are the kernel's, and a heartbeat of each direction after 0.75 s.
FILTERED = {"rr": (0.0, 0.02), "connect": (0.3, 0.9), "bulk": (0.0, 0.05)}
# Kind -> the same for packets that the overlay must have counted as redirected.
COUNTED = {"rr": (0.95, 1.01), "connect": (0.1, 0.7), "bulk": (0.9, 1.01)}

_NEIGH, _PEER = 1, 2  # as in settings.h


def load() -> Loaded:
    """Compiled as the role does it for this kernel when the user chooses nothing, with its maps filled."""
    system = os.uname()
    can = features.capabilities(features.stable_version(system.release, system.version))
    settings = {"OVERLAY_REDIRECT": _PEER if can["redirect"] == "peer" else _NEIGH}
    loaded = objects.build(objects.OVERLAY, tuple(HOOKS.values()), **settings)
    topology.fill_overlay(loaded)
    return loaded


def set_mode(loaded: Loaded, mode: str) -> None:
    """``on`` or ``off``."""
    Path("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal").write_text("1", encoding="ascii")
    topology.set_mode(loaded, mode)


def redirected(loaded: Loaded) -> int:
    """How many packets it has redirected."""
    packets = loaded.counters()
    return packets["uplink.to_workload"] + packets["workload.to_uplink"]
