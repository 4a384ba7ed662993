# SPDX-License-Identifier: GPL-3.0-or-later
"""The calls of a generation as the resources that they are.

Not imported by any module: only the program that is kept with a generation makes calls by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Callable

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError
from ansible_collections.ebpf.overlay.plugins.module_utils._core.resource import Params, Warn
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath import liberal, switch
from ansible_collections.ebpf.overlay.plugins.module_utils._datapath.layout import schemas_at
from ansible_collections.ebpf.overlay.plugins.module_utils._hooks import resource as hooks
from ansible_collections.ebpf.overlay.plugins.module_utils._maps import resource as maps
from ansible_collections.ebpf.overlay.plugins.module_utils._objects import mount
from ansible_collections.ebpf.overlay.plugins.module_utils._objects import resource as objects

from . import command, packages
from .model import Call


@dataclass(frozen=True)
class Kind:
    """What a module is made of: its argument specification, and what it does.

    The specification is a format on disk: newer code takes calls from the record of a generation that an earlier
    release wrote. Later releases may add options that have a default.
    """

    spec: Mapping[str, Any]
    ensure: Callable[[Params, bool, Warn], dict[str, Any]]
    required_if: Sequence[Any] = ()


KINDS: Mapping[str, Kind] = {
    "bpf_map_sync": Kind(
        maps.SPEC, lambda params, check, warn: maps.ensure(params, check, warn, schemas_at(params["map"]))
    ),
    "bpf_object": Kind(objects.SPEC, objects.ensure, objects.REQUIRED_IF),
    "bpffs": Kind(mount.SPEC, mount.ensure),
    "overlay_conntrack": Kind(liberal.SPEC, liberal.ensure),
    "overlay_ctl": Kind(command.SPEC, command.ensure),
    "overlay_mode": Kind(switch.SPEC, switch.ensure),
    "overlay_packages": Kind(packages.SPEC, packages.ensure),
    "tc_bpf_attach": Kind(hooks.SPEC, hooks.ensure),
}


def perform(call: Call, check: bool, detailed: bool = False) -> dict[str, Any]:
    """Do what the module would do, on the same terms. Returns its result: ``failed`` and ``msg`` where it failed.

    ``detailed``: with its ``changes``, those that differ, as data.
    """
    kind, warnings = KINDS.get(call["module"]), list[str]()
    if kind is None:
        return {"failed": True, "msg": f"{call['module']} is no call that this release knows; it knows {sorted(KINDS)}"}
    checked = ArgumentSpecValidator(dict(kind.spec), required_if=kind.required_if).validate(dict(call["arguments"]))
    if checked.error_messages:
        return {"failed": True, "msg": f"{call['module']}: {'; '.join(checked.error_messages)}"}
    try:
        result = kind.ensure(checked.validated_parameters, check, warnings.append)
    except OverlayError as error:
        return {"failed": True, "msg": str(error), "error": error.parts()}
    except Exception as error:  # the other calls tell their part all the same
        return {"failed": True, "msg": f"{call['module']}: {error!r}"}
    changes = result.pop("changes", ())
    told = {"changes": [asdict(change) for change in changes if change.differs]} if detailed else {}
    return {**result, **told, "warnings": warnings}
