# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m prog.compile FD SOURCE [FLAG...]``: compiles and loads, hands programs and maps over, and ends.

A process of its own, run by the distribution's interpreter: bcc is bound to that one, and keeps LLVM's memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator

from ansible_collections.ebpf.overlay.plugins.module_utils._objects import compiler
from ansible_collections.ebpf.overlay.plugins.module_utils._objects import plan as _plan_object
from ansible_collections.ebpf.overlay.plugins.module_utils._objects import source as _source

PROGRAMS = ("from_uplink", "from_workload", "to_uplink", "to_workload")


def main(channel: int, source: str, flags: list[str]) -> None:
    said: list[str] = []
    _keep_what_the_compiler_says(said)
    bundle = _source.read_bundle(source)
    programs = PROGRAMS if os.path.basename(source) == "overlay.c" else (os.path.basename(source)[:-2],)
    compiled = compiler.compile_source(_source.flatten(bundle), bundle.main, flags, programs)
    fresh = dict.fromkeys(compiled.tables, _plan_object.CREATE)
    loaded = compiler.load(compiled, fresh, "", bundle.main).descriptors
    with socket.socket(fileno=channel) as stream:
        text = json.dumps({"names": list(loaded), "compiler": "".join(said)}).encode()
        socket.send_fds(stream, [len(text).to_bytes(4, "little")], list(loaded.values()))
        stream.sendall(text)


def _keep_what_the_compiler_says(said: list[str]) -> None:
    """A compilation that succeeds forgets its warnings; the test that there are none wants them."""
    captured = compiler._captured_stderr

    @contextlib.contextmanager
    def keeping(into: list[str]) -> Iterator[None]:
        with captured(into):
            yield
        said.extend(into)

    compiler._captured_stderr = keeping


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
