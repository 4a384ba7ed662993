# SPDX-License-Identifier: GPL-3.0-or-later
"""The operations that a filter plan consists of, each one narrow change of the node. Pure.

``required``: the user named this very interface, so its disappearance before the operation is an error; an interface
that only a glob matched may go at any time.
"""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.traffic import Hook

from .state import Program


@dataclass(frozen=True)
class Operation:
    interface: str
    ifindex: int

    required = False


@dataclass(frozen=True)
class RecordQdisc(Operation):
    """Note that a clsact qdisc is ours, before it appears: or else a kill between the two would make it nobody's."""


@dataclass(frozen=True)
class AddClsact(Operation):
    required: bool


@dataclass(frozen=True)
class DeleteClsact(Operation):
    pass


@dataclass(frozen=True)
class ForgetQdisc(Operation):
    pass


@dataclass(frozen=True)
class FilterOperation(Operation):
    direction: str
    priority: int
    handle: int

    @property
    def hook(self) -> Hook:
        return self.ifindex, self.direction


@dataclass(frozen=True)
class AddFilter(FilterOperation):
    """Fails when the slot is taken: nobody's filter is ever overwritten."""

    name: str
    program: Program
    required: bool


@dataclass(frozen=True)
class ReplaceFilter(FilterOperation):
    """Swap the program of a filter of ours in place, so that no packet misses it. Fails when the slot is empty."""

    name: str
    program: Program
    required: bool


@dataclass(frozen=True)
class DeleteFilter(FilterOperation):
    protocol: int


@dataclass(frozen=True)
class LinkOperation(Operation):
    direction: str
    pin: str

    @property
    def hook(self) -> Hook:
        return self.ifindex, self.direction


@dataclass(frozen=True)
class CreateLink(LinkOperation):
    """Attach through TCX at the tail of the hook and pin the link. Fails when the hook is not at ``revision``."""

    program: Program
    revision: int
    required: bool


@dataclass(frozen=True)
class UpdateLink(LinkOperation):
    """Swap the link's program in place. Fails when it does not run ``expected_program_id``."""

    program: Program
    expected_program_id: int
    required: bool


@dataclass(frozen=True)
class RemoveLink(LinkOperation):
    pass


@dataclass(frozen=True)
class RemovePin:
    """Drop the pin of a link that lost its interface."""

    pin: str
    interface: str | None = None
    ifindex: int = 0
    required = False


@dataclass(frozen=True)
class RemoveDirectory:
    path: str
    interface: str | None = None
    ifindex: int = 0
    required = False
