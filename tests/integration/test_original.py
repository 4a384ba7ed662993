# SPDX-License-Identifier: GPL-3.0-or-later
"""examples/original, run as its README says: the playbook, its three experiments, its removal.

client (10.77.0.2) --- up0, node, cali1 --- workload (10.77.1.10, port 8080)
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.host import Host

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "original"
CLIENT, WORKLOAD = "10.77.0.2", "10.77.1.10"

SERVER = """
import socket
server = socket.create_server(("", 8080))
print("ready", flush=True)
while True:
    connection = server.accept()[0]
    connection.sendall(b"hello")
    connection.close()
"""
REQUEST = f"""
import socket
print(socket.create_connection(("{WORKLOAD}", 8080), timeout=1.5).recv(5).decode())
"""


class Place:
    def __init__(self, folder: Path) -> None:
        self.client, self.node, self.workload = self.hosts = Host(), Host(), Host()
        self.inventory = folder / "inventory.yml"
        node = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
        self.inventory.write_text(json.dumps({"overlay_nodes": {"hosts": {"node": node}}}))
        for name, other, peer in (("up0", self.client, "eth0"), ("cali1", self.workload, "eth0")):
            link = ["ip", "link", "add", name, "netns", self.node.pid, "type", "veth", "peer", "name", peer]
            subprocess.run([*link, "netns", other.pid], check=True)
        self.client.shell(
            f"ip address add {CLIENT}/24 dev eth0; ip link set eth0 up; ip route add default via 10.77.0.1"
        )
        self.workload.shell(
            f"ip address add {WORKLOAD}/32 dev eth0; ip link set eth0 up;"
            "ip route add 169.254.1.1 dev eth0; ip route add default via 169.254.1.1 dev eth0"
        )
        self.node.shell(
            "ip address add 10.77.0.1/24 dev up0; ip address add 10.77.0.5/24 dev up0;"
            "ip link set up0 up; ip link set cali1 up; echo 1 > /proc/sys/net/ipv4/ip_forward;"
            "echo 1 > /proc/sys/net/ipv4/conf/cali1/proxy_arp;"
            f"ip route add default via {CLIENT}; ip route add {WORKLOAD} dev cali1 scope link;"
            "nft add table ip filter; nft add chain ip filter forward '{ type filter hook forward priority 0; }';"
            "nft add rule ip filter forward ct state invalid counter drop"
        )
        self.server = subprocess.Popen(
            self.workload.enter("/usr/bin/python3", "-c", SERVER), stdout=subprocess.PIPE, text=True
        )
        assert self.server.stdout
        assert self.server.stdout.readline() == "ready\n"

    def end(self) -> None:
        self.server.kill()
        self.server.communicate()
        for host in self.hosts:
            host.end()

    def play(self, name: str, *options: str, **variables: Any) -> tuple[int, str]:
        """Run a playbook of the example on the node; how many tasks changed something, and what was printed."""
        command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(self.inventory)]
        command += ["-e", json.dumps({"original_interfaces": ["up0"], **variables}), *options, str(EXAMPLE / name)]
        environment = {
            **os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "HOME": "/run",
            "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",  # with the recap that is read below
        }  # fmt: skip
        done = self.node.run(*command, check=False, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        recap = re.search(r"^node +: ok=\d+ +changed=(\d+) ", done.stdout, re.MULTILINE)
        assert recap, done.stdout
        return int(recap[1]), done.stdout + done.stderr

    def filters(self, interface: str) -> str:
        return self.node.shell(f"tc filter show dev {interface} ingress")

    def state(self) -> str:
        """Qdiscs, filters, mounts of bpffs and pins of the node."""
        return self.node.shell(
            "tc qdisc show; for dev in up0 cali1; do tc filter show dev $dev ingress; done;"
            "grep ' bpf ' /proc/self/mounts || true; find /sys/fs/bpf"
        )

    def answer(self) -> str:
        return self.client.run("/usr/bin/python3", "-c", REQUEST, check=False).stdout.strip()

    def invalid(self) -> int:
        """Packets that the node's packet filter dropped because conntrack did not know their connection."""
        found = re.search(r"invalid counter packets (\d+)", self.node.shell("nft list ruleset"))
        assert found
        return int(found[1])

    def misaddressed(self) -> int:
        """Frames that the workload got and that were addressed to another MAC."""
        (link,) = json.loads(self.workload.shell("ip -j -s -s link show dev eth0"))
        return int(link["stats64"]["rx"].get("otherhost", 0))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("original"))
    yield place
    place.end()


def test_dry_run_predicts_and_changes_nothing(place: Place) -> None:
    before = place.state()
    changed, output = place.play("original.yml", "--check", "--diff")
    assert place.state() == before
    assert changed == 4  # mount, load, map, attach
    for address in ("127.0.0.1", "10.77.0.1", "10.77.0.5"):
        assert address in output


def test_what_tc_shows_and_that_a_second_run_does_nothing(place: Place) -> None:
    changed, output = place.play("original.yml")
    assert changed == 4
    shown = place.filters("up0")
    assert re.search(r"filter protocol all pref 1 bpf chain 0 handle 0x1 original:redirect direct-action", shown)
    assert "original:redirect direct-action" in output
    assert place.filters("cali1") == ""
    assert place.play("original.yml")[0] == 0
    assert place.filters("up0") == shown


def test_without_a_redirect_the_kernel_forwards(place: Place) -> None:
    assert place.answer() == "hello"


def test_experiment_1_plain_fails_because_frames_keep_the_address_of_the_nic(place: Place) -> None:
    place.play("original.yml", original_redirect="plain", original_addresses={WORKLOAD: "cali1"})
    before = place.misaddressed()
    assert place.answer() == ""
    assert place.misaddressed() > before


def test_experiment_2_neigh_one_way_fails_because_conntrack_never_saw_the_request(place: Place) -> None:
    place.play("original.yml", original_redirect="neigh", original_addresses={WORKLOAD: "cali1"})
    before = place.invalid(), place.misaddressed()
    assert place.answer() == ""
    assert place.invalid() > before[0]
    assert place.misaddressed() == before[1]


def test_experiment_3_neigh_both_ways_works_past_the_packet_filter(place: Place) -> None:
    place.play(
        "original.yml",
        original_interfaces=["up0", "cali1"],
        original_addresses={WORKLOAD: "cali1", CLIENT: "up0"},
    )
    before = place.invalid()
    place.node.shell("nft insert rule ip filter forward drop")
    try:
        assert place.answer() == "hello"
    finally:
        handle = place.node.shell("nft -a list chain ip filter forward | sed -n 's/.*drop # handle //p' | head -1")
        place.node.shell(f"nft delete rule ip filter forward handle {handle}")
    assert place.invalid() == before


def test_removal_leaves_nothing(place: Place) -> None:
    assert place.play("remove.yml", "--check")[0] == 3
    assert "original:redirect" in place.filters("cali1")
    assert place.play("remove.yml")[0] == 3
    state = place.state()
    assert "original" not in state
    assert "clsact" not in state
    assert "bpf" not in state.replace("/sys/fs/bpf", "")
    assert place.answer() == "hello"
    assert place.play("remove.yml")[0] == 0
