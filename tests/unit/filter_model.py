# SPDX-License-Identifier: GPL-3.0-or-later
"""A small model of the kernel's tables of filters, and wishes and tables drawn at random."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st

from ansible_collections.ebpf.overlay.plugins.module_utils._hooks import operations as do
from ansible_collections.ebpf.overlay.plugins.module_utils._hooks.state import Observed, Program
from ansible_collections.ebpf.overlay.plugins.module_utils._hooks.wish import Attachment, Wish
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel.traffic import (
    EGRESS,
    INGRESS,
    Filter,
    Hook,
    Link,
    Qdisc,
    filter_name,
    link_pin_name,
    owner_of,
    program_of_link_pin,
)

OWNER = "ebpf.overlay"
INTERFACES = {"cali1": 11, "eth0": 13}
PROGRAMS = {f"/pins/{name}": Program(f"/pins/{name}", number, f"tag{number}") for number, name in enumerate("abc", 20)}


@dataclass
class Kernel:
    """The kernel's tables and their rules: what it refuses raises AssertionError, so does touching what is foreign."""

    wish: Wish
    qdiscs: dict[int, Qdisc] = field(default_factory=dict)
    filters: list[Filter] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    revisions: dict[Hook, int] = field(default_factory=dict)
    records: set[tuple[int, str]] = field(default_factory=set)
    dead_pins: set[str] = field(default_factory=set)
    empty_directories: set[str] = field(default_factory=set)
    interfaces: dict[str, int] = field(default_factory=lambda: dict(INTERFACES))
    tcx: bool = True
    harmless: bool = False
    next_link: int = 1000

    def look(self) -> Observed:
        heads = []
        for item in self.filters:
            head = Filter(item.ifindex, item.direction, item.priority, 0, item.protocol, item.chain, item.kind)
            if head not in heads:
                heads.append(head)
        return Observed(
            interfaces=dict(self.interfaces),
            qdiscs=dict(self.qdiscs),
            filters=tuple(heads + self.filters),
            links=tuple(self.links) if self.tcx else (),
            complete=frozenset(self.qdiscs),
            tcx=self.tcx,
            revisions=dict(self.revisions),
            records=frozenset(self.records),
            dead_pins=tuple(sorted(self.dead_pins)),
            empty_directories=tuple(sorted(self.empty_directories)),
            programs=PROGRAMS,
            codes={77: frozenset({-1}) if self.harmless else None},
        )

    def slot(self, op: Any) -> list[Filter]:
        return [
            f
            for f in self.filters
            if f.hook == op.hook and f.chain == 0 and (f.priority, f.handle) == (op.priority, op.handle)
        ]

    def apply(self, op: Any) -> None:
        if isinstance(op, do.RecordQdisc):
            self.records.add((op.ifindex, op.interface))
        elif isinstance(op, do.ForgetQdisc):
            assert (op.ifindex, op.interface) in self.records
            self.records.discard((op.ifindex, op.interface))
        elif isinstance(op, do.AddClsact):
            assert op.ifindex not in self.qdiscs, "EEXIST"
            assert (op.ifindex, op.interface) in self.records, "a kill now would leave a qdisc that nobody removes"
            self.qdiscs[op.ifindex] = Qdisc(op.ifindex, "clsact")
        elif isinstance(op, do.DeleteClsact):
            assert (op.ifindex, op.interface) in self.records, "not ours"
            assert not [f for f in self.filters if f.ifindex == op.ifindex], "somebody uses it"
            del self.qdiscs[op.ifindex]
        elif isinstance(op, (do.AddFilter, do.ReplaceFilter)):
            assert op.ifindex in self.qdiscs, "EINVAL: no qdisc"
            assert self.qdiscs[op.ifindex].serves(op.direction)
            same = [f for f in self.filters if f.hook == op.hook and f.chain == 0 and f.priority == op.priority]
            assert all((f.kind, f.protocol) == ("bpf", 3) for f in same), "EINVAL: the priority holds another kind"
            new = Filter(
                *op.hook,
                op.priority,
                op.handle,
                name=op.name,
                program_id=op.program.id,
                tag=op.program.tag,
                direct_action=True,
            )
            if isinstance(op, do.AddFilter):
                assert not self.slot(op), "EEXIST"
                self.filters.insert(0, new)
            else:
                (old,) = self.slot(op)
                assert owner_of(old.name) == self.wish.owner, "foreign"
                self.filters[self.filters.index(old)] = new
        elif isinstance(op, do.DeleteFilter):
            (old,) = self.slot(op)
            assert old.protocol == op.protocol
            assert owner_of(old.name) == self.wish.owner, "foreign"
            self.filters.remove(old)
        else:
            self.apply_to_links(op)

    def apply_to_links(self, op: Any) -> None:
        if isinstance(op, do.RemovePin):
            self.dead_pins.remove(op.pin)
        elif isinstance(op, do.RemoveDirectory):
            self.empty_directories.remove(op.path)
        elif isinstance(op, do.CreateLink):
            assert self.tcx
            assert op.revision == self.revisions.get(op.hook, 1), "ESTALE"
            assert op.program.id not in [link.program_id for link in self.links if link.hook == op.hook], "EEXIST"
            assert op.pin not in [link.pin for link in self.links] + list(self.dead_pins), "EEXIST"
            self.next_link += 1
            self.links.append(Link(*op.hook, self.next_link, op.program.id or 0, op.pin, program_of_link_pin(op.pin)))
            self.revisions[op.hook] = self.revisions.get(op.hook, 1) + 1
        else:
            (old,) = [link for link in self.links if link.pin == op.pin]
            if isinstance(op, do.UpdateLink):
                assert old.program_id == op.expected_program_id, "EPERM"
                others = [link.program_id for link in self.links if link.hook == op.hook and link is not old]
                assert op.program.id not in others, "EEXIST"
                self.links[self.links.index(old)] = replace(old, program_id=op.program.id or 0)
            else:
                self.links.remove(old)
            self.revisions[op.hook] = self.revisions.get(op.hook, 1) + 1

    def attached(self, hook: Hook, program: str) -> bool:
        """For all packets; a filter for one protocol only cannot be changed into one for all without taking it off."""
        named = [
            f
            for f in self.filters
            if f.hook == hook and f.protocol == 3 and f.name == filter_name(self.wish.owner, program)
        ]
        return bool(named) or any(link.hook == hook and link.pin and link.program == program for link in self.links)

    def foreign(self) -> tuple[Any, ...]:
        return (
            [f for f in self.filters if owner_of(f.name) != self.wish.owner or f.chain],
            [(link.id, link.program_id) for link in self.links if not link.pin],
            {i: q for i, q in self.qdiscs.items() if i not in {index for index, _name in self.records}},
        )


@st.composite
def kernels(draw: Any, wish: Wish) -> Kernel:
    """Nothing, ours, half ours, stale, foreign, broken."""
    kernel = Kernel(wish, tcx=draw(st.booleans()), harmless=draw(st.booleans()))
    for name, ifindex in INTERFACES.items():
        kind = draw(st.sampled_from([None, "clsact", "clsact", "ingress"]))
        if kind:
            kernel.qdiscs[ifindex] = Qdisc(ifindex, kind)
        if draw(st.booleans()) and kind != "ingress":
            kernel.records.add((ifindex, name))
        for direction in (INGRESS, EGRESS):
            hook = (ifindex, direction)
            if kind and kernel.qdiscs[ifindex].serves(direction):
                for priority in (1, 2):
                    list_kind, protocol = draw(st.sampled_from([("bpf", 3)] * 5 + [("bpf", 0x800), ("u32", 3)]))
                    for handle in draw(st.sets(st.sampled_from([1, 2]))):
                        name_ = draw(
                            st.sampled_from([f"{OWNER}:a", f"{OWNER}:b", f"{OWNER}:c", "acme:a", "x.o:[a]", ""])
                        )
                        program = draw(st.sampled_from([20, 21, 22, 77]))
                        kernel.filters.append(
                            Filter(
                                *hook,
                                priority,
                                handle,
                                protocol,
                                0,
                                list_kind,
                                name_ if list_kind == "bpf" else "",
                                program,
                                f"tag{program}",
                                draw(st.booleans()),
                            )
                        )
            if kernel.tcx:
                kernel.revisions[hook] = draw(st.integers(1, 9))
                programs = iter(draw(st.permutations([20, 21, 22, 77, 78])))
                known = ["a", "second a", "b", "foreign", "neighbour"]
                for program in draw(st.lists(st.sampled_from(known), max_size=4, unique=True)):
                    kernel.next_link += 1
                    short = program.split()[-1]
                    place = (wish.namespace, ifindex, name, direction, short, program != short)
                    pin = os.path.join(wish.links, link_pin_name(*place))
                    ours = (pin, short) if short in ("a", "b") else ("", "", program == "neighbour")
                    kernel.links.append(Link(*hook, kernel.next_link, next(programs), *ours))
    if draw(st.booleans()):
        kernel.records.add((99, "gone"))
    if kernel.tcx and draw(st.booleans()):
        kernel.dead_pins.add(os.path.join(wish.links, "dead"))
    if draw(st.booleans()):
        kernel.empty_directories.add("/run/ebpf-overlay")
    return kernel


attachments = st.builds(
    Attachment,
    st.sampled_from(["eth0", "cali1", "cali*", "nothing*"]),
    st.sampled_from([INGRESS, EGRESS]),
    st.sampled_from(sorted(PROGRAMS)),
    st.sampled_from([1, 2]),
    st.sampled_from([None, None, 1, 2]),
)
wishes = st.builds(
    Wish,
    st.lists(attachments, max_size=4).map(tuple),
    st.just(OWNER),
    st.booleans(),
    st.sampled_from(["auto", "clsact", "tcx"]),
    st.sampled_from([True, True, True, False]),
)
situations = wishes.flatmap(lambda wish: st.tuples(st.just(wish), kernels(wish)))
