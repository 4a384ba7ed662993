#!/usr/bin/python
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Mount the file system that BPF pins live on, and unmount it only if it was mounted here."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bpffs
version_added: "1.0.0"
short_description: Mount and unmount a BPF file system
description:
  - Mounts a bpffs where none is mounted. One that is there already, for example because systemd mounted it, is left
    as it is.
  - Unmounts it only if this module mounted it and nothing is pinned on it any more. Who mounted it is told by the
    mount's source, C(ebpf-overlay) in C(findmnt), so no record can be lost or outlive the mount.
  - A bpffs that is mounted twice, or is hidden by a later mount, is an error, since its pins are out of sight then.
notes:
  - The mount is one of the running system; it is gone after a reboot.
options:
  path:
    description: The folder to mount on. It must exist.
    type: path
    default: /sys/fs/bpf
  state:
    description:
      - V(mounted) has a bpffs mounted on O(path).
      - V(unmounted) has the one unmounted that this module mounted. Any other stays.
    type: str
    choices: [mounted, unmounted]
    default: mounted
  emptied:
    description:
      - With V(unmounted), folders on it that an earlier task empties. Pins below them do not keep it mounted in a dry
        run; in a real run it is an error if they are still there.
    type: list
    elements: path
    default: []
extends_documentation_fragment:
  - ebpf.overlay.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
seealso:
  - module: ebpf.overlay.bpf_object
author:
  - ebpf.overlay maintainers (@ebpf-overlay)
"""

EXAMPLES = r"""
- name: Have a place for pins
  ebpf.overlay.bpffs:

- name: Take it away again, if it was not there before and nobody uses it
  ebpf.overlay.bpffs:
    state: unmounted
"""

RETURN = r"""
path:
  description: The folder.
  returned: success
  type: str
  sample: /sys/fs/bpf
mounted:
  description: Whether a bpffs is mounted there after the run (in a dry run, whether one would be).
  returned: success
  type: bool
  sample: true
ours:
  description: Whether it is (or would be) one that this module mounted.
  returned: success
  type: bool
  sample: true
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.lock import one_run
from ansible_collections.ebpf.overlay.plugins.module_utils._core.plan import Plan
from ansible_collections.ebpf.overlay.plugins.module_utils._core.shell import converge, run
from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import bpffs as _bpffs


@dataclass(frozen=True)
class Observed:
    """``source``: that of the bpffs mounted here, None if there is none. ``pins``: what is still on it."""

    source: str | None
    pins: tuple[str, ...] = ()


@dataclass(frozen=True)
class MountBpffs:
    pass


@dataclass(frozen=True)
class UnmountBpffs:
    pass


def observe(path: str) -> Observed:
    mount = _bpffs.find_bpffs(path)
    if not os.path.isdir(path):
        raise OverlayError("look at the bpffs", path, "there is no such folder", "Make the folder first.")
    if mount is None or mount.point != path:
        return Observed(None)
    # A name with a dot is the kernel's own (maps.debug, progs.debug): nobody else can make one.
    mark = os.path.join(path, _bpffs.MARK)
    files = (os.path.join(folder, name) for folder, _folders, names in os.walk(path) for name in names)
    pins = sorted(name for name in files if "." not in name[len(path) :] and name != mark)
    return Observed(_bpffs.source(mount), tuple(pins))


def plan(path: str, state: str, emptied: Sequence[str], observed: Observed) -> Plan:
    operations: tuple[Any, ...] = ()
    warnings: tuple[str, ...] = ()
    unmet: tuple[str, ...] = ()
    after = observed.source
    if state == "mounted" and observed.source is None:
        operations, after = (MountBpffs(),), _bpffs.SOURCE
    elif state == "unmounted" and observed.source == _bpffs.SOURCE:
        going = tuple(f"{os.path.normpath(folder)}/" for folder in emptied)
        staying = [pin for pin in observed.pins if not pin.startswith(going)]
        if staying:
            warnings = (f"The bpffs on {path} stays mounted: {staying[0]} is still pinned on it.",)
        else:
            operations, after = (UnmountBpffs(),), None
            unmet = tuple(f"The bpffs on {path} is not empty: {pin} is pinned on it." for pin in observed.pins[:1])
    return Plan(
        operations,
        before=_text(path, observed.source),
        after=_text(path, after),
        unmet=unmet,
        warnings=warnings,
        result={"path": path, "mounted": after is not None, "ours": after == _bpffs.SOURCE},
    )


def _text(path: str, source: str | None) -> str:
    return f"bpffs on {path}, source {source}\n" if source is not None else ""


def apply(path: str, operations: tuple[Any, ...]) -> None:
    for operation in operations:
        if isinstance(operation, MountBpffs):
            _bpffs.mount(path)
        else:
            _bpffs.unmount(path)


def ensure(module: AnsibleModule) -> dict[str, Any]:
    path, state = os.path.normpath(module.params["path"]), module.params["state"]
    with one_run():
        planned = converge(
            module,
            lambda: observe(path),
            lambda observed: plan(path, state, module.params["emptied"], observed),
            lambda operations: apply(path, operations),
        )
    return {**planned.result, "changed": bool(planned.operations), "diff": planned.diff}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/sys/fs/bpf"},
            "state": {"type": "str", "choices": ["mounted", "unmounted"], "default": "mounted"},
            "emptied": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    run(module, lambda: ensure(module))


if __name__ == "__main__":
    main()
