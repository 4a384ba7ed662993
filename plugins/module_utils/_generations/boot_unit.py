# SPDX-License-Identifier: GPL-3.0-or-later
"""Where systemd runs, the unit that makes the confirmed generation again after a reboot, by `overlayctl boot`."""

from __future__ import annotations

import os

from ansible_collections.ebpf.overlay.plugins.module_utils._core.records import remove, write

from .watchdog import has_systemd, link_unit

NAME = "ebpf-overlay.service"
FILE = f"/etc/systemd/system/{NAME}"
LINK = f"/etc/systemd/system/multi-user.target.wants/{NAME}"

_TEXT = """\
# Makes the confirmed generation of the eBPF overlay again after a reboot. It tries once: where that fails, traffic goes
# on in the kernel's path, and the journal and overlayctl status tell why.
[Unit]
Description=The eBPF overlay as it was before the reboot
After=network-online.target
Wants=network-online.target
ConditionPathExists={command}

[Service]
Type=oneshot
ExecStart={command} boot
TimeoutStartSec=600

[Install]
WantedBy=multi-user.target
"""


def wanted(command: str) -> str:
    """The text of the unit; "" on a node without systemd."""
    return _TEXT.format(command=command) if has_systemd() else ""


def read() -> str:
    """The text of the unit that is enabled; "" where none is, or not wholly."""
    try:
        with open(FILE, encoding="utf-8", errors="replace") as stream:
            return stream.read() if os.path.islink(LINK) else ""
    except OSError:
        return ""


def install(text: str) -> None:
    """On the disk when this returns. Raises :class:`OSError`."""
    write(FILE, text.encode("utf-8"), 0o644)
    link_unit(FILE, LINK)


def uninstall() -> None:
    """Raises :class:`OSError`."""
    for path in (LINK, FILE):
        remove(path)
