# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m bench.compile SOURCE PROGRAM,... [FLAG...]``: bytecode and map layouts as JSON, for :mod:`bench.objects`.

A process of its own, run by the distribution's interpreter: bcc is bound to that one, and keeps LLVM's memory.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import sys

from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpf_maps as bpf
from ansible_collections.ebpf.overlay.plugins.module_utils._objects import compiler
from ansible_collections.ebpf.overlay.plugins.module_utils._objects import source as _source


def main(source: str, programs: str, *flags: str) -> None:
    bundle = _source.read_bundle(source)
    compiled = compiler.compile_source(_source.flatten(bundle), bundle.main, flags, programs.split(","))
    json.dump(
        {
            "programs": {name: base64.b64encode(code).decode() for name, code in compiled.programs.items()},
            # bcc's maps end with this process. Their descriptors stand in the bytecode.
            "maps": {name: {"fd": fd, **dataclasses.asdict(bpf.map_info(fd))} for name, fd in compiled.tables.items()},
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
