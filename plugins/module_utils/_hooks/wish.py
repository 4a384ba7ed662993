# SPDX-License-Identifier: GPL-3.0-or-later
"""What a user asks ``tc_bpf_attach`` for, and what that means on the interfaces that exist. Pure."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.traffic import (
    CLSACT,
    PROTOCOL_ALL,
    Filter,
    Hook,
    filter_name,
    owner_of,
)

from .mechanism import choose, takers_of
from .state import LAST, Observed, Program


def is_glob(pattern: str) -> bool:
    return any(sign in pattern for sign in "*?[")


def matching(pattern: str, interfaces: Iterable[str]) -> list[str]:
    """The interfaces that a name or glob means, sorted."""
    if is_glob(pattern):
        return sorted(name for name in interfaces if fnmatchcase(name, pattern))
    return [name for name in interfaces if name == pattern]


def no_such_interface(doing: str, interface: str) -> OverlayError:
    return OverlayError(
        doing,
        f"interface {interface}",
        OSError(errno.ENODEV, ""),
        "Correct the name; `ip link` lists the interfaces of this network namespace.",
    )


@dataclass(frozen=True)
class Attachment:
    """One line of the user's list; ``interface`` is a name or a glob, ``program`` a pin.

    ``handle`` None: whichever is free within the priority.
    """

    interface: str
    direction: str
    program: str
    priority: int = LAST
    handle: int | None = None

    @property
    def exact(self) -> bool:
        return not is_glob(self.interface)

    def matches(self, interfaces: Iterable[str]) -> list[str]:
        """The interfaces that are meant, sorted."""
        return matching(self.interface, interfaces)


@dataclass(frozen=True)
class Wish:
    """What the user asked for. ``links``: the owner's folder of link pins; ``namespace`` names the net namespace.

    ``rebuilt``: programs, without an id, that an earlier task of a dry run would build anew: whatever is pinned there
    now is not what will be attached.
    """

    attachments: tuple[Attachment, ...] = ()
    owner: str = "ebpf.overlay"
    purge: bool = False
    mechanism: str = "auto"
    present: bool = True
    links: str = "/sys/fs/bpf/ebpf-overlay/links/ebpf_2eoverlay"
    namespace: str = "0"
    rebuilt: tuple[Program, ...] = ()

    def check(self) -> None:
        """Raises :class:`OverlayError` for a value that no kernel takes, or that would not say whose a filter is."""
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", self.owner):
            raise OverlayError(
                "use an owner",
                repr(self.owner),
                "it is empty, too long, or has other signs than letters, digits, dot, - and _",
                "Choose a plain name; it becomes the first part of the filters' names.",
            )
        for entry in self.attachments:
            for key, highest in (("priority", 0xFFFF), ("handle", 0xFFFFFFFF)):
                value = getattr(entry, key)
                if value is not None and not 1 <= value <= highest:
                    raise OverlayError(
                        "attach a program",
                        f"interface {entry.interface}, {entry.direction}, {key} {value}",
                        f"it is not between 1 and {highest}",
                        "Correct the number.",
                    )
            name = os.path.basename(entry.program)
            if not 1 <= len(os.fsencode(name)) <= 128 or name.startswith("["):
                raise OverlayError(
                    "attach a program",
                    f"interface {entry.interface}, program {entry.program!r}",
                    "its base name is empty, longer than 128 bytes, or starts with a bracket",
                    "Name the program's pin.",
                )

    def owns(self, item: Filter) -> bool:
        """The kernel's own record decides: the filter's name. We never work in chains other than 0."""
        return item.kind == "bpf" and item.chain == 0 and item.handle != 0 and owner_of(item.name) == self.owner


@dataclass(frozen=True)
class Wanted:
    """One attachment on one interface that exists, with its mechanism decided."""

    interface: str
    ifindex: int
    direction: str
    program: Program
    priority: int
    handle: int
    required: bool
    mechanism: str = CLSACT
    reason: str = ""

    @property
    def hook(self) -> Hook:
        return self.ifindex, self.direction

    @property
    def target(self) -> str:
        place = f", priority {self.priority}, handle {self.handle:#x}" if self.mechanism == CLSACT else ", TCX"
        return f"interface {self.interface}, {self.direction}{place}, program {self.program.name}"


def resolve(wish: Wish, seen: Observed, filters: dict[Hook, list[Filter]]) -> tuple[list[Wanted], list[str]]:
    """The attachments on the interfaces that exist, hooks in the order of the user's list."""
    found: dict[tuple[int, str, str], Wanted] = {}
    slots: dict[tuple[int, str, int, int], Wanted] = {}
    takers: dict[Hook, list[str]] = {}
    said = {entry.handle for entry in wish.attachments if entry.handle}
    given: dict[tuple[int, str, int], set[int]] = {}
    warnings = []
    for attachment in wish.attachments:
        names = attachment.matches(seen.interfaces)
        program = seen.programs.get(attachment.program, Program(attachment.program))
        if not names and attachment.exact:
            raise no_such_interface("attach a program", f"{attachment.interface}, {attachment.direction}")
        if not names:
            warnings.append(f"No interface matches {attachment.interface}: {program.name} is attached nowhere by it.")
        for name in names:
            hook = (seen.interfaces[name], attachment.direction)
            here = filters.get(hook, [])
            if hook not in takers:
                takers[hook] = takers_of((other for other in here if not wish.owns(other)), seen)
            mechanism, reason = choose(wish.mechanism, hook, name, program.name, takers[hook], seen)
            twin = found.get((*hook, program.name))
            others = given.setdefault((*hook, attachment.priority), set(said))
            handle = attachment.handle or (twin.handle if twin else 0)
            handle = handle or _free_handle(wish, attachment.priority, program.name, here, others)
            others.add(handle)
            item = Wanted(name, *hook, program, attachment.priority, handle, attachment.exact, mechanism, reason)
            if twin and replace(twin, required=item.required) != item:
                raise _contradiction(item, f"another entry of the list wants {twin.program.pin} there, {twin.target}")
            rival = slots.setdefault((*hook, item.priority, item.handle), item) if mechanism == CLSACT else item
            if rival.program.name != program.name:
                raise _contradiction(item, f"another entry of the list wants {rival.program.name} in the same place")
            found[(*hook, program.name)] = twin if twin and twin.required else item
    # Each TCX link goes to the tail of its hook, so the one with the highest priority number has to come last.
    order = {hook: place for place, hook in enumerate(dict.fromkeys(item.hook for item in found.values()))}
    return sorted(found.values(), key=lambda item: (order[item.hook], item.mechanism, item.priority)), warnings


def _free_handle(wish: Wish, priority: int, program: str, here: list[Filter], given: set[int]) -> int:
    """The handle that the program's filter has already, else the lowest free one: what others have stays theirs.

    ``given``: what the user's list says, and what its other programs on this hook get.
    """
    same = [other for other in here if other.chain == 0 and other.priority == priority]
    # A filter of ours for another protocol goes before anything is attached there, and so does not count.
    same = [other for other in same if not wish.owns(other) or other.protocol == PROTOCOL_ALL]
    ours = {other.handle for other in same if wish.owns(other) and other.name == filter_name(wish.owner, program)}
    taken = given | ({other.handle for other in same} - ours)
    free = (number for number in range(1, len(taken) + 2) if number not in taken)
    return min((handle for handle in ours if handle not in given), default=next(free))


def _contradiction(item: Wanted, reason: str) -> OverlayError:
    return OverlayError(
        "attach a program", item.target, reason, "Give every program on a hook one pin, priority and handle."
    )
