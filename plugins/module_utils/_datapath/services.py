# SPDX-License-Identifier: GPL-3.0-or-later
"""The user's services -> ports of the datapath's array ``services``. Pure."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError

from .layout import PROTOCOLS

LAST = 65535


def parse_services(services: Any) -> list[tuple[str, int, int]]:
    """``overlay_services`` as the user gives it (a list, or the same as JSON text) -> (protocol, first, last port).

    Raises :class:`OverlayError` that names what cannot be accelerated.
    """
    if isinstance(services, str):
        with contextlib.suppress(ValueError):  # it is refused below, as it was written
            services = json.loads(services)
    if not isinstance(services, Sequence) or isinstance(services, str):
        raise OverlayError(
            "accept the services",
            "overlay_services",
            f"{services!r} is no list",
            'Give a list, such as [{"protocol": "tcp", "port": 8080}]; on the command line as '
            "-e '{\"overlay_services\": [...]}'.",
        )
    return [_parse(service, f"overlay_services[{number}]") for number, service in enumerate(services)]


def _parse(service: Any, target: str) -> tuple[str, int, int]:
    if not isinstance(service, Mapping) or not set(service) <= {"protocol", "port"}:
        raise OverlayError(
            "accept a service", target, f"{service!r} is not protocol and port", "Give {protocol: tcp, port: 8080}."
        )
    protocol, port = str(service.get("protocol", "tcp")).lower(), service.get("port")
    if protocol not in PROTOCOLS:
        raise OverlayError(
            "accept a service",
            f"{target}.protocol",
            f"{protocol!r} is none of {', '.join(PROTOCOLS)}",
            "The overlay follows TCP connections only; take the service out of the list.",
        )
    text = str(port).strip().lower()
    if text == "all":
        return protocol, 1, LAST
    found = re.fullmatch(r"(\d{1,5})(?:\s*-\s*(\d{1,5}))?", text, re.ASCII)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 0 < first <= last <= LAST:
        raise OverlayError(
            "accept a service",
            f"{target}.port",
            f"{port!r} is no port",
            "Give a port (1 to 65535), a range of ports such as 8000-8010, or all.",
        )
    return protocol, first, last


def service_entries(services: Any) -> list[dict[str, Any]]:
    """``[{"protocol": "tcp", "port": 8080}]`` -> entries of the map ``services``; neighbouring ports as one range."""
    ports: dict[int, int] = {}
    for protocol, first, last in parse_services(services):
        for port in range(first, last + 1):
            ports[port] = ports.get(port, 0) | PROTOCOLS[protocol]
    found = []
    # Ports that follow each other have the same distance from their place in the list.
    for _same, run in groupby(enumerate(sorted(ports)), lambda pair: (pair[1] - pair[0], ports[pair[1]])):
        listed = [port for _place, port in run]
        key = listed[0] if len(listed) == 1 else f"{listed[0]}-{listed[-1]}"
        found.append({"key": key, "value": ports[listed[0]]})
    return found
