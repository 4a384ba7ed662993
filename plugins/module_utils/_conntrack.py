# SPDX-License-Identifier: GPL-3.0-or-later
"""Hands flows over to the kernel's connection tracking, so that they live on in its path.

Speaks ctnetlink through pyroute2. Without an entry the first packet of such a flow is INVALID to conntrack, or is taken
for a new connection and translated.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Iterable
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._errors import OverlayError

# include/uapi/linux/netfilter/nf_conntrack_common.h and nf_conntrack_tcp.h
# Without CONFIRMED the kernel takes the status for an attempt to unconfirm what it has just made, and says EBUSY.
_SEEN_REPLY, _ASSURED, _CONFIRMED = 1 << 1, 1 << 2, 1 << 3
_ESTABLISHED = 3
_BE_LIBERAL = 0x08  # the sequence numbers went by unseen, so no window check can hold

_SYSCTL = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established"


def tracks() -> bool:
    """Whether this network namespace tracks connections at all; where not, there is nothing to hand over to."""
    return os.path.exists(_SYSCTL)


def hand_over(flows: Iterable[dict[str, Any]]) -> int:
    """Make an established entry of every flow (as ``_control.known_flows`` gives them); returns how many.

    An older entry with the same addresses and ports belongs to a connection that is gone, and is replaced.
    Raises :class:`OverlayError`.
    """
    # Late, because the module also runs where pyroute2 is not installed yet.
    from pyroute2 import NFCTSocket
    from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple

    with open(_SYSCTL, encoding="ascii") as stream:
        timeout = int(stream.read())
    count = 0
    sockets: dict[int, Any] = {}
    try:
        for flow in flows:
            workload, remote = ipaddress.ip_address(flow["workload"]), ipaddress.ip_address(flow["remote"])
            family = socket.AF_INET if workload.version == 4 else socket.AF_INET6
            ends = [(str(workload), flow["workload_port"]), (str(remote), flow["remote_port"])]
            if flow["opened_by"] == "uplink":
                ends.reverse()
            (source, source_port), (destination, destination_port) = ends
            original = NFCTAttrTuple(
                family=family, saddr=source, daddr=destination, proto=socket.IPPROTO_TCP,
                sport=source_port, dport=destination_port,
            )  # fmt: skip
            if family not in sockets:
                sockets[family] = NFCTSocket(nfgen_family=family)
            _add(sockets[family], original, timeout)
            count += 1
    finally:
        for opened in sockets.values():
            opened.close()
    return count


def _add(conntrack: Any, original: Any, timeout: int) -> None:
    liberal = {"value": (_BE_LIBERAL, _BE_LIBERAL)}
    state = {
        "attrs": [
            (
                "CTA_PROTOINFO_TCP",
                {
                    "attrs": [
                        ("CTA_PROTOINFO_TCP_STATE", _ESTABLISHED),
                        ("CTA_PROTOINFO_TCP_FLAGS_ORIGINAL", liberal),
                        ("CTA_PROTOINFO_TCP_FLAGS_REPLY", liberal),
                    ]
                },
            )
        ]
    }
    entry = {
        "timeout": timeout,
        "status": _SEEN_REPLY | _ASSURED | _CONFIRMED,
        "tuple_orig": original,
        "tuple_reply": original.reverse(),
        "protoinfo": state,
    }
    try:
        try:
            conntrack.entry("add", **entry)
        except Exception as error:  # each version of pyroute2 has its own class for it
            # EBUSY: there is an entry, and the kernel refuses to change its status (ctnetlink_change_status).
            if getattr(error, "code", None) not in (errno.EEXIST, errno.EBUSY):
                raise
            conntrack.entry("del", tuple_orig=original)
            conntrack.entry("add", **entry)
    except Exception as error:
        raise OverlayError(
            "hand a flow over to conntrack",
            repr(original),
            error,
            "The mode is still drain, so known flows go on. Repeat, or use force to cut them loose.",
        ) from error
