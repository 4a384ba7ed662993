# SPDX-License-Identifier: GPL-3.0-or-later
"""What is checked on every wiring, in order: each check goes on where the one before it ended."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from lab.api import Endpoint
from lab.cluster import FABRIC_IPV4, HTTP_PORT, NODE_PORT

from .generations import HOUR, confirmed, roll_out, taken_back
from .modules import expect, run, state
from .story import Story
from .traffic import ask, exchange, fast_path, kernel_path, retransmitted, seen, stats, tracked, ways
from .wirings import Wiring

BURST = 10


def facts(story: Story) -> None:
    """The uplinks are found, and each link that cannot be one is named with the reason."""
    story.network.build()
    wiring, told = story.network.wiring, story.gather()
    expect(story.plan["uplinks"] == sorted(wiring.uplinks), f"uplinks {story.plan['uplinks']}; {story.plan['notes']}")
    for link, words in wiring.left_out.items():
        notes = [note for note in story.plan["notes"] if note.startswith(f"link {link} is no uplink: ")]
        expect(
            len(notes) == 1 and words in notes[0], f"{link} is not told as no uplink ({words}): {story.plan['notes']}"
        )
    workload = story.network.workload
    found = {(entry["address"], entry["interface"]) for entry in told["workloads"]}
    expect(found == {(a, workload.host_interface) for a in (workload.ipv4, workload.ipv6)}, f"workloads {found}")
    story.pristine = state()


def before(story: Story) -> None:
    """Without the overlay the wiring works."""
    matrix(story)


def roll(story: Story) -> None:
    """The generation is made and confirmed; a second run has nothing to do."""
    calls = story.calls()
    run("overlay_generation", state="confirmed", number=1, attempt=roll_out(story, calls, number=1, lease=HOUR))
    confirmed(story, calls)


def traffic(story: Story) -> None:
    """Every kind of connection works as before, and those that can take the fast path do."""
    matrix(story)
    fast = story.network.wiring.fast
    fast_path(story.network, fast)
    kernel_path(story.network, [family for family in (4, 6) if family not in fast])


def change(story: Story) -> None:
    """What happens to the links under open connections is followed, without loss of one."""
    act = story.network.wiring.change
    assert act is not None
    with held(story) as connections:
        act()
        for connection in connections:
            ask(connection, 100_000)
    traffic(story)


def off(story: Story) -> None:
    """Connections survive the switch to off, without preparation."""
    with held(story) as connections:
        run("overlay_mode", mode="off")
        for connection in connections:
            ask(connection)
            port = connection.getsockname()[1]
            expect(tracked(port), f"conntrack does not know the connection from port {port}")
    kernel_path(story.network)


def removal(story: Story) -> None:
    """What was there before is what is left."""
    taken_back(story)


def matrix(story: Story) -> None:
    """Direct, by the node port, masqueraded, and several at once: all are answered, none is repeated or INVALID."""
    network = story.network
    invalid = seen(network, "invalid")
    for client, address in ways(network):
        exchange(client, address)
    if not network.wiring.master:  # a node port belongs to the default VRF
        once(network.peer, network.node.ipv4, NODE_PORT)
        once(network.peer, network.node.ipv6, NODE_PORT)
    masqueraded = seen(network, "masqueraded")
    once(network.workload, FABRIC_IPV4, HTTP_PORT)
    expect(seen(network, "masqueraded") > masqueraded, "the connection to the outside was not masqueraded")
    for client, address in ways(network):
        with ExitStack() as stack:
            opened = [stack.enter_context(client.connect(address, HTTP_PORT, 60)) for __ in range(BURST)]
            for __ in range(3):
                for connection in opened:
                    ask(connection)
            again = sum(map(retransmitted, opened))
        expect(again == 0, f"{client.name} to {address}: {again} segments were repeated")
    after = seen(network, "invalid")
    expect(after == invalid, f"{after - invalid} packets were INVALID; counted {stats()}")


def once(client: Endpoint, address: str, port: int) -> None:
    """One connection with a small answer and a large one."""
    with client.connect(address, port, 60) as connection:
        ask(connection)
        ask(connection, 300_000)
        expect(retransmitted(connection) == 0, f"{client.name} to {address} port {port}: segments were repeated")


@contextlib.contextmanager
def held(story: Story) -> Iterator[list[socket.socket]]:
    """Open connections, one for each way, that have carried something."""
    with ExitStack() as stack:
        opened = [stack.enter_context(client.connect(to, HTTP_PORT, 60)) for client, to in ways(story.network)]
        for connection in opened:
            ask(connection)
        yield opened


FOUNDATIONS = (facts, before, roll)


def checks_of(wiring: Wiring) -> list[Callable[[Story], None]]:
    """In order."""
    return [facts, before, roll, traffic, *([change] if wiring.change else []), off, removal]
