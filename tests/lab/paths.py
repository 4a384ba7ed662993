# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a lab keeps things, the locks that guard them, and the tools that it needs on the machine.

``OVERLAY_LAB=NAME`` in the environment is another lab, beside the one without a name: everything that it makes carries
the name, and neither sees the other's. Only the cached systems are common to all.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

NAME = os.environ.get("OVERLAY_LAB", "")
_SUFFIX = f"-{NAME}" if NAME else ""
# What the names of all namespaces and nodes begin with.
PREFIX = f"ovl{_SUFFIX}-"

LAB_DIR = Path(__file__).resolve().parent
RUN_DIR = LAB_DIR / f"run{_SUFFIX}"
INVENTORY = RUN_DIR / "inventory.yml"
KEY = RUN_DIR / "id_ed25519"
STATE = RUN_DIR / "lab.json"
PIDS = RUN_DIR / "pids"
LOGS = RUN_DIR / "logs"
REQUESTS = RUN_DIR / "requests"
# Of this clone alone: a connection that is kept open would lead to another lab's node with the same address. Short,
# because the path of a socket may have 107 bytes (unix(7)).
CONNECTIONS = Path("/run") / f"ebpf-overlay-lab-{hashlib.sha256(str(RUN_DIR).encode()).hexdigest()[:8]}"
LOCK = Path(f"/run/lock/ebpf-overlay-lab{_SUFFIX}.lock")
CACHE_LOCK = Path("/run/lock/ebpf-overlay-lab.cache.lock")
CGROUP_NAME = f"ebpf-overlay-lab{_SUFFIX}"
NETNS_DIR = Path("/run/netns")

# Every process that the lab leaves running carries this variable, so that it can be found when nothing else is known.
MARKER = f"EBPF_OVERLAY_LAB{_SUFFIX.replace('-', '_')}"

# Tool -> the Debian package that holds it.
TOOLS = {
    "ip": "iproute2",
    "nft": "nftables",
    "nc": "netcat-openbsd",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}
BUILD_TOOLS = {"mmdebstrap": "mmdebstrap", "dpkg-deb": "dpkg", "apt-get": "apt"}


class LabError(Exception):
    """Something that the person at the terminal has to know; the text is the whole message."""


def cache_dir() -> Path:
    """The folder with the base systems, the packages and the nodes' writable layers."""
    return Path(os.environ.get("OVERLAY_CACHE", "/var/cache/ebpf-overlay-lab"))


def nodes_dir() -> Path:
    """The folder with the writable layers of the nodes that run now."""
    return cache_dir() / f"nodes{_SUFFIX}"


def require_name() -> None:
    """Raise LabError unless OVERLAY_LAB is a name that a lab can have."""
    if not re.fullmatch(r"[a-z0-9]{0,8}", NAME):
        raise LabError(f"OVERLAY_LAB={NAME} cannot name a lab: up to eight small letters and digits can")


def require_root() -> None:
    """Raise LabError unless this process may make namespaces and mounts."""
    if os.geteuid() != 0:
        raise LabError("the lab makes network namespaces and mounts and needs root: run it with sudo")


def require_tools(tools: dict[str, str]) -> None:
    """Raise LabError naming every tool that is missing and the packages that hold them."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [tool for tool in tools if shutil.which(tool, path=path) is None]
    if missing:
        packages = " ".join(sorted({tools[tool] for tool in missing}))
        raise LabError(f"missing on this machine: {', '.join(missing)}. Install with: apt-get install {packages}")


@contextlib.contextmanager
def lock(path: Path = LOCK, wait_seconds: float = 300.0) -> Iterator[None]:
    """Hold a machine-wide lock: the namespaces' names are fixed, so there is one lab of each name per machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="ascii") as handle:
        deadline = time.monotonic() + wait_seconds
        announced = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                handle.seek(0)
                holder = handle.read().strip() or "unknown"
                if time.monotonic() > deadline:
                    raise LabError(f"another lab command (process {holder}) is still at work on this machine") from None
                if not announced:
                    print(f"waiting for another lab command (process {holder})…", flush=True)
                    announced = True
                time.sleep(0.2)
        handle.seek(0)
        handle.truncate()
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        yield


def marked_environment(role: str) -> dict[str, str]:
    """This process's environment with the lab's marker, for children that may outlive us."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment["PATH"] = environment.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"
    environment[MARKER] = role
    return environment


def write_atomically(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace a file in one step: a reader sees the old text or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(mode)
    temporary.replace(path)


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log, for an error message; empty if there is none."""
    try:
        content: Sequence[str] = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(content[-lines:])
