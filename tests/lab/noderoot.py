# SPDX-License-Identifier: GPL-3.0-or-later
"""The first instructions of a node: build its root file system, move into it, become its PID 1.

Runs as a script in fresh mount, PID, UTS, IPC, cgroup and network namespaces, with the machine's Python, and imports
nothing but the standard library. Its one argument is a JSON file with a :class:`RootSpec`.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import shutil
import socket
import stat
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
MS_REMOUNT, MS_BIND, MS_REC = 0x20, 0x1000, 0x4000
MNT_DETACH = 2

PACKAGES_MOUNT = "srv/packages"

_DEVICES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
_DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class RootSpec:
    """A root file system and what to start in it. Paths are the machine's, except those in files and argv."""

    lower: list[str]
    """Read-only layers, the topmost first."""
    upper: str
    work: str
    mountpoint: str
    packages: str
    """Folder with the offline package repository."""
    hostname: str
    argv: list[str]
    networks: dict[str, str] = field(default_factory=dict)
    """Name -> network namespace of a workload, held in /run/netns as container runtimes do it."""
    pid_file: str = ""
    """Where to write this process's PID as the machine sees it."""
    files: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Path in the node -> text and mode, written at each start."""
    files_once: dict[str, tuple[str, int]] = field(default_factory=dict)
    """The same, but what the upper layer has already stays (a reboot keeps the machine's identity)."""
    environment: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> RootSpec:
        return cls(**json.loads(text))


def _check(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def _mount(source: str, target: Path, kind: str, flags: int = 0, data: str = "") -> None:
    _check(
        _libc.mount(source.encode(), str(target).encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()),
        f"mount {kind or 'bind'} {source} on {target}",
    )


def _mount_root(spec: RootSpec) -> Path:
    root = Path(spec.mountpoint)
    for folder in (spec.upper, spec.work, spec.mountpoint):
        os.makedirs(folder, exist_ok=True)
    # An upper layer that was mounted "volatile" carries a mark that refuses the next mount: a reboot is wanted here.
    shutil.rmtree(Path(spec.work, "work", "incompat"), ignore_errors=True)
    data = f"lowerdir={':'.join(spec.lower)},upperdir={spec.upper},workdir={spec.work}"
    try:
        # Volatile: fsync does nothing. dpkg syncs after every file.
        _mount("overlay", root, "overlay", 0, f"{data},volatile")
    except OSError:
        _mount("overlay", root, "overlay", 0, data)
    return root


def _mount_dev(root: Path) -> None:
    dev = root / "dev"
    _mount("tmpfs", dev, "tmpfs", MS_NOSUID, "mode=755,size=1m")
    for name, (major, minor) in _DEVICES.items():
        os.mknod(dev / name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
        os.chmod(dev / name, 0o666)
    for name, target in _DEVICE_LINKS.items():
        os.symlink(target, dev / name)
    for name, kind, data in (
        ("pts", "devpts", "newinstance,ptmxmode=0666,mode=620,gid=5"),
        ("shm", "tmpfs", "mode=1777,size=64m"),
        ("mqueue", "mqueue", ""),
    ):
        (dev / name).mkdir()
        _mount(kind, dev / name, kind, MS_NOSUID | MS_NOEXEC, data)


def _mount_proc(root: Path) -> None:
    proc = root / "proc"
    _mount("proc", proc, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    # Sysctls of the network namespace are the node's own; all others are the machine's and must stay as they are.
    _mount(str(proc / "sys/net"), proc / "sys/net", "", MS_BIND)
    _mount(str(proc / "sys"), proc / "sys", "", MS_BIND | MS_REC)
    for path in (proc / "sys", proc / "sysrq-trigger"):
        if path.name == "sysrq-trigger":
            if not path.exists():
                continue
            _mount(str(path), path, "", MS_BIND)
        _mount("", path, "", MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)


def _mount_kernel_file_systems(root: Path) -> None:
    _mount_proc(root)
    _mount("sysfs", root / "sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _mount("cgroup2", root / "sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _mount_dev(root)
    _mount("tmpfs", root / "run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=64m")
    (root / "run/lock").mkdir()
    # boot_id is the machine's: without one of its own, nobody would notice that the node was rebooted.
    boot_id = root / "run/.boot_id"
    boot_id.write_text(f"{uuid.uuid4()}\n", encoding="ascii")
    _mount(str(boot_id), root / "proc/sys/kernel/random/boot_id", "", MS_BIND)
    _mount("", root / "proc/sys/kernel/random/boot_id", "", MS_BIND | MS_REMOUNT | MS_RDONLY)


def _hold(networks: dict[str, str], folder: Path) -> None:
    folder.mkdir()
    for name, path in networks.items():
        (folder / name).touch()
        _mount(path, folder / name, "", MS_BIND)


def _write(root: Path, files: dict[str, tuple[str, int]], unless_in: Path | None = None) -> None:
    for name, (text, mode) in files.items():
        path = root / name.lstrip("/")
        if unless_in is not None and os.path.lexists(unless_in / name.lstrip("/")):
            continue
        if not path.parent.is_dir():
            path.parent.mkdir(mode=0o700, parents=True)
        path.unlink(missing_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)


def _move_into(root: Path) -> None:
    """pivot_root(2) onto itself, then let go of the machine's tree (pivot_root(2), "pivot_root(., .)")."""
    os.chdir(root)
    _check(_libc.pivot_root(b".", b"."), f"pivot_root to {root}")
    _check(_libc.umount2(b".", MNT_DETACH), "umount the old root")
    os.chdir("/")


def main(spec_path: str) -> None:
    """Build the root, enter it, and exec the node's init. Does not return."""
    spec = RootSpec.from_json(Path(spec_path).read_text(encoding="utf-8"))
    os.umask(0o022)
    if spec.pid_file:
        # /proc is still the machine's, so this is our PID as the machine sees it.
        temporary = Path(f"{spec.pid_file}.new")
        temporary.write_text(os.readlink("/proc/self"), encoding="ascii")
        temporary.replace(spec.pid_file)
    socket.sethostname(spec.hostname)
    root = _mount_root(spec)
    _mount_kernel_file_systems(root)
    _hold(spec.networks, root / "run/netns")
    packages = root / PACKAGES_MOUNT
    packages.mkdir(parents=True, exist_ok=True)
    _mount(spec.packages, packages, "", MS_BIND)
    _mount("", packages, "", MS_BIND | MS_REMOUNT | MS_RDONLY)
    _write(root, spec.files)
    _write(root, spec.files_once, unless_in=Path(spec.upper))
    _move_into(root)
    os.umask(0o022)
    os.execve(spec.argv[0], spec.argv, spec.environment)


if __name__ == "__main__":
    main(sys.argv[1])
