# SPDX-License-Identifier: GPL-3.0-or-later
"""Chooses the processor that a program runs on, and changes what processors remember flows by."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from prog import datapath
from prog.datapath import Datapath
from prog.story import Connection

CPUS = sorted(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def affinity() -> Iterator[None]:
    yield
    os.sched_setaffinity(0, CPUS)


def on(cpu: int) -> None:
    os.sched_setaffinity(0, {cpu})


def narrower(overlay: Datapath, one: Connection) -> None:
    """From now on, flows are made with an MTU of 1300 on both sides."""
    for address in (one.workload, one.other):
        overlay.put("ifindex_map", address, {**overlay.get("ifindex_map", address), "mtu": 1300})
    prefix = "10.244.2.0/24" if one.family == 4 else "fd00:10:244:2::/64"
    overlay.put("peers", prefix, {"uplink": "ens47f1", "mtu": 1300, "next_hop": datapath.PEERS[prefix]})


def begin_epoch(overlay: Datapath, name: str) -> None:
    place = overlay.interfaces[name].ifindex
    overlay.put("device_epochs", place, overlay.get("device_epochs", place) + 1)
    overlay.put("devices", place, name)
