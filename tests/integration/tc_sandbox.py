# SPDX-License-Identifier: GPL-3.0-or-later
"""A network namespace of its own with veths, a private bpffs and a private /run, to let modules loose in."""

from __future__ import annotations

import base64
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COLLECTIONS = ROOT / "collections"
MODULES = "ansible_collections.ebpf.overlay.plugins.modules"
PYTHON = os.environ.get("OVERLAY_TARGET_PYTHON", sys.executable)
"""What runs the modules: the oldest and the newest Python of a target can be tried."""
PINS = "/sys/fs/bpf/test"

# A process in the namespaces with everything imported, which forks for each job: ten times faster than starting Python.
STEM_CELL = """
import base64, json, os, sys, traceback
import pyroute2
from ansible_collections.ebpf.overlay.plugins.modules import tc_bpf_attach, tc_bpf_info
for line in sys.stdin.buffer:
    job = json.loads(line)
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.dup2(writer, 1); os.dup2(writer, 2)
        given = os.memfd_create("stdin"); os.write(given, job["stdin"].encode())
        os.lseek(given, 0, 0); os.dup2(given, 0)
        sys.stdin = open(0); sys.argv = ["-", *job["argv"]]
        code = 0
        try:
            exec(compile(job["code"], "<job>", "exec"), {"__name__": "__main__"})
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc(); code = 1
        sys.stdout.flush(); sys.stderr.flush()
        os._exit(code)
    os.close(writer)
    with open(reader, "rb") as file:
        said = file.read()
    code = os.waitstatus_to_exitcode(os.wait()[1])
    print(json.dumps([code, base64.b64encode(said).decode()]), flush=True)
"""

LOADER = """
import os, sys
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
pin, prog_type, code = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])
os.makedirs(os.path.dirname(pin), exist_ok=True)
fd = bpf.prog_load(code, os.path.basename(pin), prog_type)
if os.path.exists(pin):
    os.unlink(pin)
bpf.obj_pin(fd, pin)
print(bpf.prog_info(fd).id)
"""


def returns(code: int, padding: int = 0) -> bytes:
    """A program that does nothing but end with ``code``; ``padding`` makes programs with different tags."""
    mov_r0 = b"\xb7\x00\x00\x00"
    return b"".join(mov_r0 + struct.pack("=i", number) for number in range(padding)) + (
        mov_r0 + struct.pack("=i", code) + b"\x95" + bytes(7)
    )


class Sandbox:
    """Everything in it goes with :meth:`close`: links and filters belong to the namespace, pins to its bpffs."""

    def __init__(self, name: str, interfaces: tuple[str, ...] = ("eth0", "cali1", "cali2")) -> None:
        self.name = name
        subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, check=False)
        subprocess.run(["ip", "netns", "add", name], check=True)
        hold = "mount -t bpf bpf /sys/fs/bpf && mount -t tmpfs tmpfs /run && echo ready && exec sleep infinity"
        self.holder = subprocess.Popen(["ip", "netns", "exec", name, "sh", "-c", hold], stdout=subprocess.PIPE)
        assert self.holder.stdout
        assert self.holder.stdout.readline() == b"ready\n"
        self.stem_cell = subprocess.Popen(
            self.command(PYTHON, "-c", STEM_CELL),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            cwd="/",
        )
        lines = [f"link add {one} type veth peer name p{number}" for number, one in enumerate(interfaces)]
        self.sh("ip -batch -", "\n".join(lines))

    def close(self) -> None:
        self.stem_cell.communicate()
        self.holder.kill()
        self.holder.wait()
        subprocess.run(["ip", "netns", "del", self.name], check=False)

    def command(self, *words: str) -> list[str]:
        return ["nsenter", "-t", str(self.holder.pid), "-m", "-n", *words]

    def sh(self, script: str, stdin: str = "", check: bool = True) -> str:
        done = subprocess.run(
            self.command("sh", "-c", script), input=stdin, capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, f"{script}: {done.stdout}{done.stderr}"
        return done.stdout

    def job(self, code: str, *arguments: str, stdin: str = "") -> tuple[int, str]:
        """Run Python code in a fork of the stem cell: (exit code, negative after a signal; output)."""
        assert self.stem_cell.stdin
        assert self.stem_cell.stdout
        line = json.dumps({"code": code, "argv": arguments, "stdin": stdin})
        self.stem_cell.stdin.write(line.encode() + b"\n")
        self.stem_cell.stdin.flush()
        returncode, said = json.loads(self.stem_cell.stdout.readline())
        return returncode, base64.b64decode(said).decode()

    def python(self, code: str, *arguments: str) -> str:
        returncode, said = self.job(code, *arguments)
        assert returncode == 0, said
        return said

    def load(self, name: str, code: bytes = returns(-1), prog_type: int = 3) -> int:
        """Load and pin (over an older pin); returns the program's id."""
        return int(self.python(LOADER, f"{PINS}/{name}", str(prog_type), code.hex()))

    def module(self, name: str, check: bool = False, **params: Any) -> dict[str, Any]:
        """Run a module in here; returns what it printed, with ``rc``."""
        code = f"from {MODULES} import {name}\n{name}.main()"
        return result(*self.job(code, stdin=arguments_of(check, params)))

    def separately(self, name: str, *prefix: str, check: bool = False, **params: Any) -> dict[str, Any]:
        """The same in a process of its own, started through ``prefix``."""
        command = self.command(*prefix, PYTHON, "-m", f"{MODULES}.{name}")
        done = subprocess.run(
            command,
            input=arguments_of(check, params),
            capture_output=True,
            text=True,
            check=False,
            env=environment(),
            cwd="/",
        )
        return result(done.returncode, done.stdout + done.stderr)

    def attach(self, *attachments: dict[str, Any], check: bool = False, **params: Any) -> dict[str, Any]:
        return self.module("tc_bpf_attach", check, attachments=list(attachments), **params)

    def both(self, *attachments: dict[str, Any], **params: Any) -> dict[str, Any]:
        """A dry run, which must change nothing and say what the real run that follows does; the latter's result."""
        before = self.state()
        dry = self.attach(*attachments, check=True, **params)
        assert self.state() == before, "the dry run changed something"
        real = self.attach(*attachments, **params)
        assert "attachments" in real, real
        for key in ("changed", "attachments", "removed", "diff", "warnings"):
            assert dry.get(key) == real.get(key), (key, dry, real)
        return real

    def state(self) -> str:
        """Everything that a run could change, in text."""
        show = "for d in $(ls /sys/class/net); do for w in ingress egress; do tc filter show dev $d $w; done; done"
        return self.sh(f"tc qdisc show; {show}; find /run /sys/fs/bpf -printf '%p %y\\n' | sort") + self.python(
            TCX_DUMP
        )

    def filters(self, interface: str, direction: str = "ingress") -> list[str]:
        """The lines of ``tc filter show`` that stand for one filter each."""
        shown = self.sh(f"tc filter show dev {interface} {direction}").splitlines()
        return [line for line in shown if " handle " in line or " key ht " in line]


TCX_DUMP = """
import socket
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
for index, name in sorted(socket.if_nameindex()):
    for way in (46, 47):
        found = bpf.prog_query_tcx(index, way)[1]
        if found: print(name, way, found)
"""


def arguments_of(check: bool, params: dict[str, Any]) -> str:
    return json.dumps({"ANSIBLE_MODULE_ARGS": {**params, "_ansible_check_mode": check, "_ansible_diff": True}})


def result(returncode: int, said: str) -> dict[str, Any]:
    """What a module printed, with ``rc``."""
    for line in said.splitlines():
        if line.startswith("{"):
            found = {**json.loads(line), "rc": returncode}
            # ansible-core 2.19 wraps warnings into objects.
            found["warnings"] = [w if isinstance(w, str) else w["event"]["msg"] for w in found.get("warnings", [])]
            return found
    return {"rc": returncode, "said": said}


def environment() -> dict[str, str]:
    """``PYTHONPATH`` from outside counts too: it can put another version of pyroute2 first."""
    path = [str(COLLECTIONS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": ":".join(path), "PYTHONDONTWRITEBYTECODE": "1"}


def at(interface: str, program: str, **more: Any) -> dict[str, Any]:
    """One entry of ``attachments``."""
    return {"interface": interface, "program": f"{PINS}/{program}", **more}
