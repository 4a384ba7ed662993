# SPDX-License-Identifier: GPL-3.0-or-later
"""What a kernel can do, by its version. Pure."""

from __future__ import annotations

import re
from typing import Any

# bpf_redirect_peer() scrubs the packet only from these on (CVE-2025-37959). By series; later series have it all.
_PEER_SAFE = {(6, 1): 139, (6, 6): 91, (6, 12): 29, (6, 14): 7}
_PEER_SAFE_FROM = (6, 15)

OLDEST = (5, 10)
CHECK_MTU = (5, 12)
TCX = (6, 6)


def stable_version(release: str, version: str) -> tuple[int, int, int]:
    """The upstream version of a running kernel: ``uname -r`` says it, except on distributions that name an ABI there.

    ``version``: ``uname -v``, where Debian puts it ("... Debian 6.1.140-1 (2025-05-22)").
    """
    told = re.search(r"\bDebian (\d+)\.(\d+)\.(\d+)", version) or re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    if told is None:
        return (0, 0, 0)
    return (int(told[1]), int(told[2]), int(told[3] or 0))


def redirect_peer_safe(version: tuple[int, int, int]) -> bool:
    series = version[:2]
    return series >= _PEER_SAFE_FROM or version[2] >= _PEER_SAFE.get(series, 1 << 30)


def choose_redirect(version: tuple[int, int, int]) -> str:
    """What ``overlay_redirect: auto`` means. ``peer`` costs less on every kernel (docs/performance.md)."""
    return "peer" if redirect_peer_safe(version) else "neigh"


def capabilities(version: tuple[int, int, int]) -> dict[str, Any]:
    """``supported``: both redirect helpers are there; ``redirect_peer_safe``; ``redirect``: which of the two is used
    unless the user chose; ``check_mtu``; ``tcx``."""
    series = version[:2]
    return {
        "supported": series >= OLDEST,
        "redirect_peer_safe": redirect_peer_safe(version),
        "redirect": choose_redirect(version),
        "check_mtu": series >= CHECK_MTU,
        "tcx": series >= TCX,
    }
