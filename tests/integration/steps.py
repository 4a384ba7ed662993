# SPDX-License-Identifier: GPL-3.0-or-later
"""Kill a module instead of its n-th step: a step is each call that changes something outside of its process."""

from __future__ import annotations

import os
from collections.abc import Iterator

SOAK = bool(os.environ.get("OVERLAY_SOAK"))

# To be run in the process of the module. Killed instead of step n+1 is killed after step n, for a process that does
# nothing else in between. Files are seen by Python's audit hook, bpf(2) and rtnetlink where modules enter the kernel.
COUNT_STEPS = r"""
import os, signal, sys

def count_steps(kill_at):
    from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import call
    from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps
    from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import tc
    done = [0]

    def step():
        done[0] += 1
        if done[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event, arguments):
        if event in ("os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.symlink"):
            step()
        elif event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            if str(arguments[0]).startswith(("/run/", "/sys/fs/bpf/")):
                step()

    sys.addaudithook(audit)
    syscall, request = call.syscall, tc.TrafficControl._request

    def counted_syscall(number, command, *more):
        if command in bpf_maps.MUTATING:
            step()
        return syscall(number, command, *more)

    def counted_request(*arguments, **fields):
        step()
        return request(*arguments, **fields)

    call.syscall, tc.TrafficControl._request = counted_syscall, counted_request
    return done
"""


def steps_to_kill(total: int, quick: int) -> Iterator[int]:
    """All of them in a soak, else ``quick`` of them from the first to the last."""
    count = total if SOAK else min(quick, total)
    yield from sorted({1 + number * (total - 1) // max(count - 1, 1) for number in range(count)})
