# SPDX-License-Identifier: GPL-3.0-or-later
"""A process of the node's own that takes it back when nobody confirms, and where systemd runs, a unit for reboots."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.records import sync_folder, write

UNIT = "ebpf-overlay-way-back"
UNIT_FILE = f"/etc/systemd/system/{UNIT}.service"
UNIT_LINK = f"/etc/systemd/system/multi-user.target.wants/{UNIT}.service"
PYTHON = "/usr/bin/python3"
START_TIMEOUT = 30.0  # seconds

_UNIT = """\
# Takes the node back to its confirmed generation if it reboots while a roll-out waits for confirmation.
[Unit]
Description=Way back of the eBPF overlay
After=network-online.target
Wants=network-online.target
ConditionPathExists={runtime}

[Service]
Type=oneshot
ExecStart={python} {runtime} boot
Restart=on-failure
RestartSec=10

[Install]
WantedBy=multi-user.target
"""


def python() -> str:
    """bcc and pyroute2 come with the distribution's own."""
    return PYTHON if os.path.exists(PYTHON) else sys.executable


def has_systemd() -> bool:
    return os.path.isdir("/run/systemd/system")  # sd_booted(3)


def ready() -> None:
    """Tell whoever started this process that it watches (sd_notify(3))."""
    address = os.environ.pop("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.sendto(b"READY=1", f"\0{address[1:]}" if address.startswith("@") else address)


def arm(runtime: str, identity: str) -> None:
    """Start the process that watches the attempt, and wait until it does. It outlives this one and its session."""
    command = [python(), runtime, "watch", identity]
    try:
        if not has_systemd():
            _start_and_wait(command, identity)
            return
        # A unit of its own: the session that this process belongs to may be killed as a whole.
        kept = [f"--property={value}" for value in ("Type=notify", "Restart=on-failure", "RestartSec=5")]
        command = ["systemd-run", "--quiet", "--collect", *kept, f"--unit={UNIT}-{identity}", *command]
        # pylint: disable-next=ansible-bad-function
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
        install_unit(runtime)
    except (OSError, subprocess.CalledProcessError) as error:
        raise OverlayError(
            "start the node's own way back", " ".join(command), error, "Nothing was changed yet. Look at the node."
        ) from error


def install_unit(runtime: str, file: str = UNIT_FILE, link: str = UNIT_LINK) -> None:
    """The unit for the next boot, on the disk when this returns. The former one stays if it cannot be written."""
    write(file, _UNIT.format(python=python(), runtime=runtime).encode("utf-8"), 0o644)
    link_unit(file, link)


def link_unit(file: str, link: str) -> None:
    """Have systemd start the unit at the next boot, as ``systemctl enable`` does."""
    os.makedirs(os.path.dirname(link), exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.symlink(file, link)
    sync_folder(os.path.dirname(link))


def _start_and_wait(command: list[str], identity: str) -> None:
    """As systemd does it for a service of type notify. Raises :class:`OSError`."""
    name = f"ebpf-overlay-{identity}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(f"\0{name}")
        heard.settimeout(START_TIMEOUT)
        # pylint: disable-next=ansible-bad-function
        subprocess.Popen(
            command, cwd="/", start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env={**os.environ, "NOTIFY_SOCKET": f"@{name}"},
        )  # fmt: skip
        heard.recv(16)


def disarm() -> None:
    """The process ends by itself when the attempt is gone; the unit is removed here."""
    for path in (UNIT_LINK, UNIT_FILE):
        with contextlib.suppress(OSError):
            os.unlink(path)
