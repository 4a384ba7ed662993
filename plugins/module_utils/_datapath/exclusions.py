# SPDX-License-Identifier: GPL-3.0-or-later
"""Which workloads the user keeps in the kernel's path, by address, prefix or interface. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError

# dev_valid_name() in net/core/dev.c, and globs of such names. What has digits and dots only is meant as an address.
_NAME = re.compile(r"(?![0-9.]+$)[^\s/:]{1,15}")


def parse_exclude(wanted: Iterable[str]) -> list[str]:
    """``overlay_exclude``: each entry without blanks around it, a prefix in its usual form. Raises
    :class:`OverlayError` for what is neither an address, nor a prefix, nor the name of an interface or a glob."""
    found = []
    for number, entry in enumerate(wanted):
        text = entry.strip()
        try:
            text = str(ipaddress.ip_network(text))
        except ValueError as error:
            if not _NAME.fullmatch(text):
                raise OverlayError(
                    "accept a workload to exclude",
                    f"overlay_exclude[{number}]",
                    f"{entry!r} is neither a prefix ({error}) nor the name of an interface",
                    "Give an address, a prefix such as 10.244.3.0/24 (all bits behind the length are 0), or the name "
                    "of an interface such as cali0a1b2c3d4e5 or calix*.",
                ) from None
        if text not in found:
            found.append(text)
    return found


def excluded_by(workload: Mapping[str, Any], exclude: Sequence[str]) -> str:
    """The first entry that names a workload's ``address`` or ``interface``; empty where none does. ``exclude``: from
    :func:`parse_exclude`."""
    return next((entry for entry in exclude if _names(entry, workload["address"], workload["interface"])), "")


def _names(entry: str, address: str, interface: str) -> bool:
    try:
        network = ipaddress.ip_network(entry)
    except ValueError:
        return fnmatchcase(interface, entry)
    return ipaddress.ip_address(address) in network
