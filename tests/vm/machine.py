# SPDX-License-Identifier: GPL-3.0-or-later
"""Boots a system of the matrix in QEMU and reads from its console what the checks in it found."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab.paths import LabError, tail

from ansible_collections.ebpf.overlay.plugins.module_utils._objects import source
from ansible_collections.ebpf.overlay.plugins.plugin_utils import _runtime

from . import archive
from .image import qemu_path, system_path
from .systems import System

TESTS = Path(__file__).resolve().parent.parent
SOURCE = TESTS.parent / "roles/node/files/bpf/overlay.c"
TIMEOUT = 3600  # seconds; a run takes two minutes, and many more on a busy machine
# Beside those that a generation calls.
MODULES = (
    *(f"{_runtime.COLLECTION}.modules.{path.stem}" for path in (TESTS.parent / "plugins/modules").glob("*.py")),
    # Imported by a name that ansible-core puts together (_json.get_module_serialization_profile).
    "ansible.module_utils._internal._json._profiles._module_legacy_c2m",
    "ansible.module_utils._internal._json._profiles._module_legacy_m2c",
)

# The console is the log, and the end of its file is all that is left of a guest that panics: QEMU ends with 0 then.
_CONSOLE = "console=ttyS0 panic=-1 oops=panic loglevel=5"
_TOLD = re.compile(r"^@matrix (\w+)(?: (ok|failed) ([\d.]+))?$")
# Not soft lockups and stalls of RCU: those only tell that the machine around it was busy.
_KERNEL_TROUBLE = re.compile(r"WARNING: CPU|BUG: (?!soft lockup)|Oops|Kernel panic")

# The second one counts instructions: the guest's clock goes on by a nanosecond with each, whatever this machine does.
# Its date and its random numbers, which hash tables are seeded with, are the same each time.
TWO_PROCESSORS = ("-accel", "tcg,thread=multi", "-smp", "2")
INSTRUCTION_CLOCK = (
    "-accel", "tcg,thread=single", "-smp", "1", "-icount", "shift=0,sleep=off",
    "-seed", "1", "-rtc", "base=2026-01-01,clock=vm",
)  # fmt: skip

_START = """#!/bin/sh
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
cd /run/matrix
PYTHONPATH={path}:/run/matrix/runtime.zip python3 -B -m {module}
echo o > /proc/sysrq-trigger
# Nothing is read from the disk any more, which goes first.
while :; do :; done
"""


@dataclass
class Outcome:
    """Check -> whether it passed, in order; ``finished``: the end was reached; ``trouble``: the kernel's own words."""

    seconds: float = 0.0
    checks: dict[str, bool] = field(default_factory=dict)
    finished: bool = False
    trouble: str = ""

    @property
    def passed(self) -> bool:
        return self.finished and not self.trouble and bool(self.checks) and all(self.checks.values())


def start(module: str, path: str = "/run/matrix") -> bytes:
    """The guest's first program: runs a Python module of the payload and switches the machine off."""
    return _START.format(module=module, path=path).encode()


def payload(system: System, wiring: str = "") -> bytes:
    """What goes into the machine: the checks, the collection's modules with all that they import, and the source.

    ``wiring``: one of ``guest.wirings`` whose checks are to be run; without it those of the matrix are.
    """
    files = {
        "matrix/start": start("vm.guest"),
        "matrix/runtime.zip": _runtime.pack(MODULES),
        "matrix/bundle": source.pack(source.read_bundle(str(SOURCE))).encode(),
        "matrix/expected.json": json.dumps(system.capabilities).encode(),
        "matrix/wiring": wiring.encode(),
    }
    for folder in ("lab", "vm", "vm/guest"):
        for path in (TESTS / folder).glob("*.py"):
            files[f"matrix/{folder}/{path.name}"] = path.read_bytes()
    return archive.pack(files)


def run(system: System, log: Path, follow: Callable[[str, str], None], wiring: str = "") -> Outcome:
    """Boot the system and wait for its end. ``follow`` gets every check and its outcome as they come.

    Raises LabError when QEMU cannot start.
    """
    outcome, began = Outcome(), time.monotonic()
    for line in console(system, payload(system, wiring), log, TWO_PROCESSORS):
        _read(line, outcome, follow)
    outcome.seconds = time.monotonic() - began
    return outcome


def console(system: System, packed: bytes, log: Path, processors: Sequence[str]) -> Iterator[str]:
    """Boot the system with ``packed`` (an archive) beside its initrd; the lines of its console until it ends.

    ``processors``: QEMU's options. Raises LabError when QEMU cannot start.
    """
    with tempfile.TemporaryDirectory(prefix="ovl-matrix-") as folder:
        initrd = Path(folder) / "initrd"
        initrd.write_bytes((system_path(system) / "initrd").read_bytes() + packed)
        with (
            open(log, "w", encoding="utf-8") as record,
            subprocess.Popen(
                _command(system, initrd, processors), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, errors="replace", env={"TMPDIR": folder, "PATH": "/usr/bin:/bin"},
            ) as emulator,
        ):  # fmt: skip
            assert emulator.stdout is not None
            watchdog = threading.Timer(TIMEOUT, emulator.kill)
            watchdog.start()
            try:
                for line in emulator.stdout:
                    record.write(line)
                    record.flush()
                    yield line.strip()
            finally:
                watchdog.cancel()
                emulator.kill()
    if emulator.returncode > 0:
        raise LabError(f"QEMU ended with {emulator.returncode}; the last lines of {log}:\n{tail(log)}")


def _read(line: str, outcome: Outcome, follow: Callable[[str, str], None]) -> None:
    told = _TOLD.match(line)
    if told and told[1] == "end":
        outcome.finished = True
    elif told and told[2]:
        outcome.checks[told[1]] = told[2] == "ok"
        follow(told[1], f"{told[2]}, {told[3]} s")
    elif _KERNEL_TROUBLE.search(line) and not outcome.trouble:
        outcome.trouble = line
        follow("kernel", line)


def _command(system: System, initrd: Path, processors: Sequence[str]) -> list[str]:
    """QEMU with the libraries that were unpacked beside it, whatever this machine has."""
    root, files = qemu_path() / "root", system_path(system)
    libraries = ":".join(str(root / path) for path in ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"))
    command = [
        "setpriv",
        "--pdeathsig",
        "KILL",
        str(root / "usr/lib64/ld-linux-x86-64.so.2"),
        "--library-path",
        libraries,
    ]
    command += [str(root / "usr/bin/qemu-system-x86_64")]
    for folder in ("usr/share/qemu", "usr/share/seabios"):
        command += ["-L", str(root / folder)]
    command += [*processors, "-cpu", "max", "-m", "1024", "-nic", "none"]
    command += ["-nographic", "-no-reboot", "-kernel", str(files / "vmlinuz"), "-initrd", str(initrd)]
    command += ["-append", _CONSOLE]
    return [*command, "-drive", f"file={files / 'disk.img'},format=raw,if=virtio,cache=unsafe,snapshot=on"]
