# SPDX-License-Identifier: GPL-3.0-or-later
"""examples/own-program, run as its README says: counting, an upgrade foretold by a dry run, the removal.

neighbour (10.78.0.2) --- eth0, node (10.78.0.1)
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet import play
from integration.host import Host

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own-program"
NEIGHBOUR = "10.78.0.2"
SEND = """
import socket, sys
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(int(sys.argv[1])):
    sender.sendto(b"", ("10.78.0.1", 9))
"""
INSTALL, MOUNT, BUILD, FILL, ATTACH = (
    "Install the compiler's and the filters' libraries",
    "Mount the file system that holds pins",
    "Compile, load and pin the program",
    "Tell the program whom not to count",
    "Attach it behind all others",
)


class Place:
    def __init__(self, folder: Path) -> None:
        self.node, self.neighbour = Host(), Host()
        self.playbooks = folder / "own-program"
        shutil.copytree(EXAMPLE, self.playbooks)
        node = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
        self.inventory = folder / "inventory.yml"
        self.inventory.write_text(json.dumps({"overlay_nodes": {"hosts": {"node": node}}}))
        link = ["ip", "link", "add", "eth0", "netns", self.node.pid, "type", "veth", "peer", "name", "eth0"]
        subprocess.run([*link, "netns", self.neighbour.pid], check=True)
        self.neighbour.shell(f"ip address add {NEIGHBOUR}/24 dev eth0; ip link set eth0 up")
        self.node.shell("ip address add 10.78.0.1/24 dev eth0; ip link set eth0 up")

    def end(self) -> None:
        self.node.end()
        self.neighbour.end()

    def play(self, name: str, *options: str, **variables: Any) -> play.Run:
        command = [Path(sys.executable).with_name("ansible-playbook"), "-i", self.inventory, self.playbooks / name]
        settings = {"own_interfaces": ["eth*"], "ansible_remote_tmp": "/run/ansible", **variables}
        return play.run(*self.node.enter(*map(str, command), *options), variables=settings).succeeded()

    def both(self, name: str, **variables: Any) -> set[str]:
        """A dry run, which must change nothing and foretell the real run after it; the tasks that changed something."""
        before = self.state()
        dry = self.play(name, "--check", "--diff", **variables)
        assert self.state() == before
        real = self.play(name, "--diff", **variables)
        assert dry.changes == real.changes
        return {task for _host, task in real.changes}

    def state(self) -> str:
        """Qdiscs, filters, mounts of bpffs and pins of the node, without the counters of packets."""
        return self.node.shell(
            "tc qdisc show; tc filter show dev eth0 ingress; grep ' bpf ' /proc/self/mounts || true; find /sys/fs/bpf"
        )

    def counted(self, more: int) -> int:
        """How many packets of the neighbour were counted until now, after it sent so many more."""
        self.neighbour.run("/usr/bin/python3", "-c", SEND, str(more))
        (shown,) = self.play("show.yml").of("Read the counters")
        return {entry["key"]: entry["value"] for entry in shown.result["entries"]}.get(NEIGHBOUR, 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("own"))
    yield place
    place.end()


def test_it_counts_and_a_second_run_changes_nothing(place: Place) -> None:
    assert place.both("count.yml") == {MOUNT, BUILD, ATTACH}
    assert "/links/own_2dprogram/" in place.state()
    assert place.counted(5) == 5
    assert place.play("count.yml").changes == set()


def test_it_counts_as_a_filter_too_where_another_filter_may_take_packets(place: Place) -> None:
    place.node.shell(
        "tc qdisc add dev eth0 clsact; tc filter add dev eth0 ingress prio 9 u32 match u32 1 1 classid 1:1"
    )
    assert place.both("count.yml") == {ATTACH}
    assert re.search(r"pref 60000 bpf .*own-program:count direct-action", place.state())
    assert place.counted(5) == 10
    place.node.shell("tc qdisc del dev eth0 clsact")
    assert place.both("count.yml") == {ATTACH}


def test_it_is_fed(place: Place) -> None:
    assert place.both("count.yml", own_ignored=[NEIGHBOUR]) == {FILL}
    assert place.counted(5) == 10, "no longer counted"


def test_the_dry_run_of_an_upgrade_foretells_the_new_filter(place: Place) -> None:
    """The pins are there, and yet the program that will be attached is another one."""
    source = place.playbooks / "count.c"
    text = source.read_text()
    assert "(known, 1)" in text
    source.write_text(text.replace("(known, 1)", "(known, 100)"))
    assert place.both("count.yml") == {BUILD, FILL, ATTACH}
    assert place.counted(5) == 510, "the counters were carried over"


def test_removal_leaves_nothing(place: Place) -> None:
    """Uninstalling leaves no program: cilium #26472, calico #7008."""
    assert len(place.both("remove.yml")) == 3
    state = place.state()
    assert "own" not in state
    assert "clsact" not in state
    assert place.play("remove.yml").changes == set()
