# SPDX-License-Identifier: GPL-3.0-or-later
"""From conntrack's sysctls to those that the overlay needs, and back to the former ones. Pure.

Conntrack does not see the packets that take the fast path, so it must not judge the others by what it saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Optional

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.plan import Plan

_TCP = "net.netfilter.nf_conntrack_tcp_"
LIBERAL = f"{_TCP}be_liberal"
IGNORE_INVALID_RST = f"{_TCP}ignore_invalid_rst"
IGNORE_INVALID_RST_FROM = (5, 14)  # Linux
ESTABLISHED = f"{_TCP}timeout_established"
# A connection that seems to wait for an acknowledgement, or to repeat itself, times out by these in place of
# ESTABLISHED, where they are smaller (nf_conntrack_tcp_packet). Conntrack has not seen what was acknowledged.
_TIMEOUTS = (f"{_TCP}timeout_unacknowledged", f"{_TCP}timeout_max_retrans")

NAMES = (LIBERAL, IGNORE_INVALID_RST, *_TIMEOUTS)
# net/netfilter/nf_conntrack_proto_tcp.c, in seconds where they are times.
DEFAULTS = {LIBERAL: 0, IGNORE_INVALID_RST: 0, ESTABLISHED: 432_000, **dict.fromkeys(_TIMEOUTS, 300)}

FORMAT = 1  # of the record
FILE = "/etc/sysctl.d/60-ebpf-overlay.conf"
_HEAD = """\
# Written by ebpf.overlay, which removes it with the overlay.
# Conntrack does not see the packets that take the fast path.
"""

# What was there before: name -> value, None where the sysctl was not there.
Former = Mapping[str, Optional[int]]


@dataclass(frozen=True)
class Observed:
    """``values``: the sysctls that are there (those of NAMES, and ESTABLISHED); none where conntrack is not loaded.

    ``kernel``: its version. ``file``: the text of FILE. ``record``: the former values as recorded. Both None where they
    are not there. ``mode``: the one on which the datapath acts, off where none is loaded.
    """

    values: Mapping[str, int] = field(default_factory=dict)
    kernel: tuple[int, ...] = IGNORE_INVALID_RST_FROM
    file: str | None = None
    record: Former | None = None
    mode: str = "off"

    @property
    def loaded(self) -> bool:
        return LIBERAL in self.values


@dataclass(frozen=True)
class RecordFormer:
    former: Former


@dataclass(frozen=True)
class WriteFile:
    text: str


@dataclass(frozen=True)
class SetSysctl:
    name: str
    value: int


@dataclass(frozen=True)
class FlagEntries:
    """Give every live TCP entry conntrack's own liberal flag, a second after the datapath has been switched off."""


@dataclass(frozen=True)
class RemoveFile:
    pass


@dataclass(frozen=True)
class ForgetFormer:
    pass


def is_liberal(values: Mapping[str, int]) -> bool:
    """Whether connections live on whose packets conntrack did not see; so it is where it is not loaded."""
    return values.get(LIBERAL, 1) != 0


def refusal(values: Mapping[str, int]) -> str:
    """Why the overlay must not be switched on, a full sentence with advice; empty where it may."""
    if is_liberal(values):
        return ""
    return f"{LIBERAL} is {values[LIBERAL]}: {_STRICT}. Set it to 1 with ebpf.overlay.overlay_conntrack."


_STRICT = "conntrack would refuse connections whose packets took the fast path"


def wanted(observed: Observed) -> dict[str, int]:
    """The sysctls that the overlay needs on this kernel."""
    values = {LIBERAL: 1, IGNORE_INVALID_RST: 1}
    established = observed.values.get(ESTABLISHED, DEFAULTS[ESTABLISHED])
    values.update(dict.fromkeys(_TIMEOUTS, established))
    if observed.loaded:
        return {name: value for name, value in values.items() if name in observed.values}
    if observed.kernel < IGNORE_INVALID_RST_FROM:
        del values[IGNORE_INVALID_RST]
    return values


def plan_present(observed: Observed, manage: bool) -> Plan:
    """``manage``: False only looks whether conntrack is liberal. Raises :class:`OverlayError` where it is not."""
    if not manage:
        if not is_liberal(observed.values):
            raise OverlayError(
                "use the overlay",
                f"{LIBERAL} is {observed.values[LIBERAL]}",
                f"{_STRICT}, and nobody may change it (manage, overlay_conntrack_liberal)",
                f"Set it yourself (sysctl -w {LIBERAL}=1, and a file below /etc/sysctl.d), or allow it.",
            )
        return _plan(observed, observed)
    values = wanted(observed)
    # With a file of ours and no record, the values are ours as well: what was there before is not known.
    now: Former = {} if observed.file is not None and observed.record is None else observed.values
    record = {**{name: now.get(name) for name in values}, **(observed.record or {})}
    text = _HEAD + "".join(f"{name} = {value}\n" for name, value in values.items())
    after = Observed({**observed.values, **values} if observed.loaded else {}, observed.kernel, text, record)
    operations: list[object] = []
    if record != observed.record:
        operations.append(RecordFormer(record))
    if text != observed.file:
        operations.append(WriteFile(text))
    return _plan(observed, after, (*operations, *_writes(observed, after)))


def plan_absent(observed: Observed, held: str = "") -> Plan:
    """``held``: why this run could not flag the live connections, so that conntrack has to stay as it is."""
    if observed.record is None and observed.file is None:
        return _plan(observed, observed)
    removal = (RemoveFile(),) if observed.file is not None else ()
    if held:
        return _plan(observed, Observed(observed.values, observed.kernel, None, observed.record), removal)
    values = _former_values(observed)
    restored = {name: values.get(name, value) for name, value in observed.values.items()}
    after = Observed(restored, observed.kernel)
    strict = observed.loaded and not is_liberal(restored)
    unmet = (
        f"The datapath's mode is {observed.mode}: connections that take the fast path would be refused. Switch it off "
        "first (ebpf.overlay.overlay_mode)."
    )
    return _plan(
        observed,
        after,
        (
            *([FlagEntries()] if strict else []),
            *_writes(observed, after),
            *removal,
            *([ForgetFormer()] if observed.record is not None else []),
        ),
        unmet=(unmet,) if strict and observed.mode != "off" else (),
    )


def _former_values(observed: Observed) -> dict[str, int]:
    """The kernel's defaults where nothing was there, or nothing is known of it."""
    former: Former = observed.record if observed.record is not None else dict.fromkeys(NAMES)
    return {name: DEFAULTS[name] if value is None else value for name, value in former.items()}


def held_warning(observed: Observed, reason: str) -> str:
    """What a person has to know and do where the live connections could not be flagged."""
    values = _former_values(observed)
    there = " ".join(f"{name}={value}" for name, value in values.items() if name in observed.values)
    return (
        f"Conntrack stays liberal ({LIBERAL} is {observed.values.get(LIBERAL)}), since connections that took the fast "
        f"path would be cut. {reason} Once these connections have ended, set the former values: sysctl -w {there}. A "
        "reboot does so too."
    )


def checked_record(path: str, content: object) -> Former:
    """The former values of a record as it was read. Raises :class:`OverlayError` for anything else."""
    reason = ""
    former = content.get("former") if isinstance(content, dict) else None
    if not isinstance(content, dict) or "format" not in content:
        reason = "it holds something else"
    elif content["format"] != FORMAT:
        reason = f"its format is {content['format']}, and this version knows {FORMAT}"
    elif not isinstance(former, dict) or not all(
        name in DEFAULTS and (value is None or (isinstance(value, int) and not isinstance(value, bool)))
        for name, value in former.items()
    ):
        reason = "its former values are no sysctls of conntrack"
    if reason or not isinstance(former, dict):
        raise unreadable(path, reason)
    return former


def unreadable(path: str, reason: object) -> OverlayError:
    return OverlayError(
        "read the former values of conntrack's sysctls",
        path,
        reason,
        "Restore the file, or remove it: the kernel's defaults then count as the former values.",
    )


def _writes(before: Observed, after: Observed) -> tuple[SetSysctl, ...]:
    return tuple(SetSysctl(name, value) for name, value in after.values.items() if before.values[name] != value)


def _plan(before: Observed, after: Observed, operations: tuple[object, ...] = (), unmet: tuple[str, ...] = ()) -> Plan:
    return Plan(
        operations,
        before=_text(before),
        after=_text(after),
        unmet=unmet,
        result={
            "loaded": before.loaded,
            "liberal": is_liberal(after.values),
            "settings": {name: after.values[name] for name in NAMES if name in after.values},
            "former": {name: value for name, value in (after.record or {}).items() if value is not None},
            "message": "" if before.loaded else "Conntrack is not loaded, so nothing is needed now.",
        },
    )


def _text(observed: Observed) -> str:
    lines = [f"{name} = {observed.values[name]}" for name in NAMES if name in observed.values]
    lines += [f"{FILE}: {line}" for line in (observed.file or "").splitlines() if not line.startswith("#")]
    record = observed.record or {}
    told = {name: "not there" if value is None else value for name, value in record.items()}
    lines += [f"former {name} = {told[name]}" for name in NAMES if name in told]
    return "".join(f"{line}\n" for line in lines)
