# SPDX-License-Identifier: GPL-3.0-or-later
"""Which machine this is."""

from __future__ import annotations


def identity() -> dict[str, str]:
    """``machine_id`` (machine-id(5); clones may share it) and ``boot_id`` (containers of one machine share it)."""
    return {"machine_id": _machine_id(), "boot_id": boot_id()}


def _machine_id() -> str:
    try:
        with open("/etc/machine-id", encoding="ascii") as stream:
            return stream.read().strip()
    except OSError:
        return ""


def boot_id() -> str:
    """Differs after every boot (random(4))."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
            return stream.read().strip()
    except OSError:
        return ""
