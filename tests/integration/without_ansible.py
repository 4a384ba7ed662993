# SPDX-License-Identifier: GPL-3.0-or-later
"""Attach a program, fill a map, take both back: the resources of two modules, without Ansible (docs/development.md)."""

import sys

sys.modules["ansible"] = None  # type: ignore[assignment] # import ansible fails from here on

from ansible_collections.ebpf.overlay.plugins.module_utils._core.resource import converge, with_defaults  # noqa: E402
from ansible_collections.ebpf.overlay.plugins.module_utils._hooks.resource import SPEC as HOOKS  # noqa: E402
from ansible_collections.ebpf.overlay.plugins.module_utils._hooks.resource import Attachments  # noqa: E402
from ansible_collections.ebpf.overlay.plugins.module_utils._maps.resource import SPEC as MAPS  # noqa: E402
from ansible_collections.ebpf.overlay.plugins.module_utils._maps.resource import opened_entries  # noqa: E402

program, map_, interface = sys.argv[1:]
attachments = {"attachments": [{"interface": interface, "program": program}]}
entries = {"map": map_, "key": "u32", "value": "u32", "entries": [{"key": 1, "value": 7}]}
for state in ("present", "absent"):
    attached = converge(Attachments(with_defaults(HOOKS, {**attachments, "state": state}), print), False, print)
    with opened_entries(with_defaults(MAPS, {**entries, "state": state})) as filled:
        written = converge(filled, False, print)
    print(state, len(attached.operations) > 0, len(written.operations) > 0)
