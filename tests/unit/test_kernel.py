# SPDX-License-Identifier: GPL-3.0-or-later
"""What a kernel can do, and how packets are handed to workloads there."""

from __future__ import annotations

import pytest

from ansible_collections.ebpf.overlay.plugins.module_utils._kernel import features


@pytest.mark.parametrize(
    ("version", "redirect"),
    [
        ((5, 10, 240), "neigh"),
        ((6, 1, 140), "peer"),
        ((6, 6, 90), "neigh"),
        ((6, 6, 91), "peer"),
        ((6, 12, 28), "neigh"),
        ((6, 12, 43), "peer"),
        ((6, 13, 9), "neigh"),
        ((6, 18, 0), "peer"),
        ((7, 2, 0), "peer"),
    ],
)
def test_redirect_peer_is_chosen_where_it_is_safe(version: tuple[int, int, int], redirect: str) -> None:
    assert features.choose_redirect(version) == redirect
    assert features.capabilities(version)["redirect"] == redirect


def test_a_kernel_that_is_not_told_can_nothing() -> None:
    found = features.capabilities(features.stable_version("unknown", ""))
    assert found == {
        "supported": False, "redirect_peer_safe": False, "redirect": "neigh", "check_mtu": False, "tcx": False,
    }  # fmt: skip
