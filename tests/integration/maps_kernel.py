# SPDX-License-Identifier: GPL-3.0-or-later
"""A process in a mount namespace of its own, with its own bpffs, that makes maps and runs the map modules on them.

One process serves all requests, a JSON object per line, because starting Python and Ansible's basics takes most of the
time. It counts the system calls that change something, and can make the n-th of them fail.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from integration.steps import COUNT_STEPS

ROOT = Path(__file__).resolve().parents[2]
PINS = "/sys/fs/bpf"

SERVER = (
    COUNT_STEPS
    + r"""
import contextlib, ctypes, importlib, io, json, os, signal, subprocess, sys, time
from ansible.module_utils.testing import patch_module_args
from ansible.module_utils.common import warnings
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import call
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._maps import bulk
from ansible_collections.ebpf.overlay.plugins.module_utils._maps import pinned as pinned_maps

subprocess.run(["umount", "-R", "/sys/fs/bpf"], stderr=subprocess.DEVNULL)  # the machine's own would hide below ours
for target in ("/sys/fs/bpf", "/run"):
    subprocess.run(["mount", "-t", "bpf" if "bpf" in target else "tmpfs", "ours", target], check=True)
modules = {name: importlib.import_module("ansible_collections.ebpf.overlay.plugins.modules." + name)
           for name in ("bpf_map_sync", "bpf_map_info")}
real = call.syscall
changes, fault = [], {}

def counted(number, command, attr, size):
    if command in bpf.MUTATING:
        changes.append(command)
        if len(changes) == fault.get("at"):
            for call in fault.get("meanwhile", ()):
                perform(call)
            if fault.get("errno"):
                ctypes.set_errno(fault["errno"])
                return -1
    return real(number, command, attr, size)

def pinned(name):
    return bpf.obj_get("/sys/fs/bpf/" + name)

def perform(call):
    if call[0] == "files":
        return sorted(os.path.join(top, name) for root in ("/run", "/sys/fs/bpf")
                      for top, folders, files in os.walk(root) for name in folders + files)
    name, arguments = call[0], [bytes.fromhex(a[1:]) if isinstance(a, str) and a[:1] == "x" else a for a in call[1:]]
    if name == "create":
        options = arguments[6] if len(arguments) > 6 else {}
        if "btf" in options:
            options["btf_fd"] = bpf.btf_load(bytes.fromhex(options.pop("btf")))
        fd = bpf.map_create(*arguments[1:6], arguments[0], **options)
        bpf.obj_pin(fd, "/sys/fs/bpf/" + arguments[0])
        return None
    fd = pinned(arguments[0])
    try:
        if name == "freeze":
            return bpf.map_freeze(fd)
        if name == "update":
            return bpf.map_update(fd, arguments[1], arguments[2])
        if name == "churn":
            keys, value, until = [bytes.fromhex(k) for k in arguments[1]], arguments[2], time.monotonic() + arguments[3]
            if os.fork() == 0:
                while time.monotonic() < until:
                    for write in (lambda key: bpf.map_update(fd, key, value), lambda key: bpf.map_delete(fd, key)):
                        for key in keys:
                            write(key)
                os._exit(0)
            return None
        if name == "fill":
            entries = [(bytes.fromhex(k), bytes.fromhex(v)) for k, v in arguments[1]]
            for key, value in entries:
                bpf.map_update(fd, key, value)
            return None
        if name == "raw":
            info = bpf.map_info(fd)
            found, key = {}, bpf.map_next_key(fd, None, info.key_size)
            while key is not None:
                value = bpf.map_lookup(fd, key, info.value_stride)
                if value is not None:
                    found[key.hex()] = value.hex()
                key = bpf.map_next_key(fd, key, info.key_size)
            return found
    finally:
        os.close(fd)
    raise ValueError(name)

def run_module(request):
    changes.clear()
    fault.clear()
    fault.update(request.get("fault", {}))
    pinned_maps.BATCH = request.get("batch", 16384)
    bulk.LARGE = request.get("large", 1 << 20)
    with contextlib.suppress(AttributeError):
        warnings._global_warnings.clear()
    call.syscall = counted
    output = io.StringIO()
    began = time.process_time()
    try:
        with patch_module_args(request["args"]), contextlib.redirect_stdout(output):
            modules[request["module"]].main()
    except SystemExit:
        pass
    finally:
        call.syscall = real
    return {"result": json.loads(output.getvalue()), "changes": len(changes), "seconds": time.process_time() - began}

for line in sys.stdin:
    request = json.loads(line)
    try:
        if "kill_at" in request.get("fault", {}):
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                steps = count_steps(request["fault"]["kill_at"])
                real = call.syscall
                run_module(request)
                os.write(writer, b"%d" % steps[0])
                os._exit(0)
            os.close(writer)
            steps = int(os.read(reader, 20) or 0)
            os.close(reader)
            killed = os.waitpid(child, 0)[1] == signal.SIGKILL
            answer = {"result": {"killed": killed, "steps": steps}, "changes": 0, "seconds": 0}
        else:
            answer = run_module(request) if "module" in request else {"result": perform(request["call"])}
    except Exception:
        import traceback
        answer = {"crash": traceback.format_exc()}
    print(json.dumps(answer), flush=True)
"""
)


@dataclass
class Outcome:
    """What a module returned, and how many system calls that change something it made."""

    result: dict[str, Any]
    changes: int
    seconds: float

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """added, changed, removed, size"""
        found = self.result
        return found["added"], found["changed_entries"], found["removed"], found["size"]

    @property
    def error(self) -> dict[str, Any]:
        assert self.result.get("failed"), self.result
        return self.result["error"]


class Kernel:
    def __init__(self, *wrapper: str) -> None:
        self._server = subprocess.Popen(
            [*wrapper, "unshare", "-m", sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "collections"), "PYTHONDONTWRITEBYTECODE": "1"},
        )

    def close(self) -> None:
        self._server.communicate(timeout=20)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        assert "crash" not in answer, answer["crash"]
        return answer

    def create(self, name: str, type_: int, key_size: int, value_size: int, max_entries: int, flags: int = 0,
               **options: Any) -> str:  # fmt: skip
        """The pin of a new map. ``options``: those of map_create, and ``btf`` (hexadecimal)."""
        self._ask({"call": ["create", name, type_, key_size, value_size, max_entries, flags, options]})
        return f"{PINS}/{name}"

    def update(self, name: str, key: bytes, value: bytes) -> None:
        self._ask({"call": ["update", name, f"x{key.hex()}", f"x{value.hex()}"]})

    def fill(self, name: str, entries: dict[bytes, bytes]) -> None:
        self._ask({"call": ["fill", name, [[key.hex(), value.hex()] for key, value in entries.items()]]})

    def churn(self, name: str, keys: list[bytes], value: bytes, seconds: float) -> None:
        """Let another process add and remove these keys for so long."""
        self._ask({"call": ["churn", name, [key.hex() for key in keys], f"x{value.hex()}", seconds]})

    def freeze(self, name: str) -> None:
        self._ask({"call": ["freeze", name]})

    def raw(self, name: str) -> dict[bytes, bytes]:
        """What the kernel holds, read one by one; all CPUs' copies."""
        found = self._ask({"call": ["raw", name]})["result"]
        return {bytes.fromhex(key): bytes.fromhex(value) for key, value in found.items()}

    def files(self) -> list[str]:
        """Everything in /run and on the bpffs."""
        found: list[str] = self._ask({"call": ["files"]})["result"]
        return found

    def shell(self, script: str) -> None:
        subprocess.run(["nsenter", "-t", str(self._server.pid), "-m", "sh", "-euc", script], check=True)

    def run(self, module: str, check: bool = False, fault: dict[str, Any] | None = None, batch: int = 16384,
            large: int = 1 << 20, **args: Any) -> Outcome:  # fmt: skip
        """``fault``: ``at`` the n-th changing call, do ``meanwhile`` (calls as above), then fail it with ``errno``; or
        kill the module instead of its step ``kill_at`` (0: never, but tell ``steps``).
        """
        answer = self._ask({
            "module": module, "args": {**args, "_ansible_check_mode": check, "_ansible_diff": True},
            "fault": fault or {}, "batch": batch, "large": large,
        })  # fmt: skip
        return Outcome(answer["result"], answer["changes"], answer["seconds"])

    def run_as(self, user: int, module: str, **args: Any) -> Outcome:
        """A real run in a process of its own, by a user with this number, so without any capability."""
        name = f"ansible_collections.ebpf.overlay.plugins.modules.{module}"
        done = subprocess.run(
            ["nsenter", "-t", str(self._server.pid), "-m", "setpriv", f"--reuid={user}", sys.executable, "-m", name],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": args}), text=True, stdout=subprocess.PIPE, check=False, cwd="/",
            env={**os.environ, "PYTHONPATH": str(ROOT / "collections"), "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        return Outcome(json.loads(done.stdout), 0, 0)


MEASURE = r"""
import contextlib, io, json, os, struct, subprocess, sys, time
from ansible.module_utils import basic
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
from ansible_collections.ebpf.overlay.plugins.modules import bpf_map_sync

def timed(function):
    began = time.process_time()
    result = function()
    return time.process_time() - began, result

def module():
    output = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(output):
        bpf_map_sync.main()
    return json.loads(output.getvalue())

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024

folder, count = sys.argv[1], int(sys.argv[2])
pin = "/sys/fs/bpf/large"
if sys.argv[3:] == []:
    for target in ("/sys/fs/bpf", "/run"):
        subprocess.run(["mount", "-t", "bpf" if "bpf" in target else "tmpfs", "ours", target], check=True)
    bpf.obj_pin(bpf.map_create(bpf.MAP_TYPE_HASH, 16, 8, 2 * count, 0, "large"), pin)
    value = [{"name": "n", "type": "u32"}, {"name": "mtu", "type": "u16"}, {"name": "flags", "type": "u16"}]
    with open(folder + "/arguments", "w") as file:
        file.write(json.dumps({"ANSIBLE_MODULE_ARGS": {"map": pin, "key": "ip", "value": value}})[:-2])
        for i in range(count):
            entry = {"key": f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}", "value": {"n": i, "mtu": 1500, "flags": i & 3}}
            file.write((', "entries": [' if i == 0 else ", ") + json.dumps(entry))
        file.write("]}}")
    for what in ("fill", "no-op"):
        print(subprocess.check_output([sys.executable, *sys.orig_argv[1:], what], text=True), end="", flush=True)
    sys.exit()
with open(folder + "/arguments", "rb") as file:
    basic._ANSIBLE_ARGS, basic._ANSIBLE_PROFILE = file.read(), "legacy"
seconds, result = timed(module)
high = peak()
with open(folder + "/arguments", "rb") as file:
    parsing, arguments = timed(lambda text=file.read(): json.loads(text))
del arguments
if sys.argv[3] == "fill":
    keys = b"".join(bytes(10) + b"\xff\xff\x0a" + i.to_bytes(3, "big") for i in range(count))
    values = b"".join(struct.pack("=IHH", i, 1500, i & 3) for i in range(count))
    fd = bpf.map_create(bpf.MAP_TYPE_HASH, 16, 8, 2 * count, 0, "bare")
    bare, _ = timed(lambda: bpf.map_update_batch(fd, keys, values, count))
else:
    fd = bpf.obj_get(pin)
    bare, _ = timed(lambda: sum(len(keys) for keys, values in bpf.map_lookup_batch(fd, 16, 8)))
print(json.dumps({
    "result": {name: result[name] for name in ("changed", "added", "changed_entries", "size")},
    "seconds": seconds, "parsing": parsing, "bare": bare, "ratio": seconds / (parsing + bare), "peak": high,
}))
"""


def measure_large(folder: Path, count: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Filling a map and the run after that, each in a fresh process: CPU seconds, and peak memory in MB.

    ``ratio``: to the JSON parsing of the arguments plus the bare batch calls on encoded bytes, in the same process.
    """
    command = ["unshare", "-m", sys.executable, "-c", MEASURE, str(folder), str(count)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "collections"), "PYTHONDONTWRITEBYTECODE": "1"}
    said = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, check=True, timeout=120).stdout
    fill, again = (json.loads(line) for line in said.splitlines())
    return fill, again
