# SPDX-License-Identifier: GPL-3.0-or-later
"""Clusters wired the way real ones are: all traffic goes on as without the overlay, and what can be fast is fast.

The tests of this file build on one another, in this order, for each wiring.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from fleet import play, state
from fleet.datapath import AT_ONCE, Cluster, full
from fleet.exchanges import Exchange, Outcome, carry_out, not_fast, servers, views
from fleet.traffic import Conversations, connection
from lab import links, paths, wirings
from lab.api import Lab, Node, Workload, wait_until
from lab.cluster import HTTP_PORT, WorkloadPlan
from lab.network import destroy_namespace
from lab.paths import PREFIX
from lab.wirings import bgp, ecmp, ptp
from lab.wirings.direct import link_of_route

from .conftest import bring_up, take_down

FAMILIES = (4, 6)
# Of the times that a node could take a connection to the fast path, how many it must.
SHARES = {"direct": 1.0, "vxlan": 1.0, "ecmp": 0.95, "bridge": 1.0, "ptp": 1.0, "bgp": 1.0, "tunnel": 0.0}
# What a dry run says of what stays in the kernel's path.
TOLD = {"tunnel": "link tunl0 is no uplink: its packets have no Ethernet header"}


@dataclass
class Story:
    """What earlier tests saw."""

    name: str
    lab: Lab
    before: dict[str, state.NodeState] = field(default_factory=dict)
    without: Outcome | None = None


@pytest.fixture(scope="module", params=wirings.NAMES)
def story(request: pytest.FixtureRequest) -> Iterator[Story]:
    lab = bring_up("ready", full(3, 2), 2, "--wiring", request.param)
    with servers(lab):
        yield Story(request.param, lab)
    take_down()


def traffic(story: Story, cluster: Cluster | None = None) -> Outcome:
    outcome = carry_out(story.lab, FAMILIES, full(50, 10), full(20, 2), cluster)
    print(f"{story.name}, overlay {'on' if cluster else 'off'}: {outcome}")
    return outcome


def test_traffic_without_the_overlay(story: Story) -> None:
    story.without = traffic(story)
    assert not story.without.report.dead
    assert not story.without.report.waiting
    assert not story.without.invalid


def test_the_dry_run_says_what_the_run_does(story: Story) -> None:
    story.before = {node.name: state.observe(node) for node in story.lab.nodes.values()}
    predicted = play.playbook("site.yml", "--check", variables=AT_ONCE).succeeded()
    assert {node.name: state.observe(node) for node in story.lab.nodes.values()} == story.before
    applied = play.playbook("site.yml", variables=AT_ONCE).succeeded()
    assert applied.changes == predicted.changes
    assert {host for host, _task in applied.changes} == set(story.before)
    for name in story.before:
        told = " ".join(predicted.output.split())
        assert f"{name}: {TOLD[story.name]}" in told if story.name in TOLD else "is no uplink" not in told


def unharmed(story: Story) -> None:
    """All traffic, as well as without the overlay, and what can be fast is."""
    assert story.without is not None
    outcome = traffic(story, Cluster(story.lab))
    assert not outcome.report.dead
    assert not outcome.report.waiting
    assert outcome.report.messages > 0
    assert outcome.retransmitted <= story.without.retransmitted
    assert not outcome.invalid
    # A busy machine is slow without the overlay too.
    assert outcome.report.worst < max(0.2, story.without.report.worst)
    assert outcome.handshake < max(0.2, story.without.handshake)
    assert outcome.eligible > 0
    assert outcome.share >= SHARES[story.name], "\n".join(outcome.slow)
    assert SHARES[story.name] > 0 or outcome.share == 0


def test_traffic_with_the_overlay(story: Story) -> None:
    unharmed(story)
    if change := CHANGES.get(story.name):
        change(story)


def ecmp_by_addresses_alone(story: Story) -> None:
    for end in (story.lab.fabric, *story.lab.nodes.values()):
        ecmp.hash_by_ports(end.name, 0)
    unharmed(story)


def bgp_with_a_new_block(story: Story) -> None:
    """Its workload is reached by the kernel's path at once, and by the fast one after the next run."""
    here, client = story.lab.nodes[1], story.lab.workload(2, 1)
    server = here.workloads[1]
    for block, address in (("10.244.1.64/26", "10.244.1.70"), ("fd00:10:244:1::40/122", "fd00:10:244:1::46")):
        add_address(here, server, address)
        bgp.add_block(here.plan, block)
        wait_until(lambda block=block: link_of_route(client_node(client), block) != "", 10, f"a route to {block}")  # type: ignore[misc]
        assert client.http_get(address)["workload"] == server.name
        assert not fast(story, client, server, address)
    play.playbook("site.yml", variables=AT_ONCE).succeeded()
    for address in ("10.244.1.70", "fd00:10:244:1::46"):
        assert fast(story, client, server, address)


def client_node(client: Workload) -> str:
    return f"{PREFIX}n{client.plan.node_number}"


def add_address(node: Node, workload: Workload, address: str) -> None:
    length, more = ("128", ["nodad"]) if ":" in address else ("32", [])
    workload.run(["ip", "address", "add", f"{address}/{length}", "dev", "eth0", *more])
    node.host_run(["ip", "route", "add", f"{address}/{length}", "dev", workload.host_interface])


def fast(story: Story, client: Workload, server: Workload, address: str) -> bool:
    """Whether a new connection takes the fast path both ways, on both nodes."""
    cluster = Cluster(story.lab)
    exchange = Exchange("workloads", client, address, HTTP_PORT, server, whole=True, far=True)
    with Conversations() as live:
        end = live.open(client, server, HTTP_PORT, address=address, http=True)
        time.sleep(2)
        slow = [
            line
            for number, flow in views(exchange, *end).items()
            for line in not_fast(cluster.datapaths[number], [flow])
        ]
        live.report().unharmed()
    assert len(slow) in (0, 2), slow
    return not slow


def ptp_with_workloads_that_come_and_go(story: Story) -> None:
    """A third workload is removed and added again by the plugin, under traffic of the others and with the maps full of
    what it was before: it is always reached, nobody else is harmed, and nothing stays behind."""
    node, client, other = story.lab.nodes[1], story.lab.workload(2, 1), story.lab.workload(1, 1)
    third = Workload(WorkloadPlan(1, 3), wirings.named("ptp"))
    before = json.loads(node.host_run(["ip", "-j", "link"]))
    reserved = sorted((paths.RUN_DIR / "cni").rglob("*"))
    links.new_namespace(third.name, {})
    try:
        ptp.cni("ADD", node.plan, third.plan)
        play.playbook("site.yml", variables=AT_ONCE).succeeded()
        assert third.ipv4 in addresses(story)
        with Conversations(pause=0.01) as live:
            for family in FAMILIES:
                live.open(client, other, HTTP_PORT, family=family, http=True)
            for __ in range(full(500, 10)):
                ptp.cni("DEL", node.plan, third.plan)
                ptp.cni("ADD", node.plan, third.plan)
                for address in (third.ipv4, third.ipv6):
                    for end in connection(client, third, address, HTTP_PORT):
                        end.close()
            # The plugin's processes keep the servers waiting. What is lost is sent again, and none was.
            live.report().unharmed(1)
        ptp.cni("DEL", node.plan, third.plan)
    finally:
        destroy_namespace(third.name)
    assert [link["ifname"] for link in json.loads(node.host_run(["ip", "-j", "link"]))] == [
        link["ifname"] for link in before
    ]
    assert sorted((paths.RUN_DIR / "cni").rglob("*")) == reserved
    play.playbook("site.yml", variables=AT_ONCE).succeeded()
    assert third.ipv4 not in addresses(story)


def addresses(story: Story) -> set[str]:
    """Of the workloads that node 1's datapath knows."""
    return {key for key, _value in Cluster(story.lab).datapaths[1].entries("ifindex_map")}


CHANGES: dict[str, Callable[[Story], None]] = {
    "ecmp": ecmp_by_addresses_alone,
    "bgp": bgp_with_a_new_block,
    "ptp": ptp_with_workloads_that_come_and_go,
}


@pytest.mark.usefixtures("story")
def test_the_second_run_changes_nothing() -> None:
    assert play.playbook("site.yml", variables=AT_ONCE).succeeded().changes == set()


def test_the_rollback_leaves_the_nodes_as_they_were(story: Story) -> None:
    play.playbook("rollback.yml", variables={"overlay_rollback_to": 0}).succeeded()
    for node in story.lab.nodes.values():
        state.assert_same(state.observe(node), story.before[node.name])
