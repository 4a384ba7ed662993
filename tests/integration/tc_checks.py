# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks and disturbances that the tests of ``tc_bpf_attach`` and ``tc_bpf_info`` share."""

from __future__ import annotations

import json
from typing import Any

from integration.steps import COUNT_STEPS
from integration.tc_sandbox import PINS, Sandbox, arguments_of, result, returns


def parts(result: dict[str, Any]) -> dict[str, Any]:
    """The four parts of an error, each of which must be there, in the data and in the message."""
    assert result["rc"] != 0, result
    assert result.get("failed"), result
    for key in ("doing", "target", "reason", "advice"):
        assert result["error"][key], result
        assert str(result["error"][key]) in result["msg"]
    return result["error"]


def refused(node: Sandbox, *attachments: dict[str, Any], **params: Any) -> dict[str, Any]:
    """The error of a run that must change nothing; a dry run must fail in the same way."""
    before = node.state()
    error = parts(node.attach(*attachments, **params))
    assert node.state() == before
    assert parts(node.attach(*attachments, check=True, **params)) == error
    return error


def foreign_state(node: Sandbox) -> None:
    """Filters of somebody else at usual and unusual priorities, before anything of ours is there."""
    node.load("theirs", returns(-1, padding=7))
    node.sh(
        "tc qdisc add dev eth0 clsact; "
        "for p in 1 10 50 49152; do "
        f"tc filter add dev eth0 ingress prio $p handle 0x77 protocol all bpf da pinned {PINS}/theirs; "
        "done; tc filter add dev eth0 ingress prio 20 protocol ip u32 match ip dst 192.0.2.1 classid 1:1; "
        "tc filter add dev eth0 egress prio 5 protocol all u32 match u32 0 0 classid 1:1"
    )


TCX_ATTACH = """
import os, sys, socket
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
pin, interface, way, program = sys.argv[1:5]
os.makedirs(os.path.dirname(pin), exist_ok=True)
link = bpf.link_create_tcx(bpf.obj_get(program), socket.if_nametoindex(interface), int(way))
bpf.obj_pin(link, pin)
"""


def tcx_of(node: Sandbox, interface: str) -> str:
    return "".join(line for line in node.state().splitlines() if line.startswith(f"{interface} 4"))


# Runs the module, and before its Nth operation does what it is told.
DISTURBED = """
import os, signal, subprocess, sys
from ansible_collections.ebpf.overlay.plugins.module_utils._hooks import apply as _hooks
from ansible_collections.ebpf.overlay.plugins.modules import tc_bpf_attach
number, action = int(sys.argv.pop(1)), sys.argv.pop(1)
done, perform = [], _hooks._perform
def perform_or_not(operation, control):
    if len(done) == number:
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        subprocess.run(action, shell=True, check=True)
    done.append(operation)
    perform(operation, control)
_hooks._perform = perform_or_not
tc_bpf_attach.main()
"""


def disturbed(node: Sandbox, number: int, action: str, *attachments: dict[str, Any], **params: Any) -> dict[str, Any]:
    given = arguments_of(False, {**params, "attachments": list(attachments)})
    return result(*node.job(DISTURBED, str(number), action, stdin=given))


KILLED = (
    COUNT_STEPS
    + """
from ansible_collections.ebpf.overlay.plugins.modules import tc_bpf_attach
done = count_steps(int(sys.argv.pop(1)))
try:
    tc_bpf_attach.main()
finally:
    print("steps", done[0])
"""
)


def killed(node: Sandbox, number: int, *attachments: dict[str, Any], **params: Any) -> tuple[int, str]:
    """A run that is killed instead of its n-th step (0: never): exit code and output, which ends with the steps."""
    return node.job(KILLED, str(number), stdin=arguments_of(False, {**params, "attachments": list(attachments)}))


def steps_of(node: Sandbox, *attachments: dict[str, Any], **params: Any) -> int:
    """How many steps a run takes."""
    code, said = killed(node, 0, *attachments, **params)
    assert code == 0, said
    return int(said.split()[-1])


def loaded(node: Sandbox, *ids: int) -> list[int]:
    """Those of the programs that the kernel still has; it frees them a little after the last reference is gone."""
    return json.loads(node.python(LOADED, *map(str, ids)))


LOADED = """
import json, sys, time
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
import os
def there(number):
    try:
        os.close(bpf.prog_fd_by_id(number))
    except FileNotFoundError:
        return False
    return True
for _ in range(40):
    found = [number for number in map(int, sys.argv[1:]) if there(number)]
    if not found:
        break
    time.sleep(0.05)
print(json.dumps(found))
"""
