# SPDX-License-Identifier: GPL-3.0-or-later
"""bpffs as a file system: where it is mounted, whether something hides it, mount and unmount."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from dataclasses import dataclass

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError

USUAL_MOUNT_POINT = "/sys/fs/bpf"


@dataclass(frozen=True)
class Mount:
    """One line of /proc/self/mountinfo; ``device`` is "MAJOR:MINOR", by which two instances of bpffs differ."""

    device: str
    point: str
    fstype: str
    source: str


def parse_mounts(mountinfo: str) -> list[Mount]:
    """The mounts of this mount namespace, oldest first (proc_pid_mountinfo(5))."""
    mounts = []
    for line in mountinfo.splitlines():
        fields, _separator, rest = line.partition(" - ")
        _id, _parent, device, _root, point = fields.split(" ")[:5]
        fstype, source = rest.split(" ")[:2]
        mounts.append(Mount(device, _unescape(point), fstype, _unescape(source)))
    return mounts


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found.group(1), 8)), field)


def is_below(path: str, folder: str) -> bool:
    """Whether ``path`` is ``folder`` or inside of it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def visible_bpffs(path: str, mounts: list[Mount], device: str) -> Mount | None:
    """The bpffs that ``path`` is on, or None where it is on another file system.

    ``device``: the one that stat() reports for ``path`` or for its nearest folder that exists.
    Raises :class:`OverlayError` when a bpffs at or above ``path`` is covered by a later mount, so that its pins are
    out of sight (cilium #47847): whatever was done then would be done twice, or to the wrong objects.
    """
    covering = [mount for mount in mounts if mount.fstype == "bpf" and is_below(path, mount.point)]
    visible = max((m for m in covering if m.device == device), key=lambda mount: len(mount.point), default=None)
    for mount in covering:
        if mount.device == device or (visible and len(mount.point) < len(visible.point)):
            continue
        if visible is not None:
            reason = f"a bpffs is mounted on {visible.point} more than once; the later one hides the first one's pins"
        else:
            later = max((m for m in mounts if m.device == device), key=lambda m: len(m.point), default=None)
            what = f"{later.fstype} on {later.point}" if later else "another file system"
            reason = f"the bpffs on {mount.point} is hidden by a later mount ({what})"
        raise OverlayError(
            "use the bpffs",
            path,
            reason,
            f"Find out who mounted it (findmnt -o TARGET,SOURCE,FSTYPE {mount.point}), then unmount the later one.",
        )
    return visible


def find_bpffs(path: str) -> Mount | None:
    """The bpffs that ``path`` (which need not exist) is on; see :func:`visible_bpffs`."""
    existing = path
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    number = os.stat(existing).st_dev
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as stream:
        mounts = parse_mounts(stream.read())
    return visible_bpffs(path, mounts, f"{os.major(number)}:{os.minor(number)}")


def not_on_bpffs(path: str) -> str:
    """The sentence for a folder that is on no bpffs."""
    if is_below(path, USUAL_MOUNT_POINT):
        return f"No bpffs is mounted on {USUAL_MOUNT_POINT}: mount it with the module ebpf.overlay.bpffs."
    return (
        f"{path} is not below a bpffs: choose a folder below {USUAL_MOUNT_POINT}, or mount a bpffs above it with the "
        "module ebpf.overlay.bpffs."
    )


def check_folder(path: str, point: str) -> None:
    """Refuse a folder that can never hold our pins on the bpffs mounted on ``point``. Raises :class:`OverlayError`."""
    doing = "use the folder for pins"
    if not path.startswith("/"):
        raise OverlayError(doing, path, "it is not an absolute path", "Start it with a slash.")
    if path == point:
        raise OverlayError(doing, path, "it is the bpffs itself", f"Name a folder of its own, such as {point}/mine.")
    if is_below(path, point) and "." in path[len(point) :]:
        raise OverlayError(doing, path, "names on a bpffs may not contain dots", "Use letters, digits, - and _.")


# --- changes ----------------------------------------------------------------------------------------------------------

# The kernel keeps it as the mount's source, so that who mounted is known as long as the mount lives, and no longer.
SOURCE = "ebpf-overlay"
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_libc = ctypes.CDLL(None, use_errno=True)


# Debian 11's kernel shows no source of a bpffs ("none"): there this link, which lives as long as the mount, says it.
MARK = "mounted_by"


def source(mounted: Mount) -> str:
    """Who mounted it: SOURCE if it was :func:`mount`."""
    marked = mounted.source != SOURCE and os.path.islink(os.path.join(mounted.point, MARK))
    return os.readlink(os.path.join(mounted.point, MARK)) if marked else mounted.source


def mount(point: str) -> None:
    """Mount a bpffs, as systemd would, under our name. Raises :class:`OverlayError`."""
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    if _libc.mount(SOURCE.encode(), os.fsencode(point), b"bpf", ctypes.c_ulong(flags), b"mode=700"):
        raise _failed("mount a bpffs", point)
    mounted = find_bpffs(point)
    if mounted and mounted.source != SOURCE:
        os.symlink(SOURCE, os.path.join(point, MARK))


def unmount(point: str) -> None:
    """Raises :class:`OverlayError`, with EBUSY when a process still uses it."""
    if _libc.umount2(os.fsencode(point), 0):
        raise _failed("unmount the bpffs", point)


def _failed(doing: str, point: str) -> OverlayError:
    number = ctypes.get_errno()
    advice = {
        errno.EPERM: "Run with become: true; CAP_SYS_ADMIN is needed.",
        errno.ENOENT: "Make the folder first.",
        errno.ENODEV: "This kernel has no bpffs (CONFIG_BPF_SYSCALL).",
        errno.EBUSY: f"End the processes that use it (fuser -vm {point}).",
    }
    return OverlayError(doing, point, OSError(number, ""), advice.get(number, "Look at the kernel's log."))
