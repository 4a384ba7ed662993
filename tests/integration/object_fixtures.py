# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the tests of ``bpf_object``, loaded by them as a pytest plugin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.bpf_object_node import Node, node
from integration.object_source import MAIN, SIZES, TABLES


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "main.c").write_text(MAIN)
    (tmp_path / "tables.h").write_text(TABLES)
    (tmp_path / "sizes.h").write_text(SIZES)
    return tmp_path / "main.c"


@pytest.fixture
def target() -> Iterator[Node]:
    with node() as fresh:
        yield fresh


@pytest.fixture
def ready() -> Iterator[Node]:
    """A node whose modules find the compiler imported: only time is saved by that."""
    with node(preload=("bcc",)) as fresh:
        yield fresh
