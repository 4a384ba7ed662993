# SPDX-License-Identifier: GPL-3.0-or-later
"""The small tree that stands in for kernel headers, so that bcc compiles where none are installed.

bcc wants a kernel source tree and takes the one that ``BCC_KERNEL_SOURCE`` names. A networking program needs nothing
from it but UAPI headers, which ``linux-libc-dev`` (``kernel-headers`` on Fedora) keeps under ``/usr/include``.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator

SYSTEM = "/usr/include"
TREES = "/run/ebpf-overlay-headers-"
_AFTER = "after"

# bcc includes kconfig.h by force and expects these types from it.
_KCONFIG = """\
#ifndef OVERLAY_KCONFIG_H
#define OVERLAY_KCONFIG_H
#define CONFIG_BPF_SYSCALL 1
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char s8;
typedef short s16;
typedef int s32;
typedef long long s64;
typedef _Bool bool;
typedef unsigned long size_t;
typedef unsigned long uintptr_t;
#define NULL ((void *)0)
#define true 1
#define false 0
#endif
"""

# The version is fixed: the bytecode must not depend on the kernel that happens to run while it is compiled.
_VERSION = """\
#define LINUX_VERSION_CODE 0x060000
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
"""

# include/uapi/linux/bpf.h is empty because bcc brings its own, and the two clash.
FIXED = {
    "include/linux/kconfig.h": _KCONFIG,
    "include/linux/version.h": _VERSION,
    "include/linux/log2.h": "",
    "include/asm/page.h": "",
    "include/uapi/linux/bpf.h": "",
}

# What bcc's own headers (src/cc/export/helpers.h) take from the system.
ROOTS = ("uapi/linux/if_packet.h", "linux/types.h")


def multiarch() -> str | None:
    """Debian's per-architecture include folder (``/usr/include/x86_64-linux-gnu``); elsewhere there is none."""
    for folder in sorted(glob.glob(f"{SYSTEM}/{os.uname().machine}-linux-*")):
        if os.path.exists(f"{folder}/asm/types.h"):
            return folder
    return None


def cflags(tree: str) -> list[str]:
    """The flags that go with the tree. They hold paths only, so that they are no part of a build's identity."""
    folder = multiarch()
    return [*([f"-I{folder}"] if folder else []), "-idirafter", SYSTEM, "-idirafter", f"{tree}/{_AFTER}"]


def missing() -> str | None:
    """A sentence for people when the UAPI headers are not installed."""
    if all(resolve(name) is not None for name in ("uapi/linux/if_ether.h", "asm/types.h")):
        return None
    return (
        "The kernel's UAPI headers are not installed: install linux-libc-dev (Debian, Ubuntu) or "
        "kernel-headers (Fedora, RHEL)."
    )


def resolve(name: str) -> str | None:
    """The text that ``#include <name>`` leads to, in the order in which the compiler looks; None if nowhere."""
    for fixed in (f"include/{name}", f"include/uapi/{name}"):
        if fixed in FIXED:
            return FIXED[fixed]
    if name.startswith("uapi/"):
        name = name[len("uapi/") :]
    if os.path.isabs(name):
        places = [name]
    else:
        places = [os.path.join(folder, name) for folder in (multiarch(), SYSTEM) if folder]
    for place in places:
        try:
            with open(place, encoding="utf-8", errors="surrogateescape") as stream:
                return stream.read()
        except OSError:
            continue
    return None


@contextlib.contextmanager
def tree() -> Iterator[str]:
    """The tree in a folder of its own, for ``BCC_KERNEL_SOURCE``, for as long as it is needed. Raises OSError.

    The folder is locked meanwhile. The kernel drops the lock of a process that is killed, and the next run sees by that
    what it left behind (:func:`leftovers`).
    """
    folder = f"{TREES}{secrets.token_hex(4)}"
    os.mkdir(folder, 0o700)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        write_tree(folder)
        yield folder
    finally:
        remove_tree(folder)
        os.close(descriptor)


def leftovers() -> tuple[str, ...]:
    """Trees of runs that were killed."""
    return tuple(sorted(folder for folder in glob.glob(f"{TREES}*") if not _in_use(folder)))


def _in_use(folder: str) -> bool:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # gone meanwhile, or not a folder, so none of ours
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def remove_tree(folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def write_tree(folder: str) -> None:
    """Write the tree into ``folder``, an empty one."""
    for name, text in FIXED.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as stream:
            stream.write(text)
    # <uapi/linux/ip.h> is found last of all, by way of this link, and <uapi/linux/bpf.h> before it in the tree.
    os.mkdir(os.path.join(folder, _AFTER))
    os.symlink(SYSTEM, os.path.join(folder, _AFTER, "uapi"))
