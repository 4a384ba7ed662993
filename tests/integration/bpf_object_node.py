# SPDX-License-Identifier: GPL-3.0-or-later
"""A place to run ``bpf_object`` and ``bpffs`` in: a private mount namespace with its own bpffs.

Modules run in a process of their own, under the interpreter that has bcc, as on a target.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ansible
from integration.steps import COUNT_STEPS

PYTHON = "/usr/bin/python3"
ROOT = Path(__file__).resolve().parents[2]

# Serves one request per line of its input, each in a fork of itself (starting Python and Ansible's basics anew would
# take most of the time). A request is a program to run, or a module, which then reports on a line of its own what its
# process has loaded. With "kill_at" the module is killed instead of its n-th step.
SERVER = (
    COUNT_STEPS
    + r"""
import importlib, json, os, sys
from ansible.module_utils.testing import patch_module_args

base = "ansible_collections.ebpf.overlay.plugins."
for name in ("modules.bpf_object", "modules.bpffs"):
    importlib.import_module(base + name)
for name in sys.argv[1:]:
    importlib.import_module(name)
changes = 0

def counted(function):
    def wrapper(*arguments):
        global changes
        changes += 1
        return function(*arguments)
    return wrapper

def run_module(request):
    pins = importlib.import_module(base + "module_utils._objects.pins")
    for name in ("pin", "rename", "unlink", "symlink", "make_folder", "remove_folder"):
        setattr(pins, name, counted(getattr(pins, name)))
    for target, value in request["patch"].items():
        where, _dot, name = target.rpartition(".")
        setattr(importlib.import_module(base + where), name, (lambda value: lambda *arguments: value)(value))
    steps = count_steps(request["kill_at"])
    try:
        with patch_module_args(request["args"]):
            importlib.import_module(base + "modules." + request["module"]).main()
    except SystemExit:
        pass
    sys.stdout.flush()
    maps = open("/proc/self/maps").read()
    print(json.dumps({"bcc": "bcc" in sys.modules or "libbcc" in maps, "changes": changes, "steps": steps[0]}))

def serve(request):
    if "program" in request:
        sys.argv[1:] = request["argv"]
        exec(request["program"], {})
    else:
        run_module(request)

for line in sys.stdin:
    output, child_output = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(output)
        os.dup2(child_output, 1)
        status = 1
        try:
            serve(json.loads(line))
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc(file=sys.stdout)
        finally:
            sys.stdout.flush()
            os._exit(status)
    os.close(child_output)
    with open(output) as stream:
        said = stream.read()
    print(json.dumps([said, os.waitpid(child, 0)[1]]), flush=True)
"""
)

SCAN = r"""
import json, os, sys
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._objects import pins as kinds

held = {"programs": set(), "maps": set()}

def pins(folder):
    found = {}
    if folder == "/sys/fs/bpf":  # the kernel keeps entries of its own there, which cannot be opened
        entries = {name: None for name in os.listdir(folder) if "." not in name}
    else:
        entries = kinds.read_folder(folder) or {}
    for name, entry in entries.items():
        path = os.path.join(folder, name)
        found[path] = repr(entry)
        if isinstance(entry, kinds.ProgramPin):
            held["programs"].add(entry.id)
            held["maps"].update(bpf.prog_info(bpf.obj_get(path)).map_ids)
        elif isinstance(entry, kinds.MapPin):
            held["maps"].add(entry.id)
        if os.path.isdir(path) and not os.path.islink(path):
            found.update(pins(path))
    return found

def loaded(following, descriptor, info, prefix):
    ids, number = [], following(0)
    while number is not None:
        try:
            fd = descriptor(number)
            if info(fd).name.startswith(prefix):
                ids.append(number)
            os.close(fd)
        except FileNotFoundError:
            pass
        number = following(number)
    return ids

prefix = sys.argv[1]
state = {
    "pins": pins("/sys/fs/bpf"),
    "programs": loaded(bpf.next_prog_id, bpf.prog_fd_by_id, bpf.prog_info, prefix),
    "maps": loaded(bpf.next_map_id, bpf.map_fd_by_id, bpf.map_info, prefix),
    "files": sorted(os.path.join(top, name) for top, folders, files in os.walk("/run") for name in folders + files),
}
print(json.dumps([state, all(set(state[kind]) <= held[kind] for kind in held)]))
"""


@dataclass
class Outcome:
    """What a module returned; ``bcc``: whether the compiler was loaded; ``changes``: calls that changed pins.

    ``steps``: calls that changed anything, the lock and the compiler's files among them.
    """

    result: dict[str, Any]
    bcc: bool = False
    changes: int = 0
    steps: int = 0
    killed: bool = False

    @property
    def ids(self) -> dict[str, int]:
        return {item["name"]: item["id"] for item in (*self.result["programs"], *self.result["maps"])}


@dataclass
class Node:
    """A mount namespace, kept by the process ``pid``; ``preload``: what its modules find imported already."""

    pid: int
    pythonpath: str
    preload: tuple[str, ...] = ()
    server: subprocess.Popen[str] | None = None

    def _enter(self, *command: str) -> list[str]:
        return ["nsenter", "-t", str(self.pid), "-m", "--", *command]

    def command(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self._enter(*command), text=True, capture_output=True, check=check, timeout=300)

    def start_server(self, *wrapper: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._enter(*wrapper, PYTHON, "-c", SERVER, *self.preload),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": self.pythonpath, "TMPDIR": "/run/tmp"},
        )

    def _ask(self, request: dict[str, Any], wrapper: tuple[str, ...] = ()) -> tuple[str, int]:
        """(what the child wrote, its wait status)."""
        line = json.dumps(request) + "\n"
        if wrapper:
            answer = self.start_server(*wrapper).communicate(line, timeout=300)[0]
        else:
            self.server = self.server or self.start_server()
            assert self.server.stdin is not None
            assert self.server.stdout is not None
            self.server.stdin.write(line)
            self.server.stdin.flush()
            answer = self.server.stdout.readline()
        said, status = json.loads(answer)
        return said, status

    def program(self, text: str, *argv: str) -> str:
        """What a Python program that uses this collection writes."""
        said, status = self._ask({"program": text, "argv": list(argv)})
        assert status == 0, said
        return said

    def run(
        self,
        module: str,
        *,
        dry: bool = False,
        kill_at: int = 0,
        patch: dict[str, Any] | None = None,
        wrapper: tuple[str, ...] = (),
        **params: Any,
    ) -> Outcome:
        arguments = {**params, "_ansible_check_mode": dry, "_ansible_diff": True}
        request = {"module": module, "args": arguments, "kill_at": kill_at, "patch": patch or {}}
        said, status = self._ask(request, wrapper)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            return Outcome({}, killed=True)
        lines = said.strip().splitlines()
        assert status == 0, said
        facts = json.loads(lines[-1])
        return Outcome(json.loads(lines[-2]), facts["bcc"], facts["changes"], facts["steps"])

    def _scan(self, prefix: str) -> tuple[dict[str, Any], bool]:
        """(state, whether nothing is loaded that no pin holds)."""
        state, settled = json.loads(self.program(SCAN, prefix))
        return state, settled

    def state(self, prefix: str) -> dict[str, Any]:
        """All pins and files, and the ids of the kernel's programs and maps whose name begins with ``prefix``."""
        return self._scan(prefix)[0]

    def settled_state(self, prefix: str) -> dict[str, Any]:
        """The state once the kernel has freed what nothing refers to, which on a busy machine takes a while."""
        for _attempt in range(200):
            state, settled = self._scan(prefix)
            if settled:
                break
            time.sleep(0.05)
        return state


@contextlib.contextmanager
def node(*, mounted: bool = True, preload: tuple[str, ...] = ()) -> Iterator[Node]:
    """A fresh node; ends with everything that was pinned in it."""
    with tempfile.TemporaryDirectory(prefix="ovl-object-") as folder:
        # Only the package that modules import, so that nothing else of this environment shadows the distribution's.
        os.symlink(os.path.dirname(ansible.__file__), f"{folder}/ansible")
        # Without the kernel's own headers, wherever this runs.
        script = "[ ! -d /lib/modules ] || mount -t tmpfs tmpfs /lib/modules && "
        script += "mount -t tmpfs tmpfs /run && mkdir /run/tmp && umount -R /sys/fs/bpf 2>/dev/null;"
        script += " mount -t bpf bpf /sys/fs/bpf &&" if mounted else ""
        keeper = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", f"{script} echo ready && exec cat"],
            stdin=subprocess.PIPE,  # cat ends when this process does
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert keeper.stdout is not None
            assert keeper.stdout.readline() == "ready\n"
            made = Node(keeper.pid, f"{folder}:{ROOT}/collections", preload)
            try:
                yield made
            finally:
                if made.server is not None:
                    made.server.communicate(timeout=10)
        finally:
            keeper.kill()
            keeper.wait()
