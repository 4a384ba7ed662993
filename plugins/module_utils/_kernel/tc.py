# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes of qdiscs and filters; the only importer of pyroute2 (0.5.14 to 0.9 are known to work).

One method is one netlink request. All raise :class:`OSError` with the kernel's errno. Dumps are in ``rtnl``.
"""

from __future__ import annotations

import errno
import sys
from types import TracebackType
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError

from .rtnl import PARENT
from .traffic import CLSACT, PROTOCOL_ALL

PACKAGES = "python3-pyroute2"
RTM_DELQDISC, RTM_DELTFILTER = 37, 45
NLM_F_REQUEST_ACK = 0x5


class TrafficControl:
    """The mutating half of tc(8) in the network namespace in which it is made; pyroute2 is imported on first use."""

    def __init__(self) -> None:
        self._route: Any = None

    def __enter__(self) -> TrafficControl:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._route is not None:
            self._route.close()

    def add_clsact(self, ifindex: int) -> None:
        """EEXIST when the interface has a clsact or ingress qdisc."""
        self._request("add", CLSACT, ifindex)

    def delete_clsact(self, ifindex: int) -> None:
        """Deletes all filters on it, whoever owns them: look first."""
        self._delete("del", RTM_DELQDISC, CLSACT, ifindex)

    def add_filter(self, ifindex: int, direction: str, priority: int, handle: int, name: str, program_fd: int) -> None:
        """EEXIST when the slot is taken (NLM_F_EXCL is sent), EINVAL when the priority holds another kind."""
        self._request(
            "add-filter",
            "bpf",
            ifindex,
            handle,
            fd=program_fd,
            name=name,
            direct_action=True,
            **_place(direction, priority),
        )

    def change_filter(
        self, ifindex: int, direction: str, priority: int, handle: int, name: str, program_fd: int
    ) -> None:
        """Swap program and name in place (cls_bpf_change: list_replace_rcu); ENOENT when the slot is empty."""
        self._request(
            "change-filter",
            "bpf",
            ifindex,
            handle,
            fd=program_fd,
            name=name,
            direct_action=True,
            **_place(direction, priority),
        )

    def delete_filter(self, ifindex: int, direction: str, priority: int, handle: int, protocol: int) -> None:
        """Exactly this one. Handle 0 would mean all filters of the priority and is refused here."""
        if handle == 0 or priority == 0:
            raise OSError(errno.EINVAL, "a filter is deleted by priority and handle")
        self._delete("del-filter", RTM_DELTFILTER, "bpf", ifindex, handle, **_place(direction, priority, protocol))

    def _delete(self, command: str, number: int, *arguments: Any, **fields: Any) -> None:
        try:
            self._request(command, *arguments, **fields)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            # pyroute2 before 0.6 sends NLM_F_EXCL with a deletion, which kernels from 6.1 on read as NLM_F_BULK.
            self._request((number, NLM_F_REQUEST_ACK), *arguments, **fields)

    def _request(self, command: Any, *arguments: Any, **fields: Any) -> None:
        try:
            from pyroute2 import IPRoute
            from pyroute2.netlink.exceptions import NetlinkError
        except ImportError as error:  # it is there (the plan checked that), but not whole
            raise OverlayError("import pyroute2", sys.executable, error, f"Install {PACKAGES} again.") from error
        if self._route is None:
            self._route = IPRoute()
        try:
            self._route.tc(command, *arguments, **fields)
        except NetlinkError as error:
            raise OSError(abs(error.code), str(error)) from error


def _place(direction: str, priority: int, protocol: int = PROTOCOL_ALL) -> dict[str, int]:
    return {"parent": PARENT[direction], "prio": priority, "protocol": protocol}
