# SPDX-License-Identifier: GPL-3.0-or-later
"""The arguments of overlayctl. Its manual page and its completion follow from them. Pure."""

from __future__ import annotations

import argparse
from typing import Any

from .flow_states import STATES

NAME = "overlayctl"
DESCRIPTION = (
    "Look at the eBPF overlay of this node, and switch it. Traffic never depends on it: whatever leaves the overlay "
    "goes on in the kernel's path."
)
EXIT_CODES = {
    0: "done, or: as it should be",
    1: "failed; the reason is on standard error, and what to do next",
    2: "the arguments are wrong",
    3: "the answer is no: status or --check found a difference, explain the kernel's path, cut wants --yes",
}
FILES = {
    "/var/lib/ebpf-overlay": "generations, records, and the log that the command log shows",
    "/sys/fs/bpf/ebpf-overlay": "programs and maps",
}

# Command -> what it does.
COMMANDS = {
    "status": "tell the mode, the generation, what differs from it, and what the datapath counted",
    "explain": "tell which rule decides about a connection, and what became of live ones",
    "flows": "list the connections that the datapath knows",
    "suspend": "put flows back on the kernel's path for a time; the connections live on",
    "cut": "forget flows and their conntrack entries, so that the packet filter decides about them anew",
    "top": "show packets and bytes a second, by direction and reason",
    "log": "tell who did what on this node",
    "on": "switch the overlay on, also where somebody has switched it off",
    "drain": "speed up known connections only, until the mode is set again",
    "off": "switch the overlay off; it stays off until somebody switches it on. Works when everything else is broken",
    "rollback": "take the node to another generation; 0 takes the overlay off",
    "reconcile": "make the node what its confirmed generation says",
    "boot": "make the confirmed generation again after a reboot, in one try; the unit ebpf-overlay.service calls it",
    "man": "print the manual page, for man -l",
    "completion": "print the completion for a shell",
}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(NAME, description=DESCRIPTION)
    commands = made.add_subparsers(dest="command", metavar="COMMAND", required=True)
    found = {name: commands.add_parser(name, help=text, description=_sentence(text)) for name, text in COMMANDS.items()}
    found["status"].add_argument(
        "--no-compare", dest="compare", action="store_false", help="leave out what differs, which takes a second"
    )
    _add_ends(found["explain"])
    _add_selection(found["flows"])
    found["flows"].add_argument("--state", choices=STATES, help="that are in this state")
    found["flows"].add_argument("--limit", type=_count, default=100, help="at most so many, 0 for all (default: 100)")
    for name in ("suspend", "cut"):
        _add_selection(found[name])
    found["suspend"].add_argument(
        "--for", dest="seconds", type=_seconds, default=60.0, metavar="SECONDS", help="for so long (default: 60)"
    )
    found["cut"].add_argument("--yes", action="store_true", help="do it; otherwise only tell what would be cut")
    found["top"].add_argument("--interval", type=_seconds, default=1.0, help="seconds between two looks (default: 1)")
    found["top"].add_argument("--count", type=_count, default=0, help="end after so many looks (default: never)")
    found["log"].add_argument("--lines", type=_count, default=20, help="the latest so many (default: 20)")
    found["rollback"].add_argument(
        "generation", nargs="?", default="previous", help="a number, or previous (the default): the one before this"
    )
    for name in ("rollback", "reconcile"):
        found[name].add_argument("--check", action="store_true", help="only tell what would change")
    found["completion"].add_argument("shell", choices=["bash"], help="the shell")
    for name in set(COMMANDS) - {"man", "completion"}:
        found[name].add_argument("--json", action="store_true", help="as JSON; top and explain --follow: one line each")
    return made


def check(made: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Ends the process where an argument is missing that argparse cannot ask for."""
    if given.command in ("suspend", "cut") and given.address is None and given.port is None:
        made.error(f"{given.command}: give --address, --port or both")


def _add_ends(command: argparse.ArgumentParser) -> None:
    command.add_argument("client", help="who connects: an address; with its port, a live connection: 10.0.0.1:40312")
    command.add_argument("address", help="what it connects to; with its port, the third argument may be left out")
    command.add_argument("port", nargs="?", type=_port, help="the port that it connects to")
    command.add_argument("--follow", type=_count, default=0, metavar="SECONDS", help="look again each second, so long")


def _add_selection(command: argparse.ArgumentParser) -> None:
    command.add_argument("--address", metavar="PREFIX", help="with an end in this prefix, or with this address")
    command.add_argument("--port", type=_port, help="with this port at an end")


def _number(text: str, least: float, most: float, kind: Any) -> Any:
    number = kind(text)
    if not least <= number <= most:
        raise ValueError(text)
    return number


def _port(text: str) -> int:
    return int(_number(text, 1, 65535, int))


def _count(text: str) -> int:
    return int(_number(text, 0, 10**9, int))


def _seconds(text: str) -> float:
    return float(_number(text, 0.1, 86400, float))


_port.__name__, _count.__name__, _seconds.__name__ = "port", "number", "number of seconds (0.1 to 86400)"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
