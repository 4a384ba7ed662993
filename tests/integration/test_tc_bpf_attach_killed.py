# SPDX-License-Identifier: GPL-3.0-or-later
"""``tc_bpf_attach`` killed at any step, then one more run, then a search for what is left over (retina #537,
aws-network-policy-agent #621).

Killed are all steps in a soak, some of them otherwise.
"""

from __future__ import annotations

import signal
from typing import Any

import pytest
from integration.steps import steps_to_kill
from integration.tc_checks import TCX_ATTACH, killed, loaded, steps_of
from integration.tc_sandbox import PINS, Sandbox, at, returns

pytest_plugins = ["integration.tc_fixtures"]


@pytest.mark.parametrize("final", ["present", "replaced", "moved", "absent"])
@pytest.mark.parametrize("mechanism", ["clsact", "tcx"])
def test_the_next_run_finishes_and_leaves_nothing(node: Sandbox, mechanism: str, final: str) -> None:
    clean = node.state()
    other = "tcx" if mechanism == "clsact" else "clsact"
    first: tuple[list[dict[str, Any]], dict[str, Any]] = ([at("eth0", "one")], {"mechanism": mechanism})
    wanted, params = {
        "present": first,
        "replaced": first,
        "moved": ([at("eth0", "one", priority=8), at("cali1", "two")], {"mechanism": other}),
        "absent": ([], {"purge": True}),
    }[final]
    programs: list[int] = []

    def start() -> None:
        node.attach(purge=True)
        programs.append(node.load("one", returns(-1, padding=len(programs) % 5)))
        if final != "present":
            node.attach(*first[0], **first[1])
        if final == "replaced":
            programs.append(node.load("one", returns(-1, padding=len(programs) % 5)))

    def held() -> list[str]:
        """Everything but the programs' ids and tags, and the revisions of hooks."""
        lines = node.state().splitlines()
        return [line.split(" id ")[0] for line in lines if line.startswith(("qdisc", "filter", "/run", "/sys"))]

    start()
    total = steps_of(node, *wanted, **params)
    goal = held()
    for number in steps_to_kill(total, 5):
        start()
        code, said = killed(node, number, *wanted, **params)
        assert code == -signal.SIGKILL, said
        finished = node.attach(*wanted, **params)
        assert finished["rc"] == 0, finished
        assert held() == goal, number
        assert not node.attach(*wanted, **params)["changed"]
    node.attach(purge=True)
    assert node.state() == clean
    node.sh(f"rm {PINS}/one")
    assert loaded(node, *programs) == []


def test_the_search_finds_each_kind_of_residue(node: Sandbox) -> None:
    """Or else the test above could not fail."""
    clean, program = node.state(), node.load("one", returns(-1, padding=7))
    for make, undo in (
        ("tc qdisc add dev eth0 clsact", "tc qdisc del dev eth0 clsact"),
        (
            f"tc qdisc add dev eth1.1 ingress; tc filter add dev eth1.1 ingress bpf da pinned {PINS}/one",
            "tc qdisc del dev eth1.1 ingress",
        ),
        ("mkdir /run/ebpf-overlay", "rmdir /run/ebpf-overlay"),
        ("touch /run/ebpf-overlay.lock", "rm /run/ebpf-overlay.lock"),
        ("mkdir -p /sys/fs/bpf/ebpf-overlay/links", "rm -r /sys/fs/bpf/ebpf-overlay"),
    ):
        node.sh(make)
        assert node.state() != clean, make
        node.sh(undo)
        assert node.state() == clean
    node.python(TCX_ATTACH, "/sys/fs/bpf/stray/link", "eth0", "46", f"{PINS}/one")
    assert node.state() != clean
    node.sh(f"rm {PINS}/one")
    assert loaded(node, program) == [program]
    node.sh("rm -r /sys/fs/bpf/stray")
    assert loaded(node, program) == []
