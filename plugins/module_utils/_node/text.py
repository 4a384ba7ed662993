# SPDX-License-Identifier: GPL-3.0-or-later
"""What overlayctl found or did, in words. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.drift import AHEAD

Found = Mapping[str, Any]


def _table(rows: Sequence[Sequence[Any]]) -> list[str]:
    """Left-aligned columns; the last one as it is."""
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]) - 1)] if rows else []
    return ["  ".join([*(str(cell).ljust(width) for cell, width in zip(row, widths)), str(row[-1])]) for row in rows]


def _changes(differences: Iterable[Found]) -> list[str]:
    return [f"  {item['module']} {item['target']}: {item['reason']}" for item in differences]


def status(found: Found) -> list[str]:
    off = " (switched off by hand: overlayctl on switches it on)" if found["switched_off"] else ""
    lease = f", for {found['lease']:g} s unless somebody confirms" if found["lease"] is not None else ""
    lines = [f"mode        {found['mode']}{lease}{off}"]
    if "number" in found:
        named = f"{found['number']} ({found['digest'][:12]})" if found["digest"] else f"{found['number']} (no overlay)"
        when = {item["number"]: item["when"] for item in found["generations"]}.get(found["number"])
        lines.append(
            f"generation  {named}" + (f", made {when}" if when else "") + (f", by {found['by']}" if found["by"] else "")
        )
    else:
        lines.append("generation  unknown: the records cannot be read")
    if found.get("pending"):
        lines.append(f"waiting     generation {found['pending']}, for its confirmation (attempt {found['attempt']})")
    if found["compared"]:
        lines.append(f"as it should be  {'no' if any(one['kind'] != AHEAD for one in found['drift']) else 'yes'}")
        lines += [
            f"  {item['kind']}: {item['object']}; wanted {item['wanted']}, found {item['found']}"
            for item in found["drift"]
        ]
    lines += [f"trouble     {reason}" for reason in found["trouble"]]
    counted = sorted(found["counters"].items(), key=lambda item: -item[1])
    return lines + (["counted"] if counted else []) + [f"  {line}" for line in _table(counted)]


def explain(found: Found) -> list[str]:
    lines = [f"{'yes' if step['holds'] else 'NO '}  {step['rule']}: {step['says']}" for step in found["steps"]]
    if found["eligible"]:
        lines.append("A new connection is eligible: it is fast once its handshake was seen to come out.")
    else:
        lines.append(f"A new connection takes the kernel's path: {found['decides']} ({found['meaning']}).")
    lines += [f"way {way}" for way in found["ways"]]
    for flow in found["flows"]:
        lines.append(
            f"live {_ends(flow)}: {flow['state']}, {flow['meaning']}; fast packets {flow['to_workload']} in, "
            f"{flow['to_uplink']} out, as far as the processors remember"
        )
    return lines


def _ends(flow: Found) -> str:
    ends = [(flow["workload"], flow["workload_port"]), (flow["remote"], flow["remote_port"])]
    return " <-> ".join(f"[{address}]:{port}" if ":" in address else f"{address}:{port}" for address, port in ends)


def flows(found: Found) -> list[str]:
    rows = [
        (
            _ends(flow),
            flow["state"] + (f" for {flow['suspended_for']:g} s" if flow["suspended_for"] else ""),
            f"opened by the {flow['opened_by']}",
            "" if flow["heartbeat_ago"] is None else f"heartbeat {flow['heartbeat_ago']:g} s ago",
        )
        for flow in found["flows"]
    ]
    return [*_table(rows), f"{len(rows)} of {found['matching']} flows"]


def suspend(found: Found) -> list[str]:
    return [*(f"  {flow}" for flow in found["flows"]),
            f"{len(found['flows'])} flows take the kernel's path for {found['seconds']:g} s. Connections that begin "
            "meanwhile do not."]  # fmt: skip


def cut(found: Found) -> list[str]:
    lines = [f"  {flow}" for flow in found["flows"]]
    if not found["done"]:
        return [*lines, f"{len(lines)} flows would be cut. Nothing was done: say --yes to do it."]
    return [*lines, f"{len(lines)} flows were forgotten, and {found['conntrack_entries']} entries of conntrack "
                    "deleted. The packet filter decides about their next packets anew."]  # fmt: skip


def log(found: Found) -> list[str]:
    rows = [
        (
            entry.get("when", ""),
            entry.get("user", ""),
            entry.get("what", "")
            + (f", generation {entry['generation']}" if "generation" in entry else "")
            + (f", attempt {entry['attempt']}" if "attempt" in entry else ""),
        )
        for entry in found["entries"]
    ]
    return _table(rows) or ["Nothing was recorded on this node."]


def top(found: Found) -> list[str]:
    ranked = sorted(found["rates"].items(), key=lambda item: -item[1]["packets"])
    rows = [(label, f"{rate['packets']} packets/s", f"{rate['bytes']} bytes/s") for label, rate in ranked]
    return [f"mode {found['mode']}", *(f"  {line}" for line in _table(rows) or ["nothing was counted"])]


def switch_off(found: Found) -> list[str]:
    lines = [f"The mode is off (it was {found['before']}), by {found['by']}. Traffic takes the kernel's path."]
    if found["switched_off"]:
        lines.append("That is recorded: neither site.yml nor a reboot switches this node on. overlayctl on does.")
    return lines + list(found["trouble"])


def mode(found: Found) -> list[str]:
    return [f"The mode is {found['mode']}{'' if found['changed'] else ', as before'}."]


def restored(found: Found) -> list[str]:
    there = "as it should be" if not found["changed"] else "would be restored" if found["check"] else "restored"
    lines = [f"generation {found['number']}: {there}", *_changes(found["differences"])]
    if found.get("switched_off"):
        lines.append("It stays off, since somebody has switched it off: overlayctl on switches it on.")
    return lines


def boot(found: Found) -> list[str]:
    if "left_to" in found:
        return [f"An attempt waits: {found['left_to']} takes the node back to generation {found['number']} if need be."]
    missing = [f"  {name} is not there: its flows take the kernel's path" for name in found["missing"]]
    there = "made again" if found["changed"] else "as it should be"
    return [f"generation {found['number']}: {there}", *missing]


WORDS: dict[str, Callable[[Found], list[str]]] = {
    "status": status, "explain": explain, "flows": flows, "suspend": suspend, "cut": cut, "log": log, "top": top,
    "off": switch_off, "on": mode, "drain": mode, "rollback": restored, "reconcile": restored,
    "boot": boot,
}  # fmt: skip
