# SPDX-License-Identifier: GPL-3.0-or-later
"""The systems of the matrix, and what the collection must find out about each of them. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class System:
    """A Debian release with its own kernel. ``peer_safe``, ``check_mtu``, ``tcx``, ``btf``: what its kernel can do."""

    suite: str
    title: str
    kernel: str
    peer_safe: bool
    check_mtu: bool
    tcx: bool
    btf: bool = True

    @property
    def capabilities(self) -> dict[str, bool | str]:
        """As ``overlay_facts`` must report them."""
        return {
            "supported": True,
            "redirect_peer_safe": self.peer_safe,
            "redirect": "peer" if self.peer_safe else "neigh",
            "check_mtu": self.check_mtu,
            "tcx": self.tcx,
            "btf": self.btf,
        }


# bpf_check_mtu() came with 5.12, TCX with 6.6; bpf_redirect_peer() was mended in 6.1.139 and 6.12.29 (CVE-2025-37959),
# and Debian's point releases have been newer than that since 12.12 and 13.0.
SYSTEMS = (
    System("bullseye", "Debian 11", "5.10", peer_safe=False, check_mtu=False, tcx=False),
    System("bookworm", "Debian 12", "6.1", peer_safe=True, check_mtu=True, tcx=False),
    System("trixie", "Debian 13", "6.12", peer_safe=True, check_mtu=True, tcx=True),
    System("sid", "Debian sid", "", peer_safe=True, check_mtu=True, tcx=True),
)
