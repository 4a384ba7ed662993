# SPDX-License-Identifier: GPL-3.0-or-later
"""The cached Debian that all nodes share, and the package repository that they install from without a network.

Cache layout, below :func:`paths.cache_dir`; a folder has its final name only when it is complete:

- ``base-KEY/root`` the bootstrapped system, ``base-KEY/packages`` what a node may install as the mirror has it,
  ``base-KEY/repository`` a flat repository of it;
- ``ready-KEY/layer`` what installing those packages adds, as an overlayfs layer on top of the base.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from . import noderoot
from .paths import BUILD_TOOLS, CACHE_LOCK, LabError, cache_dir, lock, marked_environment, require_tools, tail

SUITE = "trixie"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
BASE_PACKAGES = ("openssh-server", "python3", "iproute2", "systemd-sysv")
READY_PACKAGES = ("python3-bpfcc", "python3-pyroute2", "linux-libc-dev")
# What a node can install besides: Ansible's apt module wants python3-apt and installs it by itself when it is missing;
# sudo is for tests.
EXTRA_PACKAGES = ("python3-apt", "sudo")
# Raise this when the recipe below changes, so that caches of the old recipe are not used.
RECIPE = 3

# Documentation and translations are a third of the files and nothing in a node reads them.
DPKG_OPTIONS = (
    "force-unsafe-io",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
)
# Units that would do something by themselves at a time of their own choosing, or want hardware.
_MASKED_UNITS = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "fstrim.timer",
    "systemd-modules-load.service",
    "console-getty.service",
    "getty.target",
)

_CUSTOMIZE = """#!/bin/sh
# Runs while apt's lists are still there. $1 is the new system's root.
set -eu
root=$1
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
apt-get clean
apt-get install --yes --download-only --no-install-recommends {packages}
cp "$root"/var/cache/apt/archives/*.deb {repository}
apt-get clean
rm -f "$root"/etc/ssh/ssh_host_* "$root"/etc/apt/apt.conf.d/99mmdebstrap "$root"/etc/apt/sources.list.d/*
echo 'deb [trusted=yes] file:/{mount} ./' > "$root"/etc/apt/sources.list
: > "$root"/etc/machine-id
: > "$root"/etc/resolv.conf
mkdir -p "$root"/{mount}
for unit in {units}; do ln -sf /dev/null "$root/etc/systemd/system/$unit"; done
"""


def _key(*parts: str) -> str:
    recipe = repr((RECIPE, SUITE, BASE_PACKAGES, READY_PACKAGES, EXTRA_PACKAGES, DPKG_OPTIONS, _MASKED_UNITS, parts))
    return hashlib.sha256(recipe.encode()).hexdigest()[:12]


def base_path() -> Path:
    """The folder of the bootstrapped base; it need not exist yet."""
    return cache_dir() / f"base-{_key()}"


def ready_path() -> Path:
    """The folder of the layer with the role's packages; it need not exist yet."""
    return cache_dir() / f"ready-{_key()}"


def layers(kind: str) -> list[str]:
    """The read-only layers of a node's root, topmost first, for ``fresh`` or ``ready``."""
    root = str(base_path() / "root")
    return [root] if kind == "fresh" else [str(ready_path() / "layer"), root]


def packages_path() -> Path:
    """The flat package repository that belongs to the base."""
    return base_path() / "repository"


def clean_unfinished() -> list[str]:
    """Remove what an interrupted bootstrap left in the cache."""
    removed = []
    if cache_dir().is_dir() and any(cache_dir().glob("*.unfinished")):
        with lock(CACHE_LOCK):  # another lab may be at it
            for path in cache_dir().glob("*.unfinished"):
                shutil.rmtree(path, ignore_errors=True)
                removed.append(str(path))
    return removed


def ensure(kind: str) -> None:
    """Make the base, and for ``ready`` its second layer, unless they are in the cache. Prints what takes time.

    Raises LabError with the last lines of the tool that failed.
    """
    with lock(CACHE_LOCK):
        _ensure(kind)


def _ensure(kind: str) -> None:
    cache_dir().mkdir(parents=True, exist_ok=True)
    if not (base_path() / "root").is_dir():
        require_tools(BUILD_TOOLS)
        if not KEYRING.exists():
            raise LabError(f"{KEYRING} is missing. Install with: apt-get install debian-archive-keyring")
        print(f"bootstrapping Debian 13 base into {cache_dir()} (about a minute, once)…", flush=True)
        started = time.monotonic()
        _bootstrap()
        print(f"  base ready after {time.monotonic() - started:.0f} s", flush=True)
    if not packages_path().is_dir():
        _recompress(base_path() / "packages")
    if kind == "ready" and not (ready_path() / "layer").is_dir():
        print(f"installing {', '.join(READY_PACKAGES)} into the ready layer (about 10 s, once)…", flush=True)
        started = time.monotonic()
        _install_ready_layer()
        print(f"  layer ready after {time.monotonic() - started:.0f} s", flush=True)


def run_contained(command: Sequence[str], log: Path, what: str, unshare: Sequence[str] = ()) -> None:
    """Run in a PID namespace of its own, so that killing us at any moment kills everything below, too."""
    contained = [
        "setpriv",
        "--pdeathsig",
        "KILL",
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        *unshare,
        *command,
    ]
    with (
        open(log, "w", encoding="utf-8") as output,
        subprocess.Popen(
            contained,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=marked_environment("build"),
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            output.write(line)
            # mmdebstrap's own steps; everything else is for the log.
            if line.startswith("I: ") and line.rstrip().endswith("..."):
                print(f"  {line[3:].strip()}", flush=True)
    if process.returncode != 0:
        raise LabError(f"{what} failed (exit status {process.returncode}); the last lines of {log}:\n{tail(log)}")


def _bootstrap() -> None:
    target = base_path().with_name(f"{base_path().name}.unfinished")
    shutil.rmtree(target, ignore_errors=True)
    repository = target / "packages"
    repository.mkdir(parents=True)
    hook = target / "customize"
    hook.write_text(
        _CUSTOMIZE.format(
            packages=" ".join(READY_PACKAGES + EXTRA_PACKAGES),
            repository=shlex.quote(str(repository)),
            mount=noderoot.PACKAGES_MOUNT,
            units=" ".join(_MASKED_UNITS),
        ),
        encoding="utf-8",
    )
    hook.chmod(0o755)
    command = ["mmdebstrap", "--mode=root", "--format=directory", "--variant=minbase", f"--keyring={KEYRING}"]
    command += [f"--include={','.join(BASE_PACKAGES)}", f"--customize-hook={hook}"]
    command += [f"--dpkgopt={option}" for option in DPKG_OPTIONS]
    command += [f"--aptopt={option}" for option in apt_transport_options()]
    command += [SUITE, str(target / "root"), *mirror()]
    run_contained(command, cache_dir() / "bootstrap.log", "bootstrapping the Debian 13 base", ["--mount-proc"])
    hook.unlink()
    target.rename(base_path())
    if any(cache_dir().glob("nodes*")):
        return  # another lab may use a system of an older recipe
    for kind in ("base", "ready"):
        for old in cache_dir().glob(f"{kind}-*"):
            if old not in (base_path(), ready_path()):
                shutil.rmtree(old, ignore_errors=True)


def mirror() -> list[str]:
    """The Debian mirror that this machine's own apt uses, or nothing: mmdebstrap then takes its default."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(CREATED_BY) $(REPO_URI) $(COMPONENT)"],
        capture_output=True,
        text=True,
        check=False,
    )
    for line in listed.stdout.splitlines():
        created_by, __, rest = line.partition(" ")
        uri, __, component = rest.partition(" ")
        if created_by == "Packages" and component == "main" and uri.rstrip("/").endswith("/debian"):
            return [uri]
    return []


def apt_transport_options() -> list[str]:
    """This machine's apt settings for proxies and for clocks that run apart from the mirror's."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False).stdout
    wanted = tuple(f"acquire::{option}" for option in ("http", "check-valid-until", "check-date", "retries"))
    lines = (line.strip().rstrip(";") for line in dump.splitlines() if line.lower().startswith(wanted))
    return [line for line in lines if not line.endswith('""')]


def _recompress(packages: Path) -> None:
    """Make the repository: the packages with Zstandard, since unpacking xz is half of what installing them costs."""
    target = packages_path().with_name("repository.unfinished")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for package in sorted(packages.glob("*.deb")):
        with tempfile.TemporaryDirectory(dir=target) as folder:
            os.chmod(folder, 0o755)  # the package's own "/"
            subprocess.run(["dpkg-deb", "--raw-extract", str(package), folder], check=True)
            command = ["dpkg-deb", "-Zzstd", "-z1", "--build", folder, str(target / package.name)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    _index_packages(target)
    target.rename(packages_path())


def _index_packages(repository: Path) -> None:
    """Write the Packages index of a flat repository (what dpkg-scanpackages would write)."""
    paragraphs = []
    for package in sorted(repository.glob("*.deb")):
        control = subprocess.run(["dpkg-deb", "--field", str(package)], capture_output=True, text=True, check=True)
        content = package.read_bytes()
        paragraphs.append(
            f"{control.stdout.strip()}\nFilename: ./{package.name}\nSize: {len(content)}\n"
            f"SHA256: {hashlib.sha256(content).hexdigest()}\n"
        )
    if not paragraphs:
        raise LabError(f"no packages were downloaded into {repository}")
    (repository / "Packages").write_text("\n".join(paragraphs), encoding="utf-8")
    # apt's sandbox user reads the repository from inside the nodes.
    for path in [repository, *repository.iterdir()]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def _install_ready_layer() -> None:
    target = ready_path().with_name(f"{ready_path().name}.unfinished")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    install = f"apt-get update && apt-get install --yes --no-install-recommends {' '.join(READY_PACKAGES)}"
    spec = noderoot.RootSpec(
        lower=layers("fresh"),
        upper=str(target / "layer"),
        work=str(target / "work"),
        mountpoint=str(target / "mnt"),
        packages=str(packages_path()),
        hostname="ovl-ready",
        argv=["/bin/sh", "-ec", f"{install} && rm -rf /var/lib/apt/lists/* && apt-get clean"],
        environment={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
    )
    spec_path = target / "spec.json"
    spec_path.write_text(spec.to_json(), encoding="utf-8")
    run_contained(
        [sys.executable, "-I", "-S", noderoot.__file__, str(spec_path)],
        cache_dir() / "ready.log",
        "installing the role's packages into the ready layer",
        ["--uts", "--ipc", "--net", "--cgroup", "--propagation", "private"],
    )
    for leftover in ("work", "mnt"):
        shutil.rmtree(target / leftover, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(spec_path)
    target.rename(ready_path())
