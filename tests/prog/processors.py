# SPDX-License-Identifier: GPL-3.0-or-later
"""Chooses the processor that programs run on."""

from __future__ import annotations

import os

CPUS = sorted(os.sched_getaffinity(0))


def on(cpu: int) -> None:
    os.sched_setaffinity(0, {cpu})
