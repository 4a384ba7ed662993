# SPDX-License-Identifier: GPL-3.0-or-later
"""One run at a time on a node: two that observe, plan and apply at once would each work on what the other changes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator

from .errors import OverlayError

PATH = "/run/ebpf-overlay.lock"


@contextlib.contextmanager
def one_run(timeout: float = 30.0, path: str = PATH) -> Iterator[None]:
    """Hold the node's lock; wait up to ``timeout`` seconds for another run.

    The kernel releases it when the process ends, however it ends. The file is there only while somebody holds the lock
    (a kill leaves an empty file, the next run removes it). Not reentrant. Raises :class:`OverlayError`.
    """
    descriptor = _acquire(timeout, path)
    try:
        yield
    finally:
        # Unlinked first: whoever opened this file meanwhile notices that it is no longer the one at the path.
        with contextlib.suppress(OSError):
            os.unlink(path)
        os.close(descriptor)


def _acquire(timeout: float, path: str) -> int:
    deadline = time.monotonic() + timeout
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise OverlayError("lock this node for one run", path, error, "Run as root (become: true).") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                    return descriptor
            os.close(descriptor)
            continue
        except OSError as error:
            os.close(descriptor)
            if error.errno not in (errno.EWOULDBLOCK, errno.EINTR):
                raise OverlayError("lock this node for one run", path, error, "See `lslocks`.") from error
        if time.monotonic() >= deadline:
            raise OverlayError(
                "start",
                path,
                f"another run has been changing this node for more than {timeout:g} s",
                "Wait until it has ended (`lslocks` names the process), then run again. Nothing was changed.",
            )
        time.sleep(0.05)
