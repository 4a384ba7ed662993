# SPDX-License-Identifier: GPL-3.0-or-later
"""The probe of a roll-out: its own connections take the fast path in both roles, or the node goes back.

The tests of this file build on one another, in this order.
"""

from __future__ import annotations

from typing import Any

import pytest
from fleet import play
from fleet.datapath import AT_ONCE, Datapath
from fleet.generation import history
from lab.api import Lab
from lab.paths import PREFIX

SITE = "site.yml"
CONNECT = "Connect to the services of this node's workloads from another node"
READ = "Read the counters again"
CONNECT_OUT = "Connect from a workload of this node to one of another node"
# Each changes what the node must be, so that the run rolls out.
WITH_ECHO = {**AT_ONCE, "overlay_services": [{"port": 8080}, {"port": 8081}]}
WITH_NOBODY = {**AT_ONCE, "overlay_services": [{"port": 8080}, {"port": 9}]}


def told(done: play.Run) -> str:
    return " ".join(done.output.split()).replace("''", "'")


@pytest.fixture(scope="module")
def lab(ready_lab: Lab) -> Lab:
    return ready_lab


@pytest.mark.usefixtures("lab")
def test_the_probes_own_connections_take_the_fast_path_in_both_roles() -> None:
    done = play.playbook(SITE, variables=AT_ONCE).succeeded()
    for host in (f"{PREFIX}n1", f"{PREFIX}n2", f"{PREFIX}n3"):
        made = done.of(CONNECT, host)[0].result["connections"]
        seen = done.of(READ, host)[0].result["flows"]
        out = done.of(CONNECT_OUT, host)[0].result
        assert [one["flow"]["workload_port"] for one in made] == [8080, 8080, 8080]
        assert [one["flow"]["remote_port"] for one in out["connections"]] == [8080]
        assert {(one["answered"], one["retransmissions"]) for one in made} == {(1, 0)}
        assert all(flow["admitted"] for flow in [*seen, *out["flows"]])
        # Both addresses of the first workload try the same way, one after the other.
        assert [carried(flow) for flow in seen] == [True, True, False]
        assert carried(out["flows"][0])
    assert f"Probed 10.244.1.11:8080, 10.244.1.12:8080, fd00:10:244:1::11:8080 from {PREFIX}n2" in told(done)
    assert "as a client, 10.244.1.11 to 10.244.2.11:8080" in told(done)


def carried(flow: dict[str, Any]) -> bool:
    return bool(flow["to_workload"] and flow["to_uplink"])


def test_a_probe_that_stays_in_the_kernels_path_is_refused_with_its_reasons(lab: Lab) -> None:
    """The workloads are reached all the same, so nothing but the count tells."""

    def forget_workloads(task: str) -> None:
        if task == CONNECT:
            Datapath(lab.nodes[1]).clear("ifindex_map")

    done = play.playbook(SITE, variables=WITH_ECHO, begun=forget_workloads)
    assert done.code != 0
    assert f"{PREFIX}n1: FAILED at 'Refuse a probe that did not take the overlay'" in told(done)
    assert "Cannot carry a connection by the fast path: 10.244.1.11:8080 with 198.18.0.12:" in told(done)
    assert "its handshake was not seen going in and coming out" in told(done)
    assert "uplink.not_workload" in told(done)
    assert {history(node)["number"] for node in lab.nodes.values()} == {1}


def test_who_does_not_listen_and_who_cannot_be_entered_is_named(lab: Lab) -> None:
    # As with a virtual machine: nothing on the node holds the network that its interface leads to.
    lab.nodes[1].run(["sh", "-c", "umount /run/netns/*"])
    done = play.playbook(SITE, variables=WITH_NOBODY).succeeded()
    assert f"fd00:10:244:1::11:8080 from {PREFIX}n2 (10.244.1.11:9, 10.244.1.12:9, fd00:10:244:1::11:9 refused" in told(
        done
    )
    assert "as a client, nothing: 10.244.1.11: no process or mount holds the network namespace behind cali" in told(
        done
    )
    assert "as a client, 10.244.2.11 to 10.244.3.11:8080" in told(done)
