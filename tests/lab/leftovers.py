# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding and removing everything that belongs to the lab, whatever state it was left in.

Nothing here trusts a record: processes are found by the marker in their environment, by the network namespace that
they are in, by their cgroup, and by the node's root that their mount namespace carries; the rest by name.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from . import base, namespace
from .network import destroy_namespace
from .paths import CGROUP_NAME, CONNECTIONS, MARKER, PIDS, PREFIX, RUN_DIR, LabError, nodes_dir

MNT_DETACH = 2
_NODE_ROOT = re.compile(rf"upperdir=\S*/{PREFIX}n\d+/upper")


def cgroup_mount() -> Path | None:
    """Where this machine has the cgroup2 hierarchy mounted, or None."""
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        target, kind = line.split()[1:3]
        if kind == "cgroup2":
            return Path(target)
    return None


def cgroup_root() -> Path | None:
    """The lab's own cgroup; it need not exist."""
    mount = cgroup_mount()
    return mount / CGROUP_NAME if mount else None


def _ancestors() -> set[int]:
    """This process and its parents: the shell in which somebody types ``lab down`` is never killed."""
    found = set()
    pid = os.getpid()
    while pid > 1:
        found.add(pid)
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        except OSError:
            break
        pid = int(stat.rpartition(")")[2].split()[1])
    return found


def _namespace_ids() -> set[tuple[int, int]]:
    ids = set()
    for name in namespace.ours():
        with contextlib.suppress(OSError):
            status = os.stat(namespace.path_of(name))
            ids.add((status.st_dev, status.st_ino))
    return ids


def _belongs(pid: int, namespaces: set[tuple[int, int]], roots: dict[str, bool]) -> bool:
    proc = Path(f"/proc/{pid}")
    try:
        if f"{MARKER}=".encode() in (proc / "environ").read_bytes():
            return True
        status = os.stat(proc / "ns/net")
        if (status.st_dev, status.st_ino) in namespaces:
            return True
        if f"/{CGROUP_NAME}/" in (proc / "cgroup").read_text(encoding="utf-8"):
            return True
        # One look per mount namespace: mountinfo is the same for all processes in it.
        mounts = os.readlink(proc / "ns/mnt")
        if mounts not in roots:
            roots[mounts] = bool(_NODE_ROOT.search((proc / "mountinfo").read_text(encoding="utf-8")))
        return roots[mounts]
    except OSError:
        return False


def processes() -> list[int]:
    """Every process of a lab on this machine, except this one and its parents."""
    spare = _ancestors()
    namespaces = _namespace_ids()
    roots: dict[str, bool] = {os.readlink("/proc/self/ns/mnt"): False}
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return [pid for pid in pids if pid not in spare and _belongs(pid, namespaces, roots)]


def _kill_all(timeout: float = 10.0) -> int:
    """SIGKILL until a scan finds nobody. Returns how many there were at first."""
    deadline = time.monotonic() + timeout
    first = None
    while True:
        found = processes()
        first = len(found) if first is None else first
        if not found:
            return first
        if time.monotonic() > deadline:
            raise LabError(f"these processes of the lab do not end: {found}")
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def mounts() -> Iterator[str]:
    """Mount points of a lab in this mount namespace, innermost first."""
    prefixes = (f"{nodes_dir()}/", f"{RUN_DIR}/")
    lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    for line in reversed(lines):
        target = line.split()[1].encode().decode("unicode_escape")
        if target.startswith(prefixes):
            yield target


def remove_cgroup(name: str = "") -> bool:
    """Remove a node's cgroup with everything below it, or the whole lab's. False if there was none."""
    root = cgroup_root()
    if root is None or not (root / name).is_dir():
        return False
    deadline = time.monotonic() + 5.0
    for folder, __, __ in os.walk(root / name, topdown=False):
        while True:
            try:
                os.rmdir(folder)
                break
            except FileNotFoundError:
                break
            except OSError as error:
                # A killed process leaves its cgroup a moment after its last thread is gone.
                if time.monotonic() > deadline:
                    raise LabError(f"the cgroup {folder} cannot be removed: {error.strerror}") from error
                time.sleep(0.02)
    return True


def sweep() -> list[str]:
    """Remove every trace of this lab on the machine and say what was found. The caller holds the lock."""
    found = []
    killed = _kill_all()
    if killed:
        found.append(f"{killed} processes")
    names = namespace.ours()
    for name in names:
        destroy_namespace(name)
    if names:
        found.append(f"{len(names)} network namespaces")
    libc = ctypes.CDLL(None, use_errno=True)
    for target in list(mounts()):
        libc.umount2(target.encode(), MNT_DETACH)
        found.append(f"mount {target}")
    if remove_cgroup():
        found.append("cgroup")
    if nodes_dir().exists():
        shutil.rmtree(nodes_dir())
        found.append("node file systems")
    found.extend(base.clean_unfinished())
    shutil.rmtree(CONNECTIONS, ignore_errors=True)
    if RUN_DIR.exists():
        shutil.rmtree(RUN_DIR)
        found.append(str(RUN_DIR))
    return found


def record_pid(name: str, pid: int) -> None:
    """Keep the PID of a workload's server where :mod:`lab.api` looks for it."""
    PIDS.mkdir(parents=True, exist_ok=True)
    (PIDS / name).write_text(str(pid), encoding="ascii")
