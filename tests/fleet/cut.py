# SPDX-License-Identifier: GPL-3.0-or-later
"""Cuts the way to a node as a firewall does that lost its rules: packets are dropped, nothing is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from lab.api import Node

_RULES = """
table inet cut {
  chain in { type filter hook input priority -400; tcp dport 22 drop; }
  chain out { type filter hook output priority -400; tcp sport 22 drop; }
}
"""


def cut(node: Node) -> None:
    """From now on nobody reaches the node's SSH server, over connections that exist neither."""
    node.host_run(["nft", "-f", "-"], stdin=_RULES)


def mend(node: Node) -> None:
    node.host_run(["nft", "delete", "table", "inet", "cut"], check=False)


@contextlib.contextmanager
def cut_at(node: Node, task: str, batch: int = 1) -> Iterator[Callable[[str], None]]:
    """To be told of each task that begins; cuts the node at that one, in that batch. The end of the block mends it."""
    left = batch

    def begun(name: str) -> None:
        nonlocal left
        if name == task:
            left -= 1
            if left == 0:
                cut(node)

    try:
        yield begun
        assert left <= 0, f"task {task} did not begin in batch {batch}"
    finally:
        mend(node)
