# SPDX-License-Identifier: GPL-3.0-or-later
"""TCX links (kernel 6.6): what runs on a hook, and our own links, which live by their pins.

``<bpffs>/ebpf-overlay/links/OWNER/NAMESPACE-IFINDEX-INTERFACE-DIRECTION-PROGRAM``, each part escaped (``escape``).
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass

from . import bpf_maps as bpf
from .traffic import (
    DIRECTIONS,
    EGRESS,
    INGRESS,
    Link,
    escape,
    program_of_link_pin,
)

LOOPBACK = 1
ATTACH_TYPE = {INGRESS: bpf.ATTACH_TCX_INGRESS, EGRESS: bpf.ATTACH_TCX_EGRESS}
DEPTH = 3
"""Folders of ours below the bpffs: ``ebpf-overlay/links/OWNER``."""


@dataclass(frozen=True)
class PinnedLink:
    """``ifindex`` 0: the link lost its interface. It may be in another namespace: look for ``id`` on the hook."""

    pin: str
    program: str
    id: int
    ifindex: int
    direction: str


def links_folder(bpffs: str, owner: str) -> str:
    return os.path.join(bpffs, "ebpf-overlay", "links", escape(owner))


def supported() -> bool:
    """Asked by a query that changes nothing: EINVAL where the attach type is unknown. Raises OSError (EPERM)."""
    try:
        bpf.prog_query_tcx(LOOPBACK, ATTACH_TYPE[INGRESS])
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def links(ifindex: int, direction: str, ours: dict[int, PinnedLink]) -> tuple[int, list[Link]]:
    """(revision, links in running order) of one hook; ``ours`` by link id. Nothing, for an interface that is gone."""
    try:
        revision, running = bpf.prog_query_tcx(ifindex, ATTACH_TYPE[direction])
    except OSError as error:
        if error.errno == errno.ENODEV:
            return 0, []
        raise
    found = []
    for program_id, link_id in running:
        pinned = ours.get(link_id) if link_id else None
        place = (ifindex, direction, link_id, program_id)
        found.append(Link(*place, pinned.pin, pinned.program) if pinned else Link(*place))
    return revision, found


def pinned_links(folder: str) -> list[PinnedLink]:
    """The links pinned in an owner's folder; whatever else is in there is not ours and not mentioned."""
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = []
    for name in names:
        pin = os.path.join(folder, name)
        if os.path.isdir(pin):  # bpf(2) says EACCES, as for a pin that we may not open
            continue
        with contextlib.suppress(FileNotFoundError):
            descriptor = bpf.obj_get(pin)
            try:
                if "link" not in bpf.object_kind(descriptor):
                    continue
                info = bpf.link_info(descriptor)
            finally:
                os.close(descriptor)
            direction = next((way for way in DIRECTIONS if ATTACH_TYPE[way] == info.attach_type), "")
            if info.type == bpf.LINK_TYPE_TCX and direction:
                found.append(PinnedLink(pin, program_of_link_pin(name), info.id, info.ifindex, direction))
    return found


def neighbours(folder: str) -> set[int]:
    """The ids of the links that other owners have pinned in the collection's way, beside an owner's ``folder``."""
    above = os.path.dirname(folder)
    try:
        owners = os.listdir(above)
    except (FileNotFoundError, NotADirectoryError):
        return set()
    return {link.id for owner in owners for link in pinned_links(os.path.join(above, owner))}


def empty_folders(folder: str) -> list[str]:
    """Our folders with nothing in them but each other, innermost first."""
    found: list[str] = []
    for path in _chain(folder):
        try:
            inside = [os.path.join(path, name) for name in os.listdir(path)]
        except OSError:
            continue
        if set(inside) - set(found):
            break
        found.append(path)
    return found


def create(pin: str, program_fd: int, ifindex: int, direction: str, revision: int) -> None:
    """Attach at the tail of the hook, then pin. A kill in between leaves nothing: the link ends with its descriptor.

    ESTALE when the hook is no longer at ``revision``, EEXIST when the program is on it already.
    """
    os.makedirs(os.path.dirname(pin), mode=0o700, exist_ok=True)
    flags = bpf.F_AFTER  # after nothing in particular: the tail
    descriptor = bpf.link_create_tcx(program_fd, ifindex, ATTACH_TYPE[direction], 0, flags, revision)
    try:
        bpf.obj_pin(descriptor, pin)
    finally:
        os.close(descriptor)


def update(pin: str, program_fd: int, expected_program_id: int) -> None:
    """Swap a link's program in place. ESTALE when it runs another than expected, ENOLINK without interface."""
    descriptor = bpf.obj_get(pin)
    try:
        expected = bpf.prog_fd_by_id(expected_program_id)
        try:
            bpf.link_update(descriptor, program_fd, expected)
        finally:
            os.close(expected)
    except (PermissionError, FileNotFoundError) as error:
        # tcx_link_update says EPERM for another program, and the expected one may be gone by then.
        if bpf.link_info(descriptor).prog_id == expected_program_id:
            raise
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from error
    finally:
        os.close(descriptor)


def remove(pin: str) -> None:
    """Detach, so that a descriptor which somebody else holds keeps nothing running; then drop the pin."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = bpf.obj_get(pin)
        try:
            bpf.link_detach(descriptor)
        finally:
            os.close(descriptor)
        os.unlink(pin)
    remove_empty_folders(os.path.dirname(pin))


def remove_empty_folders(folder: str) -> None:
    for path in _chain(folder):
        with contextlib.suppress(OSError):
            os.rmdir(path)


def _chain(folder: str) -> list[str]:
    chain = [folder]
    while len(chain) < DEPTH:
        chain.append(os.path.dirname(chain[-1]))
    return chain
