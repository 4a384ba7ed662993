# SPDX-License-Identifier: GPL-3.0-or-later
"""TCP ports to which this network namespace's packet filter assigns one of conntrack's helpers (FTP, SIP, …).

A helper reads the data of a connection, and rewrites it where NAT is in between. On the fast path it reads nothing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from typing import Any, Callable

# Runs a command, returns (exit code, standard output, standard error).
Run = Callable[[list[str]], tuple[int, str, str]]
# helper, first port, last port, which rule or setting assigns it
Assigned = tuple[str, int, int, str]

ALL = (1, 65535)

# Helpers of TCP that assign themselves where the sysctl is 1 (Linux before 6.0): module -> port unless it has a
# parameter for it (net/netfilter/nf_conntrack_*.c).
_AUTOMATIC = "/proc/sys/net/netfilter/nf_conntrack_helper"
_OWN_PORTS = {"ftp": 21, "h323": 1720, "irc": 6667, "pptp": 1723, "sane": 6566, "sip": 5060}


def find_helper_ports(run: Run, warn: Callable[[str], None]) -> list[dict[str, Any]]:
    """``helper``, ``first``, ``last`` (ports) and ``by`` of each assignment."""
    found = [*_automatic(), *_nftables(run, warn), *_iptables(run, warn)]
    return [dict(zip(("helper", "first", "last", "by"), one)) for one in sorted(set(found))]


# --- by themselves ----------------------------------------------------------------------------------------------------


def _automatic(sysctl: str = _AUTOMATIC, modules: str = "/sys/module") -> Iterator[Assigned]:
    if _text(sysctl).strip() != "1":
        return
    for helper, port in _OWN_PORTS.items():
        folder = os.path.join(modules, f"nf_conntrack_{helper}")
        if os.path.isdir(folder):
            told = re.findall(r"\d+", _text(os.path.join(folder, "parameters", "ports")))
            for number in {int(one) for one in told if int(one)} or {port}:
                yield helper, number, number, "the sysctl nf_conntrack_helper"


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""


# --- nftables ---------------------------------------------------------------------------------------------------------


def _nftables(run: Run, warn: Callable[[str], None]) -> list[Assigned]:
    if shutil.which("nft") is None:
        return []
    # Without the elements of sets, which may be many; those of a set that is needed are read by themselves.
    listed = _run(run, ["nft", "--json", "--terse", "list", "ruleset"], warn)

    def elements(family: str, table: str, name: str) -> list[Any]:
        told = _run(run, ["nft", "--json", "list", "set", family, table, name], warn)
        return [one for entry in _objects(told) for one in entry.get("set", {}).get("elem", ())]

    return list(from_ruleset(_objects(listed), elements))


def _objects(text: str) -> list[dict[str, Any]]:
    return list(json.loads(text)["nftables"]) if text.strip() else []


# Family, table and name of a set -> its elements.
Elements = Callable[[str, str, str], "list[Any]"]


def from_ruleset(objects: Iterable[dict[str, Any]], elements: Elements) -> Iterator[Assigned]:
    """``objects``: the list that ``nft --json list ruleset`` prints.

    A rule that does not compare the port, or not with ports, counts as one for all ports.
    """
    objects = list(objects)
    helpers = {
        (one["family"], one["table"], one["name"]): one for entry in objects for one in [entry.get("ct helper")] if one
    }
    for rule in (entry["rule"] for entry in objects if "rule" in entry):
        place = (rule["family"], rule["table"])
        for statement in rule.get("expr", ()):
            name = statement.get("ct helper") if isinstance(statement, dict) else None
            if name is None:
                continue
            # What a map assigns may be any of them.
            helper = helpers.get((*place, name), {}) if isinstance(name, str) else {}
            if helper.get("protocol", "tcp") != "tcp":
                continue
            by = f"a rule in {rule['family']} {rule['table']} {rule['chain']}"
            compared = [one["match"] for one in rule["expr"] if isinstance(one, dict) and "match" in one]
            ranges = [_ranges(match, place, elements) for match in compared]
            for first, last in next((one for one in ranges if one), [ALL]):
                yield str(helper.get("type", "one by a map")), first, last, by


def _ranges(match: dict[str, Any], place: tuple[str, str], elements: Elements) -> list[tuple[int, int]]:
    """The ports that a comparison lets pass; empty where it is about something else."""
    field = match["left"].get("payload", {}) if isinstance(match["left"], dict) else {}
    if field.get("field") != "dport" or match["op"] not in ("==", "in"):
        return []
    right = match["right"]
    if isinstance(right, str) and right.startswith("@"):
        right = {"set": elements(*place, right[1:])}
    found = []
    for one in right["set"] if isinstance(right, dict) and "set" in right else [right]:
        # An element with a timeout, counter or comment is wrapped.
        value = one.get("elem", {}).get("val", one) if isinstance(one, dict) else one
        if isinstance(value, int):
            found.append((value, value))
        elif isinstance(value, dict) and "range" in value and all(isinstance(end, int) for end in value["range"]):
            found.append((value["range"][0], value["range"][1]))
        else:
            return [ALL]
    return found


# --- iptables ---------------------------------------------------------------------------------------------------------


def _iptables(run: Run, warn: Callable[[str], None]) -> Iterator[Assigned]:
    """The target CT exists in the table ``raw`` alone."""
    for family, names in (("ip", "/proc/net/ip_tables_names"), ("ip6", "/proc/net/ip6_tables_names")):
        # To ask for a table of the old kind that is not there would load its kernel module.
        kinds = ["nft", *(["legacy"] if "raw" in _text(names).split() else [])]
        for kind in kinds:
            command = f"{family}tables-{kind}-save"
            if shutil.which(command):
                yield from from_saved(_run(run, [command, "-t", "raw"], warn), command)


def from_saved(text: str, command: str) -> Iterator[Assigned]:
    """From what ``iptables-save`` prints. A rule that names no port counts as one for all ports."""
    for line in text.splitlines():
        helper = re.search(r" -j CT\b.* --helper (\S+)", line)
        if helper is None or re.search(r" -p (?!tcp\b)", line):
            continue
        ports = re.search(r"(?<!! )--(?:dports?|destination-ports?|ports) ([\d:,]+)", line)
        for part in ports[1].split(",") if ports else [":".join(map(str, ALL))]:
            first, colon, last = part.partition(":")
            yield helper[1], int(first or 0), int((last or ALL[1]) if colon else first), command


def _run(run: Run, command: list[str], warn: Callable[[str], None]) -> str:
    code, output, message = run(command)
    if code:
        warn(f"Ports with a conntrack helper are not known: {' '.join(command)} said: {message.strip() or code}.")
        return ""
    return output
