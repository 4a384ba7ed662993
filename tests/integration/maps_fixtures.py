# SPDX-License-Identifier: GPL-3.0-or-later
"""The fixture of the tests of ``bpf_map_sync``, loaded by them as a pytest plugin."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from integration.maps_kernel import Kernel


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    found = Kernel()
    yield found
    found.close()
