# SPDX-License-Identifier: GPL-3.0-or-later
"""Program tests need root, bcc, and no network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from prog import datapath, network
from prog.datapath import NEIGH, Datapath, Object
from prog.kernel import Node
from prog.network import Interface
from prog.processors import CPUS, on

# Toward the workload by way of its interface; and a small memory, which is faster to empty.
DEFAULT: dict[str, Any] = {"OVERLAY_REDIRECT": NEIGH, "OVERLAY_RECENT": 256}
SOAK = bool(os.environ.get("OVERLAY_SOAK"))


@pytest.fixture(scope="session")
def namespace() -> Iterator[int]:
    descriptor = network.create()
    yield descriptor
    os.close(descriptor)


@pytest.fixture(scope="module", autouse=True)
def interfaces(namespace: int) -> Iterator[Mapping[str, Interface]]:
    """The tests of this folder run inside the namespace."""
    with network.inside(namespace):
        yield network.interfaces()


@pytest.fixture(autouse=True)
def one_processor() -> Iterator[None]:
    """Test runs take place on the caller's processor, and each processor has a memory of its own."""
    on(CPUS[0])
    yield
    os.sched_setaffinity(0, CPUS)


@pytest.fixture(scope="session")
def build() -> Iterator[Callable[..., Object]]:
    """Compiles each choice of settings once."""
    built: dict[tuple[tuple[str, object], ...], Object] = {}

    def one(**defines: Any) -> Object:
        key = tuple(sorted(defines.items()))
        if key not in built:
            built[key] = datapath.build(**defines)
        return built[key]

    yield one
    for found in built.values():
        for descriptor in found.descriptors.values():
            os.close(descriptor)


@pytest.fixture
def overlay(build: Callable[..., Object], interfaces: Mapping[str, Interface]) -> Datapath:
    """The default build, on, with two workloads and one peer."""
    found = Datapath(build(**DEFAULT), interfaces)
    datapath.fill(found)
    return found


@pytest.fixture
def node(overlay: Datapath) -> Node:
    return Node(overlay)
