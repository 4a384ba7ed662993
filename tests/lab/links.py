# SPDX-License-Identifier: GPL-3.0-or-later
"""Namespaces, interfaces and addresses, as everything that builds the lab needs them.

pyroute2 is imported late: it costs half a second, and whoever only looks at a lab needs none of it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Any

from .namespace import path_of, set_sysctls
from .paths import LabError

SCOPE_LINK = 253
PROTO_BOOT = 3
PROTO_BIRD = 12
_IFA_F_NODAD = 0x02

# Duplicate address detection delays every address by a second and finds nothing here.
_EVERY_NAMESPACE = {
    "ipv6/conf/all/accept_dad": 0,
    "ipv6/conf/default/accept_dad": 0,
    "ipv6/conf/default/dad_transmits": 0,
    "ipv6/conf/default/accept_ra": 0,
    "ipv6/conf/default/router_solicitations": 0,
    "ipv4/conf/all/rp_filter": 0,
    "ipv4/conf/default/rp_filter": 0,
}
ROUTER = {"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1, "ipv6/conf/default/forwarding": 1}


def new_namespace(name: str, sysctls: dict[str, int]) -> None:
    from pyroute2 import netns

    netns.create(name)
    set_sysctls(name, {**_EVERY_NAMESPACE, **sysctls})


def talking_to(name: str) -> Any:
    """pyroute2's IPRoute in a namespace; to be closed."""
    from pyroute2 import IPRoute

    return IPRoute(netns=name)


def index_of(ipr: Any, interface: str) -> int:
    found = ipr.link_lookup(ifname=interface)
    if not found:
        raise LookupError(f"no interface {interface}")
    return int(found[0])


def set_up(ipr: Any, interface: str, **attributes: Any) -> int:
    """Returns the interface's index."""
    index = index_of(ipr, interface)
    ipr.link("set", index=index, state="up", **attributes)
    return index


def add_address(ipr: Any, index: int, address: str, length: int) -> None:
    flags = {"flags": _IFA_F_NODAD} if ":" in address else {}
    ipr.addr("add", index=index, address=address, prefixlen=length, **flags)


def run_in(name: str, argv: Sequence[str], stdin: str = "", environment: dict[str, str] | None = None) -> str:
    """The output of one of the machine's tools in a namespace. Raises LabError with what it said."""
    command = ["nsenter", f"--net={path_of(name)}", *argv]
    done = subprocess.run(command, input=stdin, text=True, capture_output=True, check=False, env=environment)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise LabError(f"{name}: {' '.join(argv)} ended with {done.returncode}: {said}")
    return done.stdout


def script_in(name: str, text: str) -> None:
    """A shell script in a namespace, up to its first command that fails. Raises LabError with what that one said."""
    run_in(name, ["sh", "-eu"], text)
