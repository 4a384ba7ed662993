# SPDX-License-Identifier: GPL-3.0-or-later
"""What every module finds, whoever became root in whichever way."""

from __future__ import annotations

import pytest

from ansible_collections.ebpf.overlay.plugins.module_utils._core.shell import complete_path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/usr/local/bin:/usr/bin:/bin", "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"),
        ("/opt/own/sbin:/sbin", "/opt/own/sbin:/sbin:/usr/local/sbin:/usr/sbin:/usr/bin:/bin"),
        ("", "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"),
    ],
)
def test_the_folders_of_the_system_come_after_those_of_the_user(path: str, expected: str) -> None:
    assert complete_path(path) == expected
    assert complete_path(expected) == expected
