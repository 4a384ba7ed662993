# SPDX-License-Identifier: GPL-3.0-or-later
"""Who did what on this node, and when: a few hundred lines beside the records, and the system's log.

What cannot be written is left out. A log stops nobody, least of all who switches off.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import syslog
from datetime import datetime, timezone
from typing import Any

from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.layout import STATE_DIR

NAME = "log.jsonl"
LARGEST = 131072  # bytes; the older half goes then


def note(what: str, root: str = STATE_DIR, **more: Any) -> None:
    """One line, with the user. ``what``: a sentence without its end. ``more``: such as the generation.

    On a node without records nothing is kept but the system's log.
    """
    told = {name: value for name, value in more.items() if value not in ("", None)}
    entry = {"when": datetime.now(timezone.utc).isoformat(timespec="seconds"), "user": user(), "what": what, **told}
    with contextlib.suppress(Exception):
        details = "".join(f", {name} {value}" for name, value in told.items())
        syslog.syslog(syslog.LOG_NOTICE, f"ebpf-overlay: {what} (by {entry['user']}{details})")
    with contextlib.suppress(Exception):
        _append(os.path.join(root, NAME), json.dumps(entry).encode("utf-8") + b"\n")


def read(count: int, root: str = STATE_DIR) -> list[dict[str, Any]]:
    """The latest ``count`` entries, the oldest first. A line that a full disk cut off is left out."""
    try:
        with open(os.path.join(root, NAME), encoding="utf-8", errors="replace") as stream:
            lines = stream.read().splitlines()
    except OSError:
        return []
    entries = []
    for line in lines[-count:] if count else ():
        with contextlib.suppress(ValueError):
            entries.append(json.loads(line))
    return entries


def user() -> str:
    """Who is behind this process: who called sudo, else who logged in, else whose process it is."""
    with contextlib.suppress(Exception):
        if os.environ.get("SUDO_USER"):
            return os.environ["SUDO_USER"]
        with open("/proc/self/loginuid", encoding="ascii") as stream:
            number = int(stream.read())
        return pwd.getpwuid(number if number != 0xFFFFFFFF else os.getuid()).pw_name
    return str(os.getuid())


def _append(path: str, line: bytes) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "r+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_size > LARGEST:
            stream.seek(-LARGEST // 2, os.SEEK_END)
            stream.readline()
            kept = stream.read()
            stream.truncate(0)
            line = kept + line
        os.write(descriptor, line)
