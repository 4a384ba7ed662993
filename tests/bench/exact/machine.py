# SPDX-License-Identifier: GPL-3.0-or-later
"""Boots a guest whose clock counts instructions, and reads the figures from its console."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vm import archive
from vm.machine import INSTRUCTION_CLOCK, console, start
from vm.systems import System

from ansible_collections.ebpf.overlay.plugins.plugin_utils import _runtime

from ..objects import HERE, OVERLAY, ROOT, BenchError

_MARK = "@exact "


def payload(wanted: list[tuple[str, str]]) -> bytes:
    """The measuring program as the checkout has it, the collection, and client and server without libraries."""
    with tempfile.TemporaryDirectory(prefix="ovl-exact-") as folder:
        program = Path(folder, "rr")
        command = ["gcc", "-O2", "-static", "-o", str(program), str(HERE / "rr.c")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"gcc: {done.stderr.strip()}")
        files = {"matrix/rr": program.read_bytes()}
    files |= {
        "matrix/start": start("bench.exact.guest", "/run/matrix/tests"),
        "matrix/runtime.zip": _runtime.pack(),
        "matrix/wanted.json": json.dumps(wanted).encode(),
    }
    # Where objects.py looks for them: the guest's /run/matrix stands for the checkout.
    for path in (one for pattern in ("*.py", "*.c", "exact/*.py", "exact/*.c") for one in HERE.glob(pattern)):
        files[f"matrix/{path.relative_to(ROOT)}"] = path.read_bytes()
    for path in OVERLAY.parent.glob("*.[ch]"):
        files[f"matrix/roles/node/files/bpf/{path.name}"] = path.read_bytes()
    return archive.pack(files)


def measure(system: System, wanted: list[tuple[str, str]], log: Path) -> Iterator[dict[str, Any]]:
    """``kind``, ``path`` and either ``instructions`` or ``error``, one after the other.

    Raises BenchError when the guest does not reach its end, and LabError when QEMU cannot start.
    """
    for line in console(system, payload(wanted), log, INSTRUCTION_CLOCK):
        if line == f"{_MARK}end":
            return
        if line.startswith(_MARK):
            yield json.loads(line[len(_MARK) :])
    raise BenchError(f"{system.title} ended before it had measured everything; its console is in {log}")
