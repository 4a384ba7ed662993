# SPDX-License-Identifier: GPL-3.0-or-later
"""What filters need of ansible-core: variables of hosts, and its kind of error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.ebpf.overlay.plugins.module_utils._core.errors import OverlayError


def raw_variables(hostvars: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Variables as they are: what a module returned is no template, and looking for one in all of it takes its time."""
    if name not in hostvars:
        return {}
    raw: Mapping[str, Any] = getattr(hostvars, "raw_get", hostvars.__getitem__)(name)
    return raw


def or_filter_error(function: Callable[[], Any]) -> Any:
    """What ``function`` returns. Raises AnsibleFilterError in place of OverlayError."""
    try:
        return function()
    except OverlayError as error:
        raise AnsibleFilterError(str(error)) from error
