# SPDX-License-Identifier: GPL-3.0-or-later
"""Speed of the modules, each beside the bare work that it cannot do without: CPU seconds in the same process.

Python's start and imports are not in it: they are the same for every module of Ansible.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from integration.maps_kernel import measure_large
from integration.tc_sandbox import Sandbox, arguments_of, at

from .objects import BenchError

TESTS = Path(__file__).resolve().parents[1]
ENTRIES = 100_000
INTERFACES = 250
TITLES = {
    "map": "bpf_map_sync with 100,000 entries, and in the same process json.loads of its arguments (parsing) and the "
    "batch system calls on encoded bytes (bare): CPU seconds, ratio, peak memory in MB",
    "attach": "tc_bpf_attach on 250 interfaces with nothing to do, and in the same process a dump of the filters of "
    "these interfaces by pyroute2 and by the module's own reader (raw): CPU seconds",
    "flags": "conntrack's liberal flag on 100,000 established entries, as before conntrack becomes strict again, and "
    "once more with nothing left: CPU seconds, the kernel's among them",
}

# One warm-up, then every turn the module and the two dumps.
ATTACH = """
import contextlib, io, json, socket, sys, time
from ansible.module_utils.testing import patch_module_args
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.rtnl import Dumper, PARENT
from ansible_collections.ebpf.overlay.plugins.modules import tc_bpf_attach
from pyroute2 import IPRoute

arguments = json.loads(sys.stdin.read())["ANSIBLE_MODULE_ARGS"]

def module():
    output = io.StringIO()
    with patch_module_args(arguments), contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        tc_bpf_attach.main()
    return json.loads(output.getvalue())

def pyroute2():
    indexes = [index for index, name in socket.if_nameindex() if name.startswith("cali")]
    with IPRoute() as route:
        return [entry for index in indexes for entry in route.get_filters(index=index, parent=PARENT["ingress"])]

def raw():
    with Dumper() as dumper:
        return [entry for qdisc in dumper.qdiscs() if qdisc.has_hooks for entry in dumper.filters(qdisc, "ingress")]

def timed(function):
    began = time.process_time()
    result = function()
    return time.process_time() - began, result

first = module()
turns = []
for turn in range(int(sys.argv[1]) + 1):
    (seconds, result), (by_pyroute2, theirs), (by_raw, ours) = timed(module), timed(pyroute2), timed(raw)
    # Both see a filter and the head of its list on each interface.
    assert not result["changed"] and len(theirs) == len(ours) == 2 * len(result["attachments"]), result
    turns.append({"module": seconds, "pyroute2": by_pyroute2, "raw": by_raw})
print(json.dumps({"changed": first["changed"], "attached": len(first["attachments"]), "turns": turns[1:]}))
"""


def _map_turn() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="ovl-bench-") as folder:
        fill, again = measure_large(Path(folder), ENTRIES)
    if (fill["result"]["added"], again["result"]["changed"]) != (ENTRIES, False):
        raise BenchError(f"filling a map with {ENTRIES} entries: {fill['result']}, then {again['result']}")
    return {"fill": fill, "noop": again}


def _attach_turns(turns: int) -> list[dict[str, float]]:
    box = Sandbox("ovl-bench-attach", tuple(f"cali{number}" for number in range(INTERFACES)))
    try:
        box.load("one")
        given = arguments_of(False, {"attachments": [at("cali*", "one")], "mechanism": "clsact"})
        code, said = box.job(ATTACH, str(turns), stdin=given)
    finally:
        box.close()
    if code:
        raise BenchError(f"tc_bpf_attach on {INTERFACES} interfaces: {said}")
    found = json.loads(said)
    if (found["changed"], found["attached"]) != (True, INTERFACES):
        raise BenchError(f"tc_bpf_attach on {INTERFACES} interfaces: {said}")
    return found["turns"]


# Fill the table of the network namespace, then set the liberal flag on every entry, twice: (flagged, seconds) each.
FLAG = """
import json, sys, time
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.conntrack import flag_live_entries
sys.path.insert(0, sys.argv[2])
from integration.conntrack_entries import fill
fill(int(sys.argv[1]))
turns = []
for _ in range(2):
    began = time.process_time()
    turns.append((flag_live_entries(), time.process_time() - began))
print(json.dumps(turns))
"""


def _flag_turn() -> dict[str, Any]:
    box = Sandbox("ovl-bench-conntrack")
    try:
        (flagged, seconds), (again, idle) = json.loads(box.python(FLAG, str(ENTRIES), str(TESTS)))
    finally:
        box.close()
    if (flagged, again) != (ENTRIES, 0):
        raise BenchError(f"flagging {ENTRIES} entries of conntrack: {flagged}, then {again}")
    return {"flagged": seconds, "nothing_left": idle}


def measure(quick: bool) -> tuple[dict[str, float], dict[str, Any]]:
    """(figures, runs)."""
    maps = [_map_turn() for __ in range(1 if quick else 7)]
    attach = _attach_turns(3 if quick else 21)
    flags = [_flag_turn() for __ in range(1 if quick else 5)]
    figures = {
        "modules.map_fill_ratio": statistics.median(turn["fill"]["ratio"] for turn in maps),
        "modules.map_noop_ratio": statistics.median(turn["noop"]["ratio"] for turn in maps),
        "modules.map_noop_peak_mb": max(turn["noop"]["peak"] for turn in maps),
        "modules.attach_noop_ms": 1000 * statistics.median(turn["module"] for turn in attach),
        "modules.attach_noop_ratio": statistics.median(turn["module"] / turn["pyroute2"] for turn in attach),
        "modules.attach_noop_over_raw": statistics.median(turn["module"] / turn["raw"] for turn in attach),
        "modules.conntrack_flag_100k_seconds": statistics.median(turn["flagged"] for turn in flags),
    }
    return figures, {"titles": TITLES, "map": maps, "attach": attach, "flags": flags}
