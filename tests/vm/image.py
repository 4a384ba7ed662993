# SPDX-License-Identifier: GPL-3.0-or-later
"""What is downloaded once and cached: a disk, a kernel and an initrd for every system, and QEMU.

Cache layout, below the lab's cache; a folder has its final name only when it is complete:

- ``matrix/SUITE-KEY/`` ``disk.img`` (ext4, never written to again), ``vmlinuz``, ``initrd``;
- ``matrix/qemu-KEY/root`` QEMU with all that it needs, unpacked and not installed: the machine's own stays as it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import lzma
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from lab import base
from lab.paths import LabError, cache_dir, require_tools

from . import archive
from .systems import System

# Raise this when the recipe below changes, so that caches of the old recipe are not used.
RECIPE = 1
TOOLS = {"mmdebstrap": "mmdebstrap", "dpkg-deb": "dpkg", "apt-get": "apt", "mke2fs": "e2fsprogs", "tar": "tar"}
# What the role installs, and what the checks in the guest need. kmod: the kernel loads its modules by itself.
PACKAGES = (
    "python3", "python3-bpfcc", "python3-pyroute2", "linux-libc-dev",
    "iproute2", "nftables", "conntrack", "kmod", "ca-certificates",
)  # fmt: skip
KERNEL_PACKAGES = ("linux-image-cloud-amd64", "busybox-static")
# sid splits its kernel image into the others.
KERNEL_FILES = ("linux-image-*", "linux-base-[0-9]*", "linux-binary-*", "linux-modules-*")
# What the initrd must load to reach the disk; everything else the kernel asks modprobe for.
DISK_MODULES = ("virtio_pci", "virtio_blk", "ext4")
ROOM = 256  # MiB that are free on the disk

# QEMU 7.2 of Debian 12 makes newer guests fault under load.
QEMU_SUITE = "trixie"
QEMU_PACKAGES = ("qemu-system-x86", "base-files")

_DOWNLOAD = """#!/bin/sh
# Runs while apt's lists are still there. $1 is the new system's root.
set -eu
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
apt-get clean
apt-get install --yes --download-only --no-install-recommends {packages}
cp "$1"/var/cache/apt/archives/*.deb {folder}
apt-get clean
"""

_INIT = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs devtmpfs /dev
for module in $(/bin/busybox cat /modules/order); do /bin/busybox insmod "/modules/$module"; done
/bin/busybox mount -t ext4 /dev/vda /root
/bin/busybox mount -t proc proc /root/proc
/bin/busybox mount -t sysfs sysfs /root/sys
/bin/busybox mount --move /dev /root/dev
/bin/busybox mount -t tmpfs tmpfs /root/run
/bin/busybox mount -t tmpfs tmpfs /root/tmp
/bin/busybox cp -a /matrix /root/run/matrix
exec /bin/busybox switch_root /root /bin/sh /run/matrix/start
"""


def matrix_dir() -> Path:
    """The matrix's part of the cache."""
    return cache_dir() / "matrix"


def _path(name: str, *parts: object) -> Path:
    key = hashlib.sha256(repr((RECIPE, base.DPKG_OPTIONS, parts)).encode()).hexdigest()[:12]
    return matrix_dir() / f"{name}-{key}"


def system_path(system: System) -> Path:
    """The folder of the system's disk, kernel and initrd; it need not exist yet."""
    return _path(system.suite, PACKAGES, KERNEL_PACKAGES, DISK_MODULES, ROOM, _INIT)


def qemu_path() -> Path:
    """The folder of the emulator; it need not exist yet."""
    return _path("qemu", QEMU_SUITE, QEMU_PACKAGES)


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """One matrix at a time on this machine: it fills the cache, and two emulators would slow each other down."""
    matrix_dir().mkdir(parents=True, exist_ok=True)
    with open(matrix_dir() / "lock", "w", encoding="ascii") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another run of the matrix on this machine…", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def ensure(systems: Sequence[System]) -> None:
    """Download and build what is not in the cache. Raises LabError with the last lines of the tool that failed."""
    wanted: list[tuple[str, Path, Callable[[Path], None]]] = [("QEMU", qemu_path(), _make_qemu)]
    wanted += [(system.title, system_path(system), partial(_make_system, system)) for system in systems]
    for title, path, make in wanted:
        if path.is_dir():
            continue
        require_tools(TOOLS)
        print(f"{title}: downloading into {path} (one to three minutes, once)…", flush=True)
        started = time.monotonic()
        for old in matrix_dir().glob(f"{path.name.rpartition('-')[0]}-*"):
            shutil.rmtree(old)
        target = path.with_name(f"{path.name}.unfinished")
        target.mkdir()
        make(target)
        target.rename(path)
        print(f"  {title} cached after {time.monotonic() - started:.0f} s", flush=True)


def _bootstrap(suite: str, root: Path, packages: Sequence[str], *options: str) -> None:
    command = ["mmdebstrap", "--mode=root", "--format=directory", f"--keyring={base.KEYRING}"]
    command += [f"--include={','.join(packages)}", *options]
    command += [f"--dpkgopt={option}" for option in base.DPKG_OPTIONS]
    # The lists of sid are valid for a week only, and a cached mirror may be older.
    command += [
        f"--aptopt={option}" for option in (*base.apt_transport_options(), 'Acquire::Check-Valid-Until "false"')
    ]
    command += [suite, str(root), *base.mirror()]
    base.run_contained(command, matrix_dir() / f"{suite}.log", f"bootstrapping {suite}", ["--mount-proc"])


def _make_qemu(target: Path) -> None:
    _bootstrap(QEMU_SUITE, target / "root", QEMU_PACKAGES, "--variant=extract")


def _make_system(system: System, target: Path) -> None:
    root, debs = target / "root", target / "debs"
    debs.mkdir()
    hook = target / "download"
    script = _DOWNLOAD.format(packages=" ".join(KERNEL_PACKAGES), folder=shlex.quote(str(debs)))
    hook.write_text(script, encoding="utf-8")
    hook.chmod(0o755)
    _bootstrap(system.suite, root, PACKAGES, "--variant=minbase", f"--customize-hook={hook}")
    # Unpacked, not installed: no initrd of its own is built, which takes longer than everything else here.
    for pattern in KERNEL_FILES:
        for deb in debs.glob(f"{pattern}.deb"):
            _unpack(deb, root)
    _unpack(next(debs.glob("busybox-static_*.deb")), target / "busybox")
    (kernel,) = [*(root / "boot").glob("vmlinuz-*"), *root.glob("usr/lib/modules/*/vmlinuz")]
    (version,) = [path.name for path in (root / "lib/modules").iterdir()]
    _run(["chroot", str(root), "/sbin/depmod", version])
    shutil.copy(kernel, target / "vmlinuz")
    (target / "initrd").write_bytes(_initrd(root, version, next(target.glob("busybox/**/bin/busybox"))))
    print("  writing the disk", flush=True)
    used = sum(path.lstat().st_blocks for path in root.rglob("*")) // 2048
    _run(["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(target / "disk.img"), f"{used * 11 // 10 + ROOM}M"])
    for leftover in (root, debs, target / "busybox"):
        shutil.rmtree(leftover)
    hook.unlink()


def _unpack(deb: Path, root: Path) -> None:
    root.mkdir(exist_ok=True)
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as content:
        # Older packages put files into /lib, which is a link.
        subprocess.run(["tar", "-x", "--keep-directory-symlink", "-C", str(root)], stdin=content.stdout, check=True)
    if content.returncode != 0:
        raise LabError(f"unpacking {deb.name} failed")


def _initrd(root: Path, version: str, busybox: Path) -> bytes:
    listed = _run(
        ["chroot", str(root), "/sbin/modprobe", "--set-version", version, "--show-depends", "--all", *DISK_MODULES]
    )
    paths = [line.split()[1] for line in listed.splitlines() if line.startswith("insmod ")]
    order = list(dict.fromkeys(paths))
    files = {"init": _INIT.encode(), "bin/busybox": busybox.read_bytes()}
    names = []
    for path in order:
        content, name = (root / path.lstrip("/")).read_bytes(), Path(path).name
        if name.endswith(".xz"):
            content, name = lzma.decompress(content), name[:-3]
        names.append(name)
        files[f"modules/{name}"] = content
    files["modules/order"] = "\n".join(names).encode()
    return archive.pack(files, folders=("dev", "root"))


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"{' '.join(command[:3])}… failed (exit status {done.returncode}): {done.stderr.strip()}")
    return done.stdout
