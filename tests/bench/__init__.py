# SPDX-License-Identifier: GPL-3.0-or-later
"""Latency through a node and cost of the programs; ``make bench``. The method is told in ``docs/performance.md``."""
