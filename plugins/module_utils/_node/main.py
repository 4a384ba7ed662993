# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `overlayctl`: arguments in, words or JSON out, an exit status that tells how it went."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterable
from typing import Any, Callable

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.libraries import complete_path
from ansible_collections.ebpf.overlay.plugins.module_utils._generations import command as installed

from . import commands, documents
from .arguments import NAME, check, parser
from .text import WORDS

MEMORY = "/proc/self/fd/"
_AGAIN = "import sys; sys.path.insert(0, sys.argv.pop(1)); from {} import main; sys.exit(main(sys.argv[1:]))"


def code() -> str:
    """The archive that this program is."""
    return str(getattr(sys.modules[__name__].__spec__.loader, "archive", sys.argv[0]))  # type: ignore[union-attr]


def go_on_from_memory(arguments: list[str]) -> None:
    """Generation 0 removes the file of this program while it runs, and what it imports then would be gone."""
    if code().startswith(MEMORY):
        return
    descriptor = os.memfd_create(NAME, 0)
    with open(descriptor, "wb", closefd=False) as stream:
        stream.write(installed.content(code()))
    program = [sys.executable, "-c", _AGAIN.format(__name__), f"{MEMORY}{descriptor}"]
    os.execv(sys.executable, [*program, *arguments])


ONCE: dict[str, Callable[[Namespace, Callable[[str], None]], commands.Answer]] = {
    "status": commands.status,
    "explain": commands.explain,
    "flows": commands.flows,
    "suspend": commands.suspend,
    "cut": commands.cut,
    "log": commands.show_log,
    "on": commands.switch_on,
    "drain": commands.drain,
    "off": commands.switch_off,
    "rollback": lambda given, warn: commands.rollback(code, given, warn),
    "boot": lambda given, warn: commands.restart(code, given, warn),
    "reconcile": lambda given, warn: commands.reconcile(code, given, warn),
}


def main(arguments: list[str]) -> int:
    made = parser()
    given = made.parse_args(arguments)
    check(made, given)
    if given.command in ("man", "completion"):
        sys.stdout.write((documents.man if given.command == "man" else documents.completion)(made))
        return commands.DONE
    os.environ["PATH"] = complete_path(os.environ.get("PATH", ""))
    try:
        if os.geteuid() != 0:
            raise OverlayError("look at the overlay", "this node", "this is not root", f"Call it by sudo {NAME}.")
        if given.command == "rollback":
            go_on_from_memory(arguments)
        return _answer(given)
    except OverlayError as error:
        if given.json:
            _tell(json.dumps({"failed": True, "msg": str(error), "error": error.parts()}))
        _warn(str(error))
        return commands.FAILED
    except (KeyboardInterrupt, BrokenPipeError):
        # Whoever reads has gone; the interpreter must not find that out once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return commands.DONE


def _answer(given: Namespace) -> int:
    status = commands.DONE
    for found, latest in _answers(given):
        status = latest
        _tell(json.dumps(found, default=str) if given.json else "\n".join(WORDS[given.command](found)))
    return status


def _answers(given: Namespace) -> Iterable[tuple[dict[str, Any], int]]:
    if given.command == "top":
        return commands.top(given, _warn)
    if given.command == "explain" and given.follow:
        return commands.follow(given, _warn)
    return [ONCE[given.command](given, _warn)]


def _tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _warn(sentence: str) -> None:
    sys.stderr.write(f"{NAME}: {sentence}\n")
